//! Decompression of what kernels and packages are made of, told apart by magic number, never by
//! file name, and always with a bound on the output.

use std::fmt;
use std::io::{self, Read};

use super::lz4;

/// What the first bytes of a file say it is compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all, or with something unknown.
    None,
    /// gzip.
    Gzip,
    /// xz.
    Xz,
    /// The older container of the same algorithm.
    Lzma,
    /// Zstandard.
    Zstd,
    /// LZ4's legacy frame, which kernels use.
    Lz4,
    /// bzip2, recognised but not read.
    Bzip2,
    /// LZO, recognised but not read.
    Lzo,
}

/// How much memory an xz stream may ask for. Kernels are packed with dictionaries of 128 MiB.
const XZ_MEMORY: u64 = 512 << 20;

impl Compression {
    /// Looks at the first bytes.
    pub fn of(start: &[u8]) -> Compression {
        match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
            [0x5d, 0, 0, _, _, ..] => Compression::Lzma,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            [0x02, 0x21, 0x4c, 0x18, ..] => Compression::Lz4,
            [b'B', b'Z', b'h', ..] => Compression::Bzip2,
            [0x89, b'L', b'Z', b'O', ..] => Compression::Lzo,
            _ => Compression::None,
        }
    }

    /// A reader of the plain bytes. Reads one stream (or frame) and ignores what follows it: kernel
    /// images append the plain size.
    pub fn reader<'a>(self, from: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Compression::None => Box::new(from),
            Compression::Gzip => Box::new(flate2::read::GzDecoder::new(from)),
            Compression::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0)?;
                Box::new(liblzma::read::XzDecoder::new_stream(from, stream))
            }
            Compression::Lzma => {
                let stream = liblzma::stream::Stream::new_lzma_decoder(XZ_MEMORY)?;
                Box::new(liblzma::read::XzDecoder::new_stream(from, stream))
            }
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(from)?.single_frame()),
            Compression::Lz4 => Box::new(lz4::LegacyReader::new(from)),
            Compression::Bzip2 | Compression::Lzo => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("{self} is not supported"),
                ));
            }
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::None => "no compression",
            Compression::Gzip => "gzip",
            Compression::Xz => "xz",
            Compression::Lzma => "lzma",
            Compression::Zstd => "zstd",
            Compression::Lz4 => "lz4",
            Compression::Bzip2 => "bzip2",
            Compression::Lzo => "lzo",
        })
    }
}

/// All plain bytes of `packed`. Fails when there are more than `limit`.
pub fn decompress(packed: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    read_bounded(Compression::of(packed).reader(packed)?, limit)
}

/// All bytes of `from`. Fails when there are more than `limit`.
pub(crate) fn read_bounded(from: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    let read = from.take(limit.saturating_add(1)).read_to_end(&mut plain)?;
    if u64::try_from(read).map_or(true, |read| read > limit) {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it unpacks to more than {limit} bytes"),
        ));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn packed(plain: &[u8]) -> Vec<(Compression, Vec<u8>)> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(plain).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(plain).unwrap();
        let options = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
        let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
        let mut lzma = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        lzma.write_all(plain).unwrap();
        vec![
            (Compression::None, plain.to_vec()),
            (Compression::Gzip, gzip.finish().unwrap()),
            (Compression::Xz, xz.finish().unwrap()),
            (Compression::Lzma, lzma.finish().unwrap()),
            (Compression::Zstd, zstd::encode_all(plain, 1).unwrap()),
            (Compression::Lz4, lz4::tests::pack_literally(plain)),
        ]
    }

    #[test]
    fn every_format_unpacks_to_what_was_packed_and_ignores_an_appended_size() {
        let plain = b"\x7fELF and so on, and so on, and so on".repeat(300);
        for (format, mut bytes) in packed(&plain) {
            assert_eq!(Compression::of(&bytes), format);
            if format != Compression::None {
                bytes.extend(u32::try_from(plain.len()).unwrap().to_le_bytes());
            }
            assert!(decompress(&bytes, 1 << 20).unwrap() == plain, "{format}");
        }
    }

    #[test]
    fn a_bomb_stops_at_the_bound() {
        let plain = vec![0; 1 << 20];
        for (format, bytes) in packed(&plain) {
            let error = decompress(&bytes, 1000).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{format}");
        }
    }

    #[test]
    fn a_truncated_stream_is_an_error() {
        for (format, bytes) in packed(b"some text that is long enough to be cut in the middle") {
            if format != Compression::None {
                assert!(decompress(&bytes[..bytes.len() / 2], 1 << 20).is_err(), "{format}");
            }
        }
    }
}
