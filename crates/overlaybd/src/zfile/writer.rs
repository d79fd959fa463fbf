//! Writing a ZFile, compressed by as many threads as are allowed; their number never changes a byte.

use std::io::{self, Seek, SeekFrom, Write};

use super::codec::Codec;
use super::header::{Header, crc};
use super::pipeline::{self, Blocks, Packed, Pipeline};

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

/// Compressed bytes that are written at once.
const GATHERED: usize = 256 << 10;

/// Compresses what is written to it. [`finish`](ZFileWriter::finish) makes it a file; one that was
/// dropped before is not a ZFile.
#[derive(Debug)]
pub struct ZFileWriter<W: Write + Seek> {
    out: W,
    /// Where in `out` the file starts.
    base: u64,
    packing: Packing,
    /// Content that is not compressed yet: less than a block, or than a share if there are threads.
    pending: Vec<u8>,
    /// Compressed, but not written yet.
    packed: Packed,
    /// Started with the first whole share.
    pipeline: Option<Pipeline>,
    table: Vec<u8>,
    content_size: u64,
    /// Bytes of the file so far, its header included.
    written: u64,
}

impl<W: Write + Seek> ZFileWriter<W> {
    /// Starts a file at the current position.
    pub fn new(mut out: W, packing: Packing) -> io::Result<ZFileWriter<W>> {
        if !packing.block_size.is_power_of_two() || !(4096..=65536).contains(&packing.block_size) {
            let size = packing.block_size;
            let rule = format!("a block size of {size} is no power of two from 4096 to 65536");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, rule));
        }
        let base = out.stream_position()?;
        let mut writer = ZFileWriter {
            base,
            packing,
            pending: Vec::new(),
            packed: Packed::default(),
            pipeline: None,
            table: Vec::new(),
            content_size: 0,
            written: 512,
            out,
        };
        let empty = Header { index_offset: 0, content_size: 0, ..writer.header(true) };
        writer.out.write_all(&Header { complete: false, ..empty }.encode())?;
        Ok(writer)
    }

    fn blocks(&self) -> Blocks {
        Blocks {
            codec: self.packing.codec,
            size: self.packing.block_size as usize,
            checksums: self.packing.checksums,
        }
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

    /// Compresses whole blocks on this thread.
    fn pack(&mut self, content: &[u8]) -> io::Result<()> {
        let blocks = self.blocks();
        for content in content.chunks(pipeline::SHARE) {
            self.packed.add(blocks, content)?;
            self.content_size += content.len() as u64;
            if self.packed.bytes().len() >= GATHERED {
                self.write_packed()?;
            }
        }
        Ok(())
    }

    fn write_packed(&mut self) -> io::Result<()> {
        let packed = std::mem::take(&mut self.packed);
        self.write_blocks(&packed)?;
        self.packed = packed;
        self.packed.clear();
        Ok(())
    }

    fn write_blocks(&mut self, packed: &Packed) -> io::Result<()> {
        self.out.write_all(packed.bytes())?;
        self.written += packed.bytes().len() as u64;
        self.table.extend(packed.lens.iter().flat_map(|len| len.to_le_bytes()));
        Ok(())
    }

    /// Hands the pending share to the threads, and writes what they are done with if they have enough.
    fn hand_over(&mut self) -> io::Result<()> {
        let blocks = self.blocks();
        let pipeline = match &mut self.pipeline {
            Some(pipeline) => pipeline,
            None => self.pipeline.insert(Pipeline::start(self.packing.threads, blocks)?),
        };
        if pipeline.is_full() {
            self.collect()?;
        }
        self.content_size += self.pending.len() as u64;
        if let Some(pipeline) = &mut self.pipeline {
            pipeline.put(&mut self.pending);
        }
        Ok(())
    }

    /// Writes the next share that is compressed; `false` if there is none.
    fn collect(&mut self) -> io::Result<bool> {
        let Some(share) = self.pipeline.as_mut().and_then(Pipeline::take) else { return Ok(false) };
        let share = share?;
        self.write_blocks(&share.packed)?;
        if let Some(pipeline) = &mut self.pipeline {
            pipeline.reuse(share);
        }
        Ok(true)
    }

    /// Writes what is left, the jump table and the trailer; returns the output, positioned behind
    /// the file, and the file's length.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        while self.collect()? {}
        let pending = std::mem::take(&mut self.pending);
        self.pack(&pending)?;
        self.write_packed()?;
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

impl<W: Write + Seek> Write for ZFileWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let block = self.packing.block_size as usize;
        let is_parallel = self.packing.threads > 1;
        if !is_parallel && self.pending.is_empty() && bytes.len() >= block {
            let whole = bytes.len() / block * block;
            self.pack(&bytes[..whole])?;
            return Ok(whole);
        }
        let limit = if is_parallel { pipeline::SHARE } else { block };
        let take = bytes.len().min(limit - self.pending.len());
        self.pending.extend_from_slice(&bytes[..take]);
        if self.pending.len() == limit {
            if is_parallel {
                self.hand_over()?;
            } else {
                let pending = std::mem::take(&mut self.pending);
                self.pack(&pending)?;
                self.pending = pending;
                self.pending.clear();
            }
        }
        Ok(take)
    }

    /// Does nothing: what was written so far cannot be read before the end is known.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
