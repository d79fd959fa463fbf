//! LZ4's legacy frame: a magic number, then blocks of at most 8 MiB, each with its packed size before
//! it. It has no end mark: it ends with the file, or, in a kernel image, before the plain size that
//! the build appends.

use std::io::{self, Read};

const MAGIC: u32 = 0x184c_2102;
const BLOCK_LIMIT: usize = 8 << 20;
/// What `LZ4_compressBound` gives for a block that does not compress.
const PACKED_LIMIT: usize = BLOCK_LIMIT + BLOCK_LIMIT / 255 + 16;

/// Reads the plain bytes of a legacy frame.
pub(super) struct LegacyReader<R> {
    from: R,
    block: Vec<u8>,
    at: usize,
    started: bool,
}

impl<R: Read> LegacyReader<R> {
    pub(super) fn new(from: R) -> LegacyReader<R> {
        LegacyReader { from, block: Vec::new(), at: 0, started: false }
    }

    /// Unpacks the next block; false at the end.
    fn next_block(&mut self) -> io::Result<bool> {
        if !self.started {
            self.started = true;
            if self.word()? != Some(MAGIC) {
                return Err(damaged("the magic number is missing"));
            }
        }
        let size = match self.word()? {
            Some(MAGIC) => self.word()?,
            word => word,
        };
        let Some(size) = size else { return Ok(false) };
        let size = usize::try_from(size).map_err(|_| damaged("a block is too large"))?;
        if size > PACKED_LIMIT {
            // Not a block's size but the appended plain size: nothing follows it.
            return if self.from.read(&mut [0])? == 0 {
                Ok(false)
            } else {
                Err(damaged("a block is too large"))
            };
        }
        let mut packed = Vec::new();
        let limit = u64::try_from(size).map_err(io::Error::other)?;
        if self.from.by_ref().take(limit).read_to_end(&mut packed)? < size {
            // A small plain size looks like a block's; it is the last word of the file.
            return if packed.is_empty() {
                Ok(false)
            } else {
                Err(damaged("a block is cut short"))
            };
        }
        self.block.clear();
        self.at = 0;
        unpack_block(&packed, &mut self.block).ok_or_else(|| damaged("a block makes no sense"))?;
        Ok(true)
    }

    /// The next little-endian word; none at the end, also when less than a word is left.
    fn word(&mut self) -> io::Result<Option<u32>> {
        let mut bytes = Vec::with_capacity(4);
        self.from.by_ref().take(4).read_to_end(&mut bytes)?;
        Ok(<[u8; 4]>::try_from(bytes).ok().map(u32::from_le_bytes))
    }
}

impl<R: Read> Read for LegacyReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.block.len() {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let read = (&self.block[self.at..]).read(buf)?;
        self.at += read;
        Ok(read)
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("lz4: {what}"))
}

/// Unpacks one block: sequences of literals and of copies of what was already written. None if it is
/// damaged or larger than a block may be.
fn unpack_block(packed: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut rest = packed;
    while let Some((&token, after)) = rest.split_first() {
        rest = after;
        let literals = length(token >> 4, &mut rest)?;
        let (copied, after) = rest.split_at_checked(literals)?;
        rest = after;
        if out.len() + literals > BLOCK_LIMIT {
            return None;
        }
        out.extend_from_slice(copied);
        if rest.is_empty() {
            // The last sequence has no copy.
            return Some(());
        }
        let (back, after) = rest.split_first_chunk::<2>()?;
        rest = after;
        let back = usize::from(u16::from_le_bytes(*back));
        let count = length(token & 15, &mut rest)?.checked_add(4)?;
        let start = out.len().checked_sub(back).filter(|_| back > 0)?;
        if out.len() + count > BLOCK_LIMIT {
            return None;
        }
        // Byte by byte where the copy overlaps itself: that is how runs are written.
        if back >= count {
            out.extend_from_within(start..start + count);
        } else {
            (start..start + count).for_each(|at| out.push(out[at]));
        }
    }
    Some(())
}

/// A length: four bits, then bytes for as long as they are 255.
fn length(nibble: u8, rest: &mut &[u8]) -> Option<usize> {
    let mut total = usize::from(nibble);
    if nibble == 15 {
        loop {
            let (&byte, after) = rest.split_first()?;
            *rest = after;
            total = total.checked_add(usize::from(byte))?;
            if byte != 255 {
                break;
            }
        }
    }
    Some(total)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A legacy frame of literals alone.
    pub(crate) fn pack_literally(plain: &[u8]) -> Vec<u8> {
        let mut frame = MAGIC.to_le_bytes().to_vec();
        for block in plain.chunks(BLOCK_LIMIT) {
            let mut packed = vec![0xf0];
            let mut left = block.len() - 15;
            while left >= 255 {
                packed.push(255);
                left -= 255;
            }
            packed.push(u8::try_from(left).unwrap());
            packed.extend_from_slice(block);
            frame.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
            frame.extend(packed);
        }
        frame
    }

    #[test]
    fn copies_may_overlap_themselves() {
        let mut out = Vec::new();
        // "ab", then 4 + 4 bytes from two back, then the literal "!".
        assert!(unpack_block(&[0x24, b'a', b'b', 2, 0, 0x10, b'!'], &mut out).is_some());
        assert_eq!(out, b"ababababab!");
    }

    #[test]
    fn a_copy_from_before_the_start_is_refused() {
        for packed in [&[0x14, b'a', 2, 0, 0][..], &[0x14, b'a', 0, 0, 0], &[0x40, b'a'], &[0xf0]] {
            assert!(unpack_block(packed, &mut Vec::new()).is_none(), "{packed:?}");
        }
    }
}
