//! Reading a ZFile: its jump table, and blocks one by one or in runs.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_block::{BlockSource, ByteLen, ByteOffset, DeviceError};

use super::ahead::{Reading, Streams};
use super::cache::BlockCache;
use super::codec::Codec;
use super::crew::crew;
use super::header::{self, BLOCK_CRC_SEED, Header, crc, is_sealed};
use crate::input::u32_at;
use crate::{Input, LayerError};

/// Entries of the jump table between two remembered positions.
const STRIDE: usize = 16;
/// Compressed bytes that are read in one go.
const SPAN: u64 = 128 << 10;
/// Content that one of several threads unpacks before it comes back for more.
const PIECE: u64 = 128 << 10;
/// Content that is read ahead for a reader in sequence, at first and at most; it stays compressed.
const FIRST_AHEAD: u64 = 16 << 10;
const AHEAD: u64 = 128 << 10;
/// Larger reads are unpacked where they are wanted, and not kept.
const KEPT: usize = 64 << 10;
/// Reads from this size on are decompressed by several threads.
const PARALLEL: usize = 512 << 10;

thread_local! {
    // Fresh memory for each read would cost more than unpacking does. Whoever finds them taken, because one file lies in
    // another, gets empty ones.
    static PACKED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static UNPACKED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A ZFile that is open for reading: what it unpacks to, as a disk.
#[derive(Debug)]
pub struct ZFile {
    input: Input,
    header: Header,
    /// Blocks that hold content; the jump table may have more.
    blocks: u64,
    /// Compressed bytes of each block, with its CRC.
    lens: Vec<u32>,
    /// Where every sixteenth block starts.
    starts: Vec<u64>,
    cache: Arc<BlockCache>,
    owner: u64,
    threads: usize,
    streams: Streams,
}

/// Whether the input starts like a ZFile.
pub(crate) fn is_zfile(input: &Input) -> Result<bool, LayerError> {
    let mut magic = [0u8; 24];
    if input.len() < header::SIZE as u64 {
        return Ok(false);
    }
    input.read(0, &mut magic, "the magic")?;
    Ok(magic == *header::MAGIC)
}

fn read_header(input: &Input, at: u64, what: &str) -> Result<(Header, bool), LayerError> {
    let mut bytes = [0u8; header::SIZE];
    input.read(at, &mut bytes, what)?;
    let header = Header::parse(&bytes)
        .map_err(|(within, rule)| input.damaged(at + within, format!("{what}: {rule}")))?;
    Ok((header, is_sealed(&bytes)))
}

impl ZFile {
    /// Reads and checks everything but the blocks, which are checked when they are read. A large
    /// read is spread over `threads` threads.
    pub fn open(input: Input, cache: Arc<BlockCache>, threads: usize) -> Result<ZFile, LayerError> {
        let (first, _) = read_header(&input, 0, "the ZFile header")?;
        if !first.is_header {
            return Err(input.damaged(32, "the ZFile header has a trailer's flags"));
        }
        // A complete header makes the trailer unnecessary; others do not even look at it then.
        let (header, header_at) = if first.complete {
            (first, 0)
        } else {
            let at = input.len().checked_sub(512).filter(|at| *at >= 512);
            let at = at.ok_or_else(|| input.damaged(512, "the ZFile ends before its trailer"))?;
            let (trailer, sealed) = read_header(&input, at, "the ZFile trailer")?;
            if trailer.is_header || !sealed {
                return Err(input.damaged(at + 32, "the ZFile trailer has no trailer's flags"));
            }
            (trailer, at)
        };
        let lens = read_table(&input, &header, header_at)?;
        let starts = starts(&input, &header, header_at, &lens)?;
        let owner = cache.new_owner();
        Ok(ZFile {
            input,
            blocks: header.content_size.div_ceil(u64::from(header.block_size)),
            header,
            lens,
            starts,
            cache,
            owner,
            threads: threads.max(1),
            streams: Streams::new(),
        })
    }

    /// How its blocks are compressed.
    pub fn codec(&self) -> Codec {
        self.header.codec
    }

    /// Bytes in a block.
    pub fn block_size(&self) -> u32 {
        self.header.block_size
    }

    /// Whether a CRC follows each block.
    pub fn has_checksums(&self) -> bool {
        self.header.checksums
    }

    /// Whether CRCs cover all of it: header, jump table and blocks. Then no byte of it can be wrong unnoticed.
    pub fn is_covered(&self) -> bool {
        self.header.checksums && self.header.has_digest
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Its name in errors.
    pub(crate) fn name(&self) -> &str {
        self.input.name()
    }

    /// Decompresses every block and returns what is wrong with each that cannot be, at most `limit`.
    pub fn damaged_blocks(&self, limit: usize) -> Vec<DeviceError> {
        let mut out = vec![0; self.header.block_size as usize];
        (0..self.blocks())
            .filter_map(|block| {
                let len = self.len_of(block);
                self.unpack(block, 1, &mut out[..len]).err()
            })
            .take(limit)
            .collect()
    }

    /// A block has two to this bytes: shifts are quicker than divisions.
    fn block_bits(&self) -> u32 {
        self.header.block_size.trailing_zeros()
    }

    fn block_bytes(&self) -> u64 {
        u64::from(self.header.block_size)
    }

    /// Bytes in that block: all have the block size but perhaps the last.
    fn len_of(&self, block: u64) -> usize {
        let left = self.header.content_size - block * self.block_bytes();
        usize::try_from(left.min(self.block_bytes())).unwrap_or(0)
    }

    fn packed_start(&self, block: usize) -> u64 {
        let base = block / STRIDE;
        let before = &self.lens[base * STRIDE..block];
        self.starts[base] + before.iter().map(|len| u64::from(*len)).sum::<u64>()
    }

    /// Decompresses a run of whole blocks into `out`, on one thread.
    fn unpack(&self, first: u64, count: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let mut packed = PACKED.take();
        let unpacked = self.unpack_through(&mut packed, first, count, out);
        PACKED.set(packed);
        unpacked
    }

    fn unpack_through(
        &self,
        packed: &mut Vec<u8>,
        first: u64,
        count: u64,
        out: &mut [u8],
    ) -> Result<(), DeviceError> {
        let (mut next, mut out) = (first, out);
        let end = first + count;
        while next < end {
            let from = index(next);
            let mut span = 0;
            let run = self.lens[from..index(end)]
                .iter()
                .take_while(|len| {
                    span += u64::from(**len);
                    span <= SPAN || span == u64::from(**len)
                })
                .count();
            let lens = &self.lens[from..from + run];
            let start = self.packed_start(from);
            let total: usize = lens.iter().map(|len| *len as usize).sum();
            if packed.len() < total {
                packed.resize(total, 0);
            }
            self.input.read_at(start, &mut packed[..total])?;
            let mut within = 0;
            for (len, block) in lens.iter().zip(next..) {
                let (head, tail) = out.split_at_mut(self.len_of(block));
                let bytes = &packed[within..within + *len as usize];
                self.unpack_block(block, start + within as u64, bytes, head)?;
                within += *len as usize;
                out = tail;
            }
            next += run as u64;
        }
        Ok(())
    }

    /// Unpacks a block whose compressed bytes were read at `at`.
    #[inline]
    fn unpack_block(
        &self,
        block: u64,
        at: u64,
        packed: &[u8],
        out: &mut [u8],
    ) -> Result<(), DeviceError> {
        let unpacked = self.unpack_one(packed, out);
        let unpacked = unpacked.or_else(|rule| self.unpack_again(at, packed.len(), out, rule));
        unpacked.map_err(|rule| DeviceError::Damaged {
            at: ByteOffset::new(block * self.block_bytes()),
            found: format!(
                "{}, block {block} at byte {}: {rule}",
                self.name(),
                self.input.position(at)
            ),
        })
    }

    /// Unpacks a block once more after it was wrong, if there is another copy of it.
    #[cold]
    fn unpack_again(
        &self,
        at: u64,
        len: usize,
        out: &mut [u8],
        rule: String,
    ) -> Result<(), String> {
        let mut packed = vec![0; len];
        let mut outcome = Err(rule);
        // Whoever has other copies knows when to stop; this is for those who do not.
        for _ in 0..16 {
            if outcome.is_ok() || !self.input.distrust(at, len as u64) {
                break;
            }
            self.input.read_at(at, &mut packed).map_err(|error| error.to_string())?;
            outcome = self.unpack_one(&packed, out);
        }
        outcome
    }

    fn unpack_one(&self, packed: &[u8], out: &mut [u8]) -> Result<(), String> {
        let data = if self.header.checksums {
            let (data, stored) = packed.split_at(packed.len() - 4);
            let (stored, found) = (u32_at(stored, 0), crc(BLOCK_CRC_SEED, data));
            if stored != found {
                return Err(format!("its CRC is {stored:08x}, its bytes give {found:08x}"));
            }
            data
        } else {
            packed
        };
        self.header.codec.decompress(data, out)
    }

    /// A long run of whole blocks, on as many threads as are allowed; this one works too. Each takes the
    /// next piece when it is done with one, so none waits for another.
    fn unpack_parallel(&self, first: u64, count: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        if self.threads == 1 || out.len() < PARALLEL {
            return self.unpack(first, count, out);
        }
        let piece = (PIECE / self.block_bytes()).max(1);
        let parts = out.chunks_mut(index(piece * self.block_bytes()));
        let parts = Mutex::new((first..first + count).step_by(index(piece)).zip(parts));
        // Pieces are taken in order, so the first damage is always among what is found.
        let damage: Mutex<Option<(u64, DeviceError)>> = Mutex::default();
        let work = || {
            loop {
                let next = parts.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((from, part)) = next else { return };
                let blocks = piece.min(first + count - from);
                let Err(error) = self.unpack(from, blocks, part) else { continue };
                let mut damage = damage.lock().unwrap_or_else(PoisonError::into_inner);
                if damage.as_ref().is_none_or(|(before, _)| from < *before) {
                    *damage = Some((from, error));
                }
                return;
            }
        };
        let others = self.threads.min(index(count.div_ceil(piece))) - 1;
        crew().run(others, &work);
        let damage = damage.into_inner().unwrap_or_else(PoisonError::into_inner);
        damage.map_or(Ok(()), |(_, error)| Err(error))
    }

    /// How many whole blocks lie in so many bytes from the start of a block, and how many bytes these are. The last
    /// block of all may be short.
    fn whole_blocks(&self, block: u64, room: usize) -> (u64, usize) {
        let count = room as u64 >> self.block_bits();
        let bytes = index(count << self.block_bits());
        let after = block + count;
        match after < self.blocks() {
            true if room - bytes >= self.len_of(after) => (count + 1, bytes + self.len_of(after)),
            _ => (count, bytes),
        }
    }

    /// A part of a block, whose rest is wanted soon in all likelihood.
    fn read_part(&self, block: u64, from: usize, out: &mut [u8]) -> Result<(), DeviceError> {
        if self.cache.copy((self.owner, block), from, out) {
            self.streams.note(block + 1);
            return Ok(());
        }
        let mut spare = UNPACKED.take();
        let len = self.len_of(block);
        if spare.len() < len {
            spare.resize(len, 0);
        }
        let unpacked = match self.streams.of(block) {
            Some(reading) => self.read_in_sequence(reading, block, 1, &mut spare[..len]),
            None => {
                self.streams.note(block + 1);
                self.unpack(block, 1, &mut spare[..len])
            }
        };
        if unpacked.is_ok() {
            self.cache.keep((self.owner, block), &spare[..len]);
            out.copy_from_slice(&spare[from..from + out.len()]);
        }
        UNPACKED.set(spare);
        unpacked
    }

    /// A few whole blocks.
    fn read_blocks(&self, first: u64, count: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        if let Some(reading) = self.streams.of(first) {
            return self.read_in_sequence(reading, first, count, out);
        }
        self.streams.note(first + count);
        let size = index(self.block_bytes());
        let mut missing = 0;
        for block in first..first + count {
            let at = index(block - first) * size;
            let len = self.len_of(block);
            if !self.cache.copy((self.owner, block), 0, &mut out[at..at + len]) {
                missing += 1;
                continue;
            }
            self.unpack_and_keep(
                block - missing,
                missing,
                &mut out[at - index(missing) * size..at],
            )?;
            missing = 0;
        }
        let at = index(count - missing) * size;
        self.unpack_and_keep(first + count - missing, missing, &mut out[at..])
    }

    fn unpack_and_keep(&self, first: u64, count: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        if count == 0 {
            return Ok(());
        }
        self.unpack(first, count, out)?;
        let blocks = out.chunks(self.header.block_size as usize);
        for (bytes, block) in blocks.zip(first..first + count) {
            self.cache.keep((self.owner, block), bytes);
        }
        Ok(())
    }

    /// Whole blocks for a reader who will come for those behind them, too.
    fn read_in_sequence(
        &self,
        mut reading: Reading<'_>,
        first: u64,
        count: u64,
        out: &mut [u8],
    ) -> Result<(), DeviceError> {
        let end = first + count;
        let mut out = out;
        for block in first..end {
            let at_first = (FIRST_AHEAD / self.block_bytes()).max(end - block);
            let most = (AHEAD / self.block_bytes()).max(1).min(self.blocks() - block);
            if let Some(ahead) = reading.wanted(at_first, most) {
                let lens = &self.lens[index(block)..index(block + ahead)];
                let len = lens.iter().map(|len| *len as usize).sum();
                let start = self.packed_start(index(block));
                let filled =
                    reading.fill((ahead, start, len), |bytes| self.input.read_at(start, bytes));
                if filled.is_err() {
                    // What is not asked for yet need not be readable.
                    return self.unpack(block, end - block, out);
                }
            }
            let (head, tail) = out.split_at_mut(self.len_of(block));
            let (at, packed) = reading.take(self.lens[index(block)] as usize);
            self.unpack_block(block, at, packed, head)?;
            out = tail;
        }
        Ok(())
    }
}

/// A number of blocks or bytes that lies within a table or buffer in memory.
fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Reads the jump table and checks each entry by itself.
fn read_table(input: &Input, header: &Header, header_at: u64) -> Result<Vec<u32>, LayerError> {
    let needed = header.content_size.div_ceil(u64::from(header.block_size));
    if header.blocks < needed {
        let rule = format!("{} blocks hold less than the {needed} of the content", header.blocks);
        return Err(input.damaged(header_at + 48, rule));
    }
    let bytes = header.blocks.checked_mul(4);
    let end = bytes.and_then(|bytes| header.index_offset.checked_add(bytes));
    let within = end.is_some_and(|end| end <= input.len());
    let first = 512 + u64::from(header.dict_size);
    if !within || header.index_offset < first {
        let rule = format!(
            "a jump table of {} entries at byte {} does not lie between the header and the end",
            header.blocks, header.index_offset
        );
        return Err(input.damaged(header_at + 40, rule));
    }
    let crc_len = if header.checksums { 4 } else { 0 };
    let longest = header.codec.bound(65536).max(65536) + crc_len;
    let mut lens = Vec::new();
    let mut sum = 0;
    let mut at = header.index_offset;
    let mut left = bytes.unwrap_or(0);
    let mut piece = vec![0u8; 65536];
    while left > 0 {
        let take = index(left.min(65536));
        input.read(at, &mut piece[..take], "the jump table")?;
        sum = crc(sum, &piece[..take]);
        for (entry, number) in piece[..take].chunks_exact(4).zip(0u64..) {
            let len = u32_at(entry, 0);
            if len as usize <= crc_len || len as usize > longest {
                let rule = format!("block {} cannot take {len} bytes", lens.len());
                return Err(input.damaged(at + number * 4, rule));
            }
            lens.push(len);
        }
        at += take as u64;
        left -= take as u64;
    }
    if header.has_digest && sum != header.index_crc {
        let rule = format!("the jump table's CRC is {:08x}, not {sum:08x}", header.index_crc);
        return Err(input.damaged(header_at + 64, rule));
    }
    Ok(lens)
}

/// Where every sixteenth block starts; all of them must end before the jump table.
fn starts(
    input: &Input,
    header: &Header,
    header_at: u64,
    lens: &[u32],
) -> Result<Vec<u64>, LayerError> {
    // Others keep the positions within 64 KiB of content in 16 bits.
    let group = 65536 / header.block_size as usize;
    for (number, blocks) in (0u64..).zip(lens.chunks(group)) {
        let before: u64 = blocks[..blocks.len() - 1].iter().map(|len| u64::from(*len)).sum();
        if before >= 65535 {
            let at = header.index_offset + number * group as u64 * 4;
            return Err(
                input.damaged(at, format!("{before} bytes overflow a group of {group} blocks"))
            );
        }
    }
    let mut start = 512 + u64::from(header.dict_size);
    let mut starts = Vec::with_capacity(lens.len() / STRIDE + 1);
    for blocks in lens.chunks(STRIDE) {
        starts.push(start);
        start += blocks.iter().map(|len| u64::from(*len)).sum::<u64>();
    }
    if start > header.index_offset {
        let rule = format!("the blocks end at {start}, behind the start of the jump table");
        return Err(input.damaged(header_at + 40, rule));
    }
    Ok(starts)
}

impl BlockSource for ZFile {
    fn size(&self) -> ByteLen {
        ByteLen::new(self.header.content_size)
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let (mut at, mut out) = (at, out);
        while !out.is_empty() {
            let (block, from) = (at >> self.block_bits(), index(at & (self.block_bytes() - 1)));
            let (count, whole) =
                if from == 0 { self.whole_blocks(block, out.len()) } else { (0, 0) };
            let part = out.len().min(self.len_of(block) - from);
            let (head, tail) = out.split_at_mut(if count == 0 { part } else { whole });
            if count == 0 {
                self.read_part(block, from, head)?;
            } else if whole <= KEPT {
                self.read_blocks(block, count, head)?;
            } else {
                self.unpack_parallel(block, count, head)?;
                self.streams.note(block + count);
            }
            at += head.len() as u64;
            out = tail;
        }
        Ok(())
    }
}
