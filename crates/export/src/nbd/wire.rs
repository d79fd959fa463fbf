//! The numbers and layouts of `docs/formats/nbd.md`. All integers are big-endian.

use kiln_block::DeviceError;

/// First of the server's words: `NBDMAGIC`.
pub(crate) const GREETING: u64 = 0x4e42_444d_4147_4943;
/// Before every option: `IHAVEOPT`.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before every reply to an option.
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Handshake flags, the same bits in both directions.
pub(crate) const FIXED_NEWSTYLE: u16 = 1;
pub(crate) const NO_ZEROES: u16 = 2;

/// Options a client may send.
pub(crate) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
}

/// What a reply to an option says.
pub(crate) mod answer {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const UNSUPPORTED: u32 = (1 << 31) + 1;
    pub(crate) const POLICY: u32 = (1 << 31) + 2;
    pub(crate) const INVALID: u32 = (1 << 31) + 3;
    pub(crate) const TLS_REQUIRED: u32 = (1 << 31) + 5;
    pub(crate) const UNKNOWN: u32 = (1 << 31) + 6;
    pub(crate) const TOO_BIG: u32 = (1 << 31) + 9;
}

/// Kinds of information about an export.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what can be done with an export.
pub(crate) mod can {
    pub(crate) const HAS_FLAGS: u16 = 1;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const FLUSH: u16 = 1 << 2;
    pub(crate) const FUA: u16 = 1 << 3;
    pub(crate) const TRIM: u16 = 1 << 5;
    pub(crate) const WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const DF: u16 = 1 << 7;
    pub(crate) const MULTI_CONN: u16 = 1 << 8;
    pub(crate) const CACHE: u16 = 1 << 10;
    pub(crate) const FAST_ZERO: u16 = 1 << 11;
}

/// Flags of one command.
pub(crate) mod flag {
    pub(crate) const FUA: u16 = 1;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
}

/// The one metadata context there is, and the number clients know it by.
pub(crate) const ALLOCATION: &str = "base:allocation";
pub(crate) const ALLOCATION_ID: u32 = 1;
/// States of an extent in it.
pub(crate) const STATE_HOLE: u32 = 1;
pub(crate) const STATE_ZERO: u32 = 2;

/// The largest read and the largest payload of a write.
pub(crate) const LARGEST_PAYLOAD: u32 = 32 << 20;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Length of a request without its payload.
pub(crate) const REQUEST_LEN: usize = 28;
/// Length of a simple reply without its payload.
pub(crate) const SIMPLE_LEN: usize = 16;
/// Length of the head of a chunk of a structured reply.
pub(crate) const CHUNK_LEN: usize = 20;
/// Length of the head of a chunk of data: the chunk's own, and where the data is from.
pub(crate) const DATA_CHUNK_LEN: usize = CHUNK_LEN + 8;
/// Length of a whole chunk that says "hole".
pub(crate) const HOLE_CHUNK_LEN: usize = CHUNK_LEN + 12;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
    /// Nothing known; it has no payload then.
    Unknown(u16),
}

/// One request, without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: Command,
    /// The client's own number for the request, given back with the reply.
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Request {
    /// Reads the head of a request; `None` when it does not start with the magic number, after which
    /// nothing in the stream can be trusted.
    pub(crate) fn parse(bytes: &[u8; REQUEST_LEN]) -> Option<Request> {
        let mut rest = Fields(bytes);
        if rest.u32()? != REQUEST_MAGIC {
            return None;
        }
        let flags = rest.u16()?;
        let command = match rest.u16()? {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            other => Command::Unknown(other),
        };
        Some(Request { flags, command, cookie: rest.u64()?, offset: rest.u64()?, len: rest.u32()? })
    }

    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// What goes wrong, in the protocol's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Errno {
    NotPermitted = 1,
    Io = 5,
    NoMemory = 12,
    Invalid = 22,
    NoSpace = 28,
    Overflow = 75,
    NotSupported = 95,
}

impl From<&DeviceError> for Errno {
    fn from(error: &DeviceError) -> Errno {
        match error {
            DeviceError::OutOfRange { .. } => Errno::Invalid,
            DeviceError::ReadOnly => Errno::NotPermitted,
            DeviceError::NoSpace { .. } => Errno::NoSpace,
            DeviceError::Damaged { .. } | DeviceError::Poisoned => Errno::Io,
            DeviceError::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::OutOfMemory => Errno::NoMemory,
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    Errno::NoSpace
                }
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    Errno::NotPermitted
                }
                _ => Errno::Io,
            },
        }
    }
}

/// Fields of a message, from the front; `None` once it is too short.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A 32-bit length and that many bytes of UTF-8.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.u32()?).ok()?;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
}

/// Writes a simple reply's head over the front of `target`.
pub(crate) fn put_simple(target: &mut [u8], error: Option<Errno>, cookie: u64) {
    let code = error.map_or(0, |errno| errno as u32);
    target[0..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
    target[4..8].copy_from_slice(&code.to_be_bytes());
    target[8..16].copy_from_slice(&cookie.to_be_bytes());
}

/// Kinds of chunk in a structured reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Chunk {
    Nothing = 0,
    Data = 1,
    Hole = 2,
    BlockStatus = 5,
    Error = 32769,
}

/// Writes the head of a chunk over the front of `target`; `len` counts what follows the head.
pub(crate) fn put_chunk(target: &mut [u8], kind: Chunk, last: bool, cookie: u64, len: u32) {
    target[0..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    target[4..6].copy_from_slice(&u16::from(last).to_be_bytes());
    target[6..8].copy_from_slice(&(kind as u16).to_be_bytes());
    target[8..16].copy_from_slice(&cookie.to_be_bytes());
    target[16..20].copy_from_slice(&len.to_be_bytes());
}

/// Writes the head of a chunk of `len` bytes of data over the front of `target`.
pub(crate) fn put_data(target: &mut [u8], last: bool, cookie: u64, offset: u64, len: u32) {
    put_chunk(target, Chunk::Data, last, cookie, len + 8);
    target[20..28].copy_from_slice(&offset.to_be_bytes());
}

/// Writes a chunk that says that `len` bytes are zeros over the front of `target`.
pub(crate) fn put_hole(target: &mut [u8], last: bool, cookie: u64, offset: u64, len: u32) {
    put_chunk(target, Chunk::Hole, last, cookie, 12);
    target[20..28].copy_from_slice(&offset.to_be_bytes());
    target[28..32].copy_from_slice(&len.to_be_bytes());
}

/// A structured reply that is an error with a sentence about it.
pub(crate) fn error_chunk(errno: Errno, cookie: u64, sentence: &str) -> Vec<u8> {
    // Well below the protocol's limit for strings; a person reads it.
    let sentence = &sentence[..sentence.floor_char_boundary(1000)];
    let said = u16::try_from(sentence.len()).unwrap_or(0);
    let mut bytes = vec![0; CHUNK_LEN];
    put_chunk(&mut bytes, Chunk::Error, true, cookie, 6 + u32::from(said));
    bytes.extend((errno as u32).to_be_bytes());
    bytes.extend(said.to_be_bytes());
    bytes.extend(sentence.as_bytes());
    bytes
}
