//! Writing a ZFile, compressed by as many threads as are allowed; their number never changes a byte.

use std::io::{self, Seek, SeekFrom, Write};

use super::codec::Codec;
use super::header::{BLOCK_CRC_SEED, Header, crc};

/// How a ZFile is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    /// How blocks are compressed.
    pub codec: Codec,
    /// Bytes in a block: a power of two from 4096 to 65536.
    pub block_size: u32,
    /// Whether a CRC follows each block.
    pub checksums: bool,
    /// Whether the header is completed at the end, so that readers need no trailer.
    pub complete_header: bool,
    /// How many threads compress.
    pub threads: usize,
}

impl Default for Packing {
    /// What a registry's images use: lz4, 4 KiB, checksums, a complete header.
    fn default() -> Packing {
        Packing {
            codec: Codec::Lz4,
            block_size: 4096,
            checksums: true,
            complete_header: true,
            threads: 1,
        }
    }
}

/// What one thread compresses before results are collected.
const SHARE: usize = 512 << 10;
/// Other readers take no compressed block that is larger.
const READABLE: usize = 65536;

/// Compresses what is written to it. [`finish`](ZFileWriter::finish) makes it a file; one that was
/// dropped before is not a ZFile.
#[derive(Debug)]
pub struct ZFileWriter<W: Write + Seek> {
    out: W,
    /// Where in `out` the file starts.
    base: u64,
    packing: Packing,
    pending: Vec<u8>,
    batch: usize,
    table: Vec<u8>,
    content_size: u64,
    /// Bytes of the file so far, its header included.
    written: u64,
}

/// Compressed blocks of one thread: the bytes, and the length of each.
type Packed = io::Result<(Vec<u8>, Vec<u32>)>;

impl<W: Write + Seek> ZFileWriter<W> {
    /// Starts a file at the current position.
    pub fn new(mut out: W, packing: Packing) -> io::Result<ZFileWriter<W>> {
        if !packing.block_size.is_power_of_two() || !(4096..=65536).contains(&packing.block_size) {
            let size = packing.block_size;
            let rule = format!("a block size of {size} is no power of two from 4096 to 65536");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, rule));
        }
        let base = out.stream_position()?;
        let threads = packing.threads.max(1);
        let writer = ZFileWriter {
            base,
            packing,
            pending: Vec::new(),
            batch: SHARE.saturating_mul(threads),
            table: Vec::new(),
            content_size: 0,
            written: 512,
            out,
        };
        let mut writer = writer;
        let empty = Header { index_offset: 0, content_size: 0, ..writer.header(true) };
        writer.out.write_all(&Header { complete: false, ..empty }.encode())?;
        Ok(writer)
    }

    fn header(&self, is_header: bool) -> Header {
        Header {
            is_header,
            complete: is_header && self.packing.complete_header,
            has_digest: true,
            index_offset: self.written,
            blocks: self.table.len() as u64 / 4,
            content_size: self.content_size,
            index_crc: crc(0, &self.table),
            block_size: self.packing.block_size,
            codec: self.packing.codec,
            dict_size: 0,
            checksums: self.packing.checksums,
        }
    }

    /// Compresses what is pending: whole blocks, and a short one only at the end.
    fn pack(&mut self) -> io::Result<()> {
        let packing = self.packing;
        let shares: Vec<Packed> = if self.pending.len() <= SHARE {
            vec![pack_share(packing, &self.pending)]
        } else {
            std::thread::scope(|scope| {
                let workers: Vec<_> = self
                    .pending
                    .chunks(SHARE)
                    .map(|share| scope.spawn(move || pack_share(packing, share)))
                    .collect();
                workers
                    .into_iter()
                    .map(|worker| {
                        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                    })
                    .collect()
            })
        };
        for share in shares {
            let (bytes, lens) = share?;
            self.out.write_all(&bytes)?;
            self.written += bytes.len() as u64;
            self.table.extend(lens.into_iter().flat_map(u32::to_le_bytes));
        }
        self.content_size += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Writes what is left, the jump table and the trailer; returns the output, positioned behind
    /// the file, and the file's length.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.pack()?;
        let trailer = self.header(false).encode();
        self.out.write_all(&self.table)?;
        self.out.write_all(&trailer)?;
        let len = self.written + self.table.len() as u64 + 512;
        if self.packing.complete_header {
            let header = self.header(true).encode();
            self.out.seek(SeekFrom::Start(self.base))?;
            self.out.write_all(&header)?;
            self.out.seek(SeekFrom::Start(self.base + len))?;
        }
        Ok((self.out, len))
    }
}

fn pack_share(packing: Packing, share: &[u8]) -> Packed {
    let block_size = packing.block_size as usize;
    let mut bytes = Vec::with_capacity(share.len() / 2);
    let mut lens = Vec::with_capacity(share.len() / block_size + 1);
    let mut room = vec![0; packing.codec.bound(block_size)];
    for block in share.chunks(block_size) {
        let len = packing.codec.compress(block, &mut room)?;
        if len > READABLE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, TooLarge));
        }
        bytes.extend_from_slice(&room[..len]);
        if packing.checksums {
            bytes.extend_from_slice(&crc(BLOCK_CRC_SEED, &room[..len]).to_le_bytes());
        }
        let len = if packing.checksums { len + 4 } else { len };
        lens.push(u32::try_from(len).unwrap_or(u32::MAX));
    }
    Ok((bytes, lens))
}

/// A block that no other reader could read back.
#[derive(Debug, thiserror::Error)]
#[error(
    "a 64 KiB block does not compress, and other readers fail on it; use blocks of 32 KiB or less"
)]
pub(crate) struct TooLarge;

impl<W: Write + Seek> Write for ZFileWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let take = bytes.len().min(self.batch - self.pending.len());
        self.pending.extend_from_slice(&bytes[..take]);
        if self.pending.len() == self.batch {
            self.pack()?;
        }
        Ok(take)
    }

    /// Does nothing: what was written so far cannot be read before the end is known.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
