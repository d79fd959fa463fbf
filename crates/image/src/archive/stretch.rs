//! [`Stretch`]: bytes in a row of an open file, which is noticed to be another.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::inventory::{HostFile, Stamp};
use crate::kernel::Compression;

/// The most that an archive may unpack to.
const LARGEST: u64 = 256 << 30;
/// Where the magic of a tar header is, and what both dialects of it begin with.
const TAR_MAGIC: (u64, &[u8; 5]) = (257, b"ustar");
/// How much memory an xz stream may ask for.
const XZ_MEMORY: u64 = 512 << 20;

/// Bytes in a row of an open file: an archive, or one that lies in another.
#[derive(Clone, Debug)]
pub struct Stretch {
    /// For messages.
    path: PathBuf,
    file: Arc<File>,
    start: u64,
    len: u64,
    /// What the file was when it was opened; none for one that nobody else can reach.
    stamp: Option<Stamp>,
}

/// An archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The host could not be asked.
    #[error("cannot {act} {path}", path = path.display())]
    Host {
        /// `open`, `read`, `unpack`.
        act: &'static str,
        /// What.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is no longer what it was.
    #[error("{path} changed since it was opened: begin again", path = path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// It breaks a rule of its format.
    #[error("{path}: {why}", path = path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong, and where.
        why: String,
    },
    /// A container image by that name is not in it.
    #[error("{path} holds {} images{}; name one of them", there.len(), list(there), path = path.display())]
    WhichImage {
        /// What was looked into.
        path: PathBuf,
        /// The names of those that are there.
        there: Vec<String>,
    },
}

fn list(there: &[String]) -> String {
    let names: Vec<&str> = there.iter().map(String::as_str).take(8).collect();
    if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) }
}

impl Stretch {
    /// All of a regular file.
    pub fn open(path: &Path) -> Result<Stretch, ArchiveError> {
        let failed = |source| ArchiveError::Host { act: "open", path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(failed(io::Error::other("not a regular file")));
        }
        let (len, stamp) = (meta.len(), Some(Stamp::of(&meta)));
        Ok(Stretch { path: path.to_owned(), file: Arc::new(file), start: 0, len, stamp })
    }

    /// How many bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Which file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A part of it. None if it does not have that much.
    pub fn part(&self, at: u64, len: u64) -> Option<Stretch> {
        at.checked_add(len).filter(|end| *end <= self.len)?;
        Some(Stretch { start: self.start + at, len, ..self.clone() })
    }

    /// Where it begins in which file, as others find that; none if they cannot.
    pub(crate) fn place(&self) -> Option<(Arc<HostFile>, u64)> {
        let stamp = self.stamp?;
        // Whoever opens it follows no links.
        let path = std::fs::canonicalize(&self.path).ok()?;
        Some((Arc::new(HostFile { path, stamp }), self.start))
    }

    /// What tells it from others while its file stays as it is; none if others cannot find that.
    pub(crate) fn feed(&self, digest: &mut blake3::Hasher) -> Option<()> {
        self.stamp?.feed(digest);
        digest.update(&self.start.to_le_bytes());
        digest.update(&self.len.to_le_bytes());
        Some(())
    }

    /// How long ago its file last changed.
    pub(crate) fn age(&self) -> Option<std::time::Duration> {
        Some(self.stamp?.age(std::time::SystemTime::now()))
    }

    /// Fills a buffer, and makes sure that the file is still the same.
    pub fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        let changed = || ArchiveError::Changed { path: self.path.clone() };
        at.checked_add(buffer.len() as u64).filter(|end| *end <= self.len).ok_or_else(changed)?;
        self.file.read_exact_at(buffer, self.start + at).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => changed(),
            _ => self.failed("read")(error),
        })?;
        self.check()
    }

    /// Fails if the file is not what it was when it was opened.
    pub fn check(&self) -> Result<(), ArchiveError> {
        let Some(stamp) = &self.stamp else { return Ok(()) };
        let meta = self.file.metadata().map_err(self.failed("read"))?;
        if Stamp::of(&meta).same_content(stamp) {
            return Ok(());
        }
        Err(ArchiveError::Changed { path: self.path.clone() })
    }

    /// All of it, if that is not more than `most`.
    pub(crate) fn bytes(&self, most: u64) -> Result<Vec<u8>, ArchiveError> {
        if self.len > most {
            let why = format!("{} bytes where at most {most} make sense", self.len);
            return Err(self.malformed(why));
        }
        let mut bytes = vec![0; usize::try_from(self.len).unwrap_or(0)];
        self.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads it from the start.
    pub fn reader(&self) -> StretchReader<'_> {
        StretchReader { stretch: self, at: 0 }
    }

    /// Whether it is compressed.
    pub fn is_packed(&self) -> Result<bool, ArchiveError> {
        Ok(self.compression()? != Compression::None)
    }

    /// Whether it starts as a tar archive does.
    pub fn is_tar(&self) -> Result<bool, ArchiveError> {
        let (at, magic) = TAR_MAGIC;
        let mut found = [0; 5];
        if self.len < at + 5 {
            return Ok(false);
        }
        self.read(at, &mut found)?;
        Ok(&found == magic)
    }

    fn compression(&self) -> Result<Compression, ArchiveError> {
        let mut start = [0; 8];
        let count = usize::try_from(self.len.min(8)).unwrap_or(8);
        self.read(0, &mut start[..count])?;
        Ok(Compression::of(&start[..count]))
    }

    /// The same bytes plain: itself if it is not compressed, else a file without a name, in the folder for temporary
    /// files (`TMPDIR`, else `/var/tmp`, which is rarely memory).
    pub fn unpacked(&self) -> Result<Stretch, ArchiveError> {
        if !self.is_packed()? {
            return Ok(self.clone());
        }
        let folder = std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into());
        let mut file = tempfile::tempfile_in(folder).map_err(self.failed("unpack"))?;
        let len = self.unpack_into(&mut file)?;
        Ok(Stretch { path: self.path.clone(), file: Arc::new(file), start: 0, len, stamp: None })
    }

    /// Writes the same bytes plain to a file, and says how many there were.
    pub(crate) fn unpack_into(&self, out: &mut File) -> Result<u64, ArchiveError> {
        let source: Box<dyn Read + '_> = match self.compression()? {
            // Layers are often made of several streams, so that they can be read from the middle.
            Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(self.reader())),
            Compression::Zstd => Box::new(
                zstd::stream::read::Decoder::new(self.reader()).map_err(self.failed("unpack"))?,
            ),
            Compression::Xz => {
                let concatenated = liblzma::stream::CONCATENATED;
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, concatenated);
                let stream = stream.map_err(|error| self.failed("unpack")(error.into()))?;
                Box::new(liblzma::read::XzDecoder::new_stream(self.reader(), stream))
            }
            other => other.reader(self.reader()).map_err(self.failed("unpack"))?,
        };
        let len = io::copy(&mut source.take(LARGEST + 1), out).map_err(self.failed("unpack"))?;
        if len > LARGEST {
            return Err(self.malformed("it unpacks to more than 256 GiB".to_owned()));
        }
        self.check()?;
        Ok(len)
    }

    pub(crate) fn failed(&self, act: &'static str) -> impl FnOnce(io::Error) -> ArchiveError {
        let path = self.path.clone();
        move |source| ArchiveError::Host { act, path, source }
    }

    pub(crate) fn malformed(&self, why: String) -> ArchiveError {
        ArchiveError::Malformed { path: self.path.clone(), why }
    }
}

/// Reads a [`Stretch`] from its start to its end.
#[derive(Debug)]
pub struct StretchReader<'s> {
    stretch: &'s Stretch,
    at: u64,
}

impl Read for StretchReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.stretch.len - self.at).unwrap_or(usize::MAX);
        let most = left.min(buffer.len());
        let count = self.stretch.file.read_at(&mut buffer[..most], self.stretch.start + self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl io::Seek for StretchReader<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let at = match to {
            io::SeekFrom::Start(at) => Some(at),
            io::SeekFrom::End(by) => self.stretch.len.checked_add_signed(by),
            io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        let at = at.filter(|at| *at <= self.stretch.len);
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Ok(self.at)
    }
}
