//! The two compressions, through the libraries whose output other tools produce too.

use std::cell::RefCell;
use std::io;

use zstd::bulk::{Compressor, Decompressor};

/// How blocks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// A raw lz4 block at the default level.
    Lz4,
    /// A zstd frame at level 3.
    Zstd,
}

/// The one level at which all tools compress; the header's field for it is unused.
const ZSTD_LEVEL: i32 = 3;

thread_local! {
    // A context is worth keeping: making one costs more than a block does.
    static PACK: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static UNPACK: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

impl Codec {
    pub(crate) fn number(self) -> u8 {
        match self {
            Codec::Lz4 => 1,
            Codec::Zstd => 2,
        }
    }

    /// The most bytes a block of `len` can grow to.
    pub(crate) fn bound(self, len: usize) -> usize {
        match self {
            Codec::Lz4 => len + len / 255 + 16,
            Codec::Zstd => zstd::zstd_safe::compress_bound(len),
        }
    }

    /// Compresses one block into `out`, which holds [`bound`](Codec::bound) bytes or more.
    pub(crate) fn compress(self, block: &[u8], out: &mut [u8]) -> io::Result<usize> {
        match self {
            Codec::Lz4 => lz4::block::compress_to_buffer(block, None, false, out),
            Codec::Zstd => PACK.with_borrow_mut(|slot| {
                if slot.is_none() {
                    *slot = Some(Compressor::new(ZSTD_LEVEL)?);
                }
                let Some(context) = slot else { return Err(io::ErrorKind::OutOfMemory.into()) };
                context.compress_to_buffer(block, out)
            }),
        }
    }

    /// Decompresses one block, which must fill `out` exactly.
    pub(crate) fn decompress(self, packed: &[u8], out: &mut [u8]) -> Result<(), String> {
        let wanted = out.len();
        let filled = match self {
            Codec::Lz4 => {
                let size = i32::try_from(wanted).map_err(|error| error.to_string())?;
                lz4::block::decompress_to_buffer(packed, Some(size), out)
                    .map_err(|_| "its lz4 data is malformed".to_owned())?
            }
            Codec::Zstd => UNPACK
                .with_borrow_mut(|slot| {
                    if slot.is_none() {
                        *slot = Some(Decompressor::new()?);
                    }
                    let Some(context) = slot else { return Err(io::ErrorKind::OutOfMemory.into()) };
                    context.decompress_to_buffer(packed, out)
                })
                .map_err(|error| format!("its zstd data is malformed: {error}"))?,
        };
        if filled == wanted {
            Ok(())
        } else {
            Err(format!("it unpacks to {filled} bytes, not to {wanted}"))
        }
    }
}
