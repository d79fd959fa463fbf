//! Header and trailer of a ZFile (`docs/formats/overlaybd.md`): 512 bytes each, 96 of them used.
//!
//! | offset | size | field              | meaning                                              |
//! |-------:|-----:|--------------------|------------------------------------------------------|
//! |      0 |   24 | magic              | `ZFile\0\1\0tuji.yyf@Alibaba`                        |
//! |     24 |    4 | size               | 96                                                   |
//! |     28 |    4 | digest             | CRC of the 512 bytes with this field zero            |
//! |     32 |    8 | flags              | see below; unknown bits mean nothing                 |
//! |     40 |    8 | index_offset       | where the jump table is                              |
//! |     48 |    8 | index_size         | how many blocks, one `u32` each in the table         |
//! |     56 |    8 | original_file_size | bytes after decompression                            |
//! |     64 |    4 | index_crc          | CRC of the jump table                                |
//! |     72 |    4 | block_size         | bytes in a block before compression                  |
//! |     76 |    1 | algo               | 1 lz4, 2 zstd                                        |
//! |     84 |    4 | dict_size          | bytes between the header and the first block         |
//! |     88 |    1 | verify             | 1: a CRC follows each block                          |

use super::codec::Codec;
use crate::input::{u32_at, u64_at};

/// Size of a header and of a trailer.
pub(crate) const SIZE: usize = 512;
pub(crate) const MAGIC: &[u8; 24] = b"ZFile\x00\x01\x00tuji.yyf@Alibaba";
/// Where the CRC of a block starts its count.
pub(crate) const BLOCK_CRC_SEED: u32 = 100_007;

const IS_HEADER: u64 = 1;
const IS_DATA: u64 = 1 << 1;
const SEALED: u64 = 1 << 2;
/// What the trailer says is in the header as well.
const COMPLETE: u64 = 1 << 3;
/// The digests are there.
const DIGEST: u64 = 1 << 4;
const COMPRESSED_INDEX: u64 = 1 << 5;

/// What a header or trailer says, its rules checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) is_header: bool,
    /// A header that knows where the jump table is.
    pub(crate) complete: bool,
    pub(crate) has_digest: bool,
    pub(crate) index_offset: u64,
    pub(crate) blocks: u64,
    pub(crate) content_size: u64,
    pub(crate) index_crc: u32,
    pub(crate) block_size: u32,
    pub(crate) codec: Codec,
    pub(crate) dict_size: u32,
    pub(crate) checksums: bool,
}

/// A rule that is broken, and at which byte of the structure.
pub(crate) type Broken = (u64, String);

/// CRC-32C without its usual inversions, which is what ZFile calls a CRC.
pub(crate) fn crc(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

fn digest(bytes: &[u8; SIZE]) -> u32 {
    let state = crc(0, &bytes[..28]);
    crc(crc(state, &[0; 4]), &bytes[32..])
}

impl Header {
    pub(crate) fn parse(bytes: &[u8; SIZE]) -> Result<Header, Broken> {
        if bytes[..24] != *MAGIC {
            return Err((0, "it does not start with the magic of a ZFile".to_owned()));
        }
        let flags = u64_at(bytes, 32);
        let has_digest = flags & DIGEST != 0;
        if has_digest && digest(bytes) != u32_at(bytes, 28) {
            let (stored, found) = (u32_at(bytes, 28), digest(bytes));
            return Err((28, format!("the digest is {stored:08x}, its bytes give {found:08x}")));
        }
        let codec = match bytes[76] {
            1 => Codec::Lz4,
            2 => Codec::Zstd,
            other => {
                return Err((76, format!("compression {other} is neither 1 (lz4) nor 2 (zstd)")));
            }
        };
        let block_size = u32_at(bytes, 72);
        if !block_size.is_power_of_two() || block_size > 65536 {
            return Err((
                72,
                format!("a block size of {block_size} is no power of two up to 65536"),
            ));
        }
        // Images from before there were digests carry garbage in bits without a meaning.
        if has_digest && flags & COMPRESSED_INDEX != 0 {
            return Err((32, "a compressed jump table was never defined".to_owned()));
        }
        if flags & IS_DATA == 0 {
            return Err((32, "the flags say that it holds no data".to_owned()));
        }
        Ok(Header {
            is_header: flags & IS_HEADER != 0,
            complete: flags & COMPLETE != 0,
            has_digest,
            index_offset: u64_at(bytes, 40),
            blocks: u64_at(bytes, 48),
            content_size: u64_at(bytes, 56),
            index_crc: u32_at(bytes, 64),
            block_size,
            codec,
            dict_size: u32_at(bytes, 84),
            checksums: bytes[88] != 0,
        })
    }

    pub(crate) fn encode(&self) -> [u8; SIZE] {
        let mut bytes = [0u8; SIZE];
        let mut flags = IS_DATA;
        flags |= if self.is_header { IS_HEADER } else { SEALED };
        flags |= if self.complete { COMPLETE } else { 0 };
        flags |= if self.has_digest { DIGEST } else { 0 };
        bytes[..24].copy_from_slice(MAGIC);
        bytes[24..28].copy_from_slice(&96u32.to_le_bytes());
        bytes[32..40].copy_from_slice(&flags.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.index_offset.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.blocks.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.content_size.to_le_bytes());
        bytes[64..68].copy_from_slice(&self.index_crc.to_le_bytes());
        bytes[72..76].copy_from_slice(&self.block_size.to_le_bytes());
        bytes[76] = self.codec.number();
        bytes[84..88].copy_from_slice(&self.dict_size.to_le_bytes());
        bytes[88] = u8::from(self.checksums);
        if self.has_digest {
            let digest = digest(&bytes);
            bytes[28..32].copy_from_slice(&digest.to_le_bytes());
        }
        bytes
    }
}

/// Whether the flags of a trailer, already parsed as a [`Header`], are a trailer's.
pub(crate) fn is_sealed(bytes: &[u8; SIZE]) -> bool {
    u64_at(bytes, 32) & SEALED != 0
}
