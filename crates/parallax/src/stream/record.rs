//! The parts of a stream, version 1 (`docs/formats/disk-stream.md`).
//!
//! | offset | size | field of the header |
//! |-------:|-----:|---------------------|
//! | 0 | 8 | `89 4b 44 53 0d 0a 1a 0a` |
//! | 8 | 4 | version |
//! | 12 | 4 | flags, bit 0: incremental |
//! | 16 | 16 | id of the stream |
//! | 32 | 16 | uuid of the pool it was made in |
//! | 48 | 16 | identity of the snapshot |
//! | 64 | 16 | identity of the base, or zeros |
//! | 80 | 8 | bytes of the disk |
//! | 88 | 8 | where on the disk it starts |
//! | 96 | 3 × 132 | names of disk, snapshot and base: length, 2 bytes, 2 of zeros, 128 for the text |
//! | 492 | 16 | zeros |
//! | 508 | 4 | checksum of the rest |
//!
//! | offset | size | field of a record |
//! |-------:|-----:|-------------------|
//! | 0 | 4 | `KDSr` |
//! | 4 | 2 | 1 data, 2 zeros, 3 the end |
//! | 6 | 2 | 0 plain, 1 zstd |
//! | 8 | 8 | where on the disk |
//! | 16 | 8 | bytes of the disk |
//! | 24 | 4 | bytes that follow |
//! | 28 | 4 | checksum of those bytes |
//! | 32 | 4 | checksum of the four bytes of the one before (the header's, at first) and of this record up to here |
//!
//! Checksums are CRC-32C.

use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

use crc_fast::crc32_iscsi;

use crate::format::{BLOCK_LEN, same};
use crate::stream::StreamError;
use crate::stream::identity::{Identity, first_16};

pub(crate) const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"\x89KDS\r\n\x1a\n";
const RECORD_MAGIC: [u8; 4] = *b"KDSr";
const INCREMENTAL: u32 = 1;
/// Bytes of the header.
pub(crate) const HEADER_LEN: usize = 512;
const RECORD_LEN: usize = 36;
const MAX_NAME: usize = 128;
/// Bytes of the disk in one record of data, at most.
pub(crate) const MAX_DATA: u64 = 1 << 20;
/// Bytes of the whole's checksum.
const SUM_LEN: usize = 32;

/// What a stream says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) pool: [u8; 16],
    pub(crate) snapshot: Identity,
    /// Identity of the base.
    pub(crate) base: Option<Identity>,
    pub(crate) size: u64,
    pub(crate) position: u64,
    pub(crate) disk_name: String,
    pub(crate) snapshot_name: String,
    pub(crate) base_name: String,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut found = [0; N];
    found.copy_from_slice(&bytes[at..at + N]);
    found
}

fn header_sum(bytes: &[u8; HEADER_LEN]) -> u32 {
    crc32_iscsi(&bytes[..HEADER_LEN - 4])
}

impl Header {
    /// The same for each part of a stream that was sent in several, and for nothing else.
    pub(crate) fn id(&self) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_derive_key("kiln disk-stream 1 stream");
        hasher.update(&self.pool);
        hasher.update(&self.snapshot);
        hasher.update(&self.base.unwrap_or_default());
        hasher.update(&self.size.to_le_bytes());
        first_16(&hasher)
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &u32::from(self.base.is_some()).to_le_bytes());
        put(16, &self.id());
        put(32, &self.pool);
        put(48, &self.snapshot);
        put(64, &self.base.unwrap_or_default());
        put(80, &self.size.to_le_bytes());
        put(88, &self.position.to_le_bytes());
        for (place, name) in
            [&self.disk_name, &self.snapshot_name, &self.base_name].into_iter().enumerate()
        {
            let name = &name.as_bytes()[..name.len().min(MAX_NAME)];
            let at = 96 + place * 132;
            put(at, &u16::try_from(name.len()).unwrap_or(0).to_le_bytes());
            put(at + 4, name);
        }
        let sum = header_sum(&bytes);
        bytes[HEADER_LEN - 4..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header, StreamError> {
        if bytes[..8] != MAGIC {
            return Err(StreamError::NotAStream);
        }
        if header_sum(bytes) != u32::from_le_bytes(array(bytes, HEADER_LEN - 4)) {
            return Err(StreamError::damaged(0, "a header with a wrong checksum"));
        }
        let version = u32::from_le_bytes(array(bytes, 8));
        if version != VERSION {
            return Err(StreamError::TooNew { version });
        }
        let flags = u32::from_le_bytes(array(bytes, 12));
        if flags & !INCREMENTAL != 0 {
            return Err(StreamError::UnknownFeatures { flags });
        }
        let name = |place: usize| {
            let at = 96 + place * 132;
            let len = usize::from(u16::from_le_bytes(array(bytes, at)));
            let text = bytes.get(at + 4..at + 4 + len).filter(|_| len <= MAX_NAME);
            let text = text.and_then(|text| std::str::from_utf8(text).ok());
            text.map(str::to_owned)
                .ok_or_else(|| StreamError::damaged(0, "a header with a name that is no text"))
        };
        let incremental = flags & INCREMENTAL != 0;
        let header = Header {
            pool: array(bytes, 32),
            snapshot: array(bytes, 48),
            base: incremental.then(|| array(bytes, 64)),
            size: u64::from_le_bytes(array(bytes, 80)),
            position: u64::from_le_bytes(array(bytes, 88)),
            disk_name: name(0)?,
            snapshot_name: name(1)?,
            base_name: name(2)?,
        };
        let sound = header.id() == array::<16>(bytes, 16)
            && header.snapshot != [0; 16]
            && header.size <= crate::MAX_DISK.get()
            && header.size.is_multiple_of(BLOCK_LEN)
            && header.position <= header.size
            && header.position.is_multiple_of(BLOCK_LEN);
        if sound {
            Ok(header)
        } else {
            Err(StreamError::damaged(0, "a header with impossible numbers"))
        }
    }
}

/// Gives a header the id and the checksum it must have.
#[cfg(feature = "fuzzing")]
pub(crate) fn make_right(bytes: &mut [u8; HEADER_LEN]) {
    bytes[..8].copy_from_slice(&MAGIC);
    let fix = |bytes: &mut [u8; HEADER_LEN]| {
        let sum = header_sum(bytes);
        bytes[HEADER_LEN - 4..].copy_from_slice(&sum.to_le_bytes());
    };
    fix(bytes);
    let header = Header {
        pool: array(bytes, 32),
        snapshot: array(bytes, 48),
        base: (bytes[12] & 1 != 0).then(|| array(bytes, 64)),
        size: u64::from_le_bytes(array(bytes, 80)),
        position: 0,
        disk_name: String::new(),
        snapshot_name: String::new(),
        base_name: String::new(),
    };
    bytes[16..32].copy_from_slice(&header.id());
    fix(bytes);
}

/// What a receiver has of a stream: which one, and up to where on the disk. As text, what a person carries from
/// the receiver to the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    pub(crate) id: [u8; 16],
    pub(crate) position: u64,
}

impl Token {
    /// Bytes of the disk that are behind.
    pub fn position(&self) -> u64 {
        self.position
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}-{:x}", u128::from_be_bytes(self.id), self.position)
    }
}

/// A text that no receiver gave.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a token; a receiver that was cut off prints one")]
pub struct ParseTokenError {
    text: String,
}

impl FromStr for Token {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Token, ParseTokenError> {
        let wrong = || ParseTokenError { text: text.chars().take(64).collect() };
        let (id, position) = text.trim().split_once('-').ok_or_else(wrong)?;
        let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if id.len() != 32 || !hex(id) || !hex(position) {
            return Err(wrong());
        }
        let id = u128::from_str_radix(id, 16).map_err(|_| wrong())?.to_be_bytes();
        let position = u64::from_str_radix(position, 16).map_err(|_| wrong())?;
        if !position.is_multiple_of(BLOCK_LEN) {
            return Err(wrong());
        }
        Ok(Token { id, position })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Data,
    Zeros,
    End,
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    pub(crate) packed: bool,
    pub(crate) at: u64,
    pub(crate) len: u64,
}

/// The checksum of a record, which depends on all before it.
fn follow(before: u32, record: &[u8; RECORD_LEN]) -> u32 {
    let mut bytes = [0; 36];
    bytes[..4].copy_from_slice(&before.to_le_bytes());
    bytes[4..].copy_from_slice(&record[..32]);
    crc32_iscsi(&bytes)
}

/// The end of a stream that is being written.
pub(crate) struct Writer<'a> {
    out: &'a mut dyn Write,
    hasher: blake3::Hasher,
    chain: u32,
    bytes: u64,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(out: &'a mut dyn Write, header: &Header) -> Result<Writer<'a>, StreamError> {
        let mut writer = Writer { out, hasher: blake3::Hasher::new(), chain: 0, bytes: 0 };
        let bytes = header.encode();
        writer.chain = header_sum(&bytes);
        writer.put(&bytes)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.out.write_all(bytes).map_err(StreamError::Write)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn record(&mut self, record: Record, payload: &[u8]) -> Result<(), StreamError> {
        let mut bytes = [0; RECORD_LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let kind: u16 = match record.kind {
            Kind::Data => 1,
            Kind::Zeros => 2,
            Kind::End => 3,
        };
        put(0, &RECORD_MAGIC);
        put(4, &kind.to_le_bytes());
        put(6, &u16::from(record.packed).to_le_bytes());
        put(8, &record.at.to_le_bytes());
        put(16, &record.len.to_le_bytes());
        put(24, &u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        put(28, &crc32_iscsi(payload).to_le_bytes());
        self.chain = follow(self.chain, &bytes);
        bytes[32..].copy_from_slice(&self.chain.to_le_bytes());
        self.put(&bytes)?;
        self.put(payload)
    }

    /// Says that it is complete.
    pub(crate) fn end(mut self, size: u64) -> Result<u64, StreamError> {
        let sum = self.hasher.finalize();
        self.record(Record { kind: Kind::End, packed: false, at: size, len: 0 }, sum.as_bytes())?;
        self.out.flush().map_err(StreamError::Write)?;
        Ok(self.bytes)
    }
}

/// The other end.
pub(crate) struct Reader<'a> {
    input: &'a mut dyn Read,
    hasher: blake3::Hasher,
    chain: u32,
    bytes: u64,
    size: u64,
    /// The end of the last record.
    behind: u64,
    payload: Vec<u8>,
    unpacked: Vec<u8>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(input: &'a mut dyn Read) -> Result<(Reader<'a>, Header), StreamError> {
        let mut reader = Reader {
            input,
            hasher: blake3::Hasher::new(),
            chain: 0,
            bytes: 0,
            size: 0,
            behind: 0,
            payload: Vec::new(),
            unpacked: Vec::new(),
        };
        let mut bytes = [0; HEADER_LEN];
        reader.fill(&mut bytes)?;
        let header = Header::decode(&bytes)?;
        reader.hasher.update(&bytes);
        reader.chain = header_sum(&bytes);
        reader.size = header.size;
        reader.behind = header.position;
        Ok((reader, header))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), StreamError> {
        let mut done = 0;
        while done < buffer.len() {
            match self.input.read(&mut buffer[done..]) {
                Ok(0) => return Err(StreamError::Ended { at: self.bytes }),
                Ok(count) => {
                    done += count;
                    self.bytes += count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(StreamError::Read(error)),
            }
        }
        Ok(())
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next record, and the bytes of the disk in it, which are checked. The record of the end is the last.
    pub(crate) fn next(&mut self) -> Result<(Record, &[u8]), StreamError> {
        let start = self.bytes;
        let whole = *self.hasher.finalize().as_bytes();
        let mut bytes = [0; RECORD_LEN];
        self.fill(&mut bytes)?;
        self.chain = follow(self.chain, &bytes);
        let chain = u32::from_le_bytes(array(&bytes, 32));
        if bytes[..4] != RECORD_MAGIC || !same(self.chain, chain) {
            return Err(StreamError::damaged(start, "no record, or one with a wrong checksum"));
        }
        let impossible = || StreamError::damaged(start, "a record that cannot be");
        let kind = match u16::from_le_bytes(array(&bytes, 4)) {
            1 => Kind::Data,
            2 => Kind::Zeros,
            3 => Kind::End,
            _ => return Err(impossible()),
        };
        let packed = match u16::from_le_bytes(array(&bytes, 6)) {
            0 => false,
            1 => true,
            _ => return Err(impossible()),
        };
        let (at, len) =
            (u64::from_le_bytes(array(&bytes, 8)), u64::from_le_bytes(array(&bytes, 16)));
        let payload_len = u32::from_le_bytes(array(&bytes, 24));
        let end = at.checked_add(len).ok_or_else(impossible)?;
        let aligned = at.is_multiple_of(BLOCK_LEN) && len.is_multiple_of(BLOCK_LEN);
        let payload_fits = match kind {
            Kind::Data if packed => len > 0 && u64::from(payload_len) < len && len <= MAX_DATA,
            Kind::Data => len > 0 && u64::from(payload_len) == len && len <= MAX_DATA,
            Kind::Zeros => len > 0 && payload_len == 0 && !packed,
            Kind::End => at == self.size && len == 0 && payload_len as usize == SUM_LEN && !packed,
        };
        if !aligned || at < self.behind || end > self.size || !payload_fits {
            return Err(impossible());
        }
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(payload_len as usize, 0);
        let filled = self.fill(&mut payload);
        self.payload = payload;
        filled?;
        if !same(crc32_iscsi(&self.payload), u32::from_le_bytes(array(&bytes, 28))) {
            return Err(StreamError::damaged(start, "a record whose bytes have a wrong checksum"));
        }
        self.hasher.update(&bytes);
        self.hasher.update(&self.payload);
        self.behind = end;
        let record = Record { kind, packed, at, len };
        if kind == Kind::End && self.payload != whole && !cfg!(feature = "fuzzing") {
            return Err(StreamError::WrongSum);
        }
        if !packed {
            return Ok((record, &self.payload));
        }
        self.unpacked.resize(usize::try_from(len).unwrap_or(0), 0);
        match zstd::bulk::decompress_to_buffer(&self.payload, &mut self.unpacked) {
            Ok(count) if count as u64 == len => Ok((record, &self.unpacked)),
            _ => Err(StreamError::damaged(start, "a record that does not unpack to its length")),
        }
    }
}
