//! Header and trailer of a layer (`docs/formats/overlaybd.md`): 4096 bytes each, 390 of them used.
//!
//! | offset | size | field         | meaning                                                     |
//! |-------:|-----:|---------------|-------------------------------------------------------------|
//! |      0 |   24 | magic         | `LSMT\0\1\2\0` and 16 fixed bytes                           |
//! |     24 |    4 | size          | 390                                                         |
//! |     28 |    4 | flags         | bit 0 header, 1 data, 2 sealed, 4 sparse; others mean nothing |
//! |     32 |    8 | index_offset  | where the index is, in bytes                                |
//! |     40 |    8 | index_size    | how many entries, padding counted                           |
//! |     48 |    8 | virtual_size  | bytes of the disk; 0 inherits it from the layer below       |
//! |     56 |   37 | uuid          | text and a NUL                                              |
//! |     93 |   37 | parent_uuid   | likewise                                                    |
//! |    132 |    2 | version       | 1, 1                                                        |
//! |    134 |  256 | user_tag      | anything                                                    |

use crate::Uuid;
use crate::input::{u32_at, u64_at};
use crate::uuid::TEXT_LEN;

/// Size of a header and of a trailer.
pub(crate) const HEADER_SIZE: u64 = 4096;
/// Size of a user's tag.
pub(crate) const TAG_LEN: usize = 256;
const MAGIC: [u8; 24] = [
    0x4c, 0x53, 0x4d, 0x54, 0x00, 0x01, 0x02, 0x00, 0x65, 0x7e, 0x63, 0xd2, 0x94, 0x44, 0x08, 0x4c,
    0xa2, 0xd2, 0xc8, 0xec, 0x4f, 0xcf, 0xae, 0x8a,
];
const IS_HEADER: u32 = 1;
const IS_DATA: u32 = 1 << 1;
const SEALED: u32 = 1 << 2;
const SPARSE: u32 = 1 << 4;

/// What a header or trailer describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The header of a layer that is complete; one sealed in place keeps the header it had.
    SealedHeader,
    /// The trailer of a layer.
    Trailer,
    /// The header of a log that is written.
    LogData,
    /// The header of a log's index.
    LogIndex,
    /// The header of a sparse upper.
    Sparse,
}

/// What a header or trailer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) flags: u32,
    pub(crate) index_offset: u64,
    pub(crate) index_size: u64,
    pub(crate) virtual_size: u64,
    /// `None` where the text is no UUID; others take such layers, so a reader must.
    pub(crate) uuid: Option<Uuid>,
    pub(crate) parent: Option<Uuid>,
    pub(crate) user_tag: [u8; TAG_LEN],
}

impl Header {
    pub(crate) fn new(kind: Kind, virtual_size: u64, uuid: Uuid, parent: Uuid) -> Header {
        let flags = match kind {
            Kind::SealedHeader => IS_HEADER | IS_DATA | SEALED,
            Kind::Trailer => IS_DATA | SEALED,
            Kind::LogData => IS_HEADER | IS_DATA,
            Kind::LogIndex => IS_HEADER,
            Kind::Sparse => IS_HEADER | IS_DATA | SPARSE,
        };
        Header {
            flags,
            index_offset: if kind == Kind::LogIndex { HEADER_SIZE } else { 0 },
            index_size: 0,
            virtual_size,
            uuid: Some(uuid),
            parent: Some(parent),
            user_tag: [0; TAG_LEN],
        }
    }

    /// Reads a structure whose magic must be there; everything else is for the caller to judge.
    pub(crate) fn parse(bytes: &[u8; 4096]) -> Result<Header, String> {
        if bytes[..24] != MAGIC {
            return Err("there is no magic of an LSMT file".to_owned());
        }
        let mut user_tag = [0; TAG_LEN];
        user_tag.copy_from_slice(&bytes[134..390]);
        Ok(Header {
            flags: u32_at(bytes, 28),
            index_offset: u64_at(bytes, 32),
            index_size: u64_at(bytes, 40),
            virtual_size: u64_at(bytes, 48),
            uuid: uuid_text(&bytes[56..93]),
            parent: uuid_text(&bytes[93..130]),
            user_tag,
        })
    }

    pub(crate) fn encode(&self) -> [u8; 4096] {
        let mut bytes = [0; 4096];
        bytes[..24].copy_from_slice(&MAGIC);
        bytes[24..28].copy_from_slice(&390u32.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.flags.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.index_offset.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.index_size.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.virtual_size.to_le_bytes());
        for (at, uuid) in [(56, self.uuid), (93, self.parent)] {
            let text = uuid.unwrap_or_default().to_string();
            bytes[at..at + TEXT_LEN].copy_from_slice(text.as_bytes());
        }
        bytes[132] = 1;
        bytes[133] = 1;
        bytes[134..390].copy_from_slice(&self.user_tag);
        bytes
    }

    pub(crate) fn is_header(&self) -> bool {
        self.flags & IS_HEADER != 0
    }

    pub(crate) fn is_data(&self) -> bool {
        self.flags & IS_DATA != 0
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.flags & SEALED != 0
    }

    pub(crate) fn is_sparse(&self) -> bool {
        self.flags & SPARSE != 0
    }
}

/// The UUID in a field of text; a field of NULs is none.
fn uuid_text(field: &[u8]) -> Option<Uuid> {
    if field[0] == 0 {
        return Some(Uuid::NIL);
    }
    std::str::from_utf8(&field[..TEXT_LEN]).ok()?.parse().ok()
}
