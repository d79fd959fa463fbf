//! Clusters that are compressed one by one.
//!
//! Whatever the input says, nothing but the cluster is ever written to, and a frame may ask for no more memory than
//! a few clusters.

use std::io;

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

use crate::Compression;

/// Deflate of other readers looks back no further.
const DEFLATE_WINDOW: usize = 4096;
/// Frames that look back over more than 8 MiB are refused: no cluster is larger than 2 MiB.
const ZSTD_WINDOW: u32 = 23;

/// Unpacks a cluster; `false` if the bytes are not one.
pub(crate) fn unpack(how: Compression, bytes: &[u8], cluster: &mut [u8]) -> bool {
    match how {
        Compression::Deflate => {
            let mut state = Decompress::new(false);
            let ended = state.decompress(bytes, cluster, FlushDecompress::Finish);
            // What follows in the last sector is not part of it.
            ended.is_ok() && state.total_out() == cluster.len() as u64
        }
        Compression::Zstd => unpack_zstd(bytes, cluster).unwrap_or(false),
    }
}

fn unpack_zstd(bytes: &[u8], cluster: &mut [u8]) -> io::Result<bool> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW))?;
    let mut input = InBuffer::around(bytes);
    let whole = cluster.len();
    let mut output = OutBuffer::around(cluster);
    while output.pos() < whole {
        let before = (input.pos(), output.pos());
        decoder.run(&mut input, &mut output)?;
        if before == (input.pos(), output.pos()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Packs clusters one after the other.
pub(crate) enum Packer {
    Deflate(Compress),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Packer {
    pub(crate) fn new(how: Compression) -> io::Result<Packer> {
        Ok(match how {
            Compression::Deflate => {
                Packer::Deflate(Compress::new(flate2::Compression::default(), false))
            }
            Compression::Zstd => Packer::Zstd(zstd::bulk::Compressor::new(3)?),
        })
    }

    /// Packs a cluster into `packed`, and returns how many bytes it takes; `None` where that would save nothing.
    pub(crate) fn pack(&mut self, cluster: &[u8], packed: &mut [u8]) -> Option<usize> {
        match self {
            Packer::Deflate(state) => {
                state.reset();
                let room = packed.len();
                let mut pieces = cluster.chunks(DEFLATE_WINDOW).peekable();
                while let Some(piece) = pieces.next() {
                    // A full flush makes the compressor forget what came before.
                    let flush = match pieces.peek() {
                        Some(_) => FlushCompress::Full,
                        None => FlushCompress::Finish,
                    };
                    let taken = state.total_in();
                    let out = usize::try_from(state.total_out()).unwrap_or(room);
                    let status = state.compress(piece, &mut packed[out..], flush).ok()?;
                    let all = state.total_in() - taken == piece.len() as u64;
                    let full = state.total_out() >= room as u64;
                    let ended = status == Status::StreamEnd;
                    if !all || full || (pieces.peek().is_none() && !ended) {
                        return None;
                    }
                }
                usize::try_from(state.total_out()).ok()
            }
            Packer::Zstd(state) => state.compress_to_buffer(cluster, packed).ok(),
        }
    }
}
