//! An upper: the one layer of an image that is written.
//!
//! Two kinds, as on disk: a *log* appends what is written to a data file and says where in an index
//! file; a *sparse* upper is one file with a hole wherever nothing was written.
//!
//! Crash rule of a log: entries of its index are held back until a flush has synced the data they
//! speak of, then they are appended and synced. A power cut leaves a prefix of the index, whose data is
//! there. Entries are 16 bytes at multiples of 16, so none is torn by a sector.
//!
//! The files are locked as long as they are open, so an upper has one writer.

mod log;
mod map;
mod sparse;

use std::fs::{File, OpenOptions as FileOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use kiln_block::{ByteOffset, DeviceError};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

pub(crate) use self::log::Log;
pub(crate) use self::sparse::{BLOCK as SPARSE_BLOCK, Sparse};
use crate::compact::{self, Content, Sealing, Written};
use crate::error::failed;
use crate::lsmt::{HEADER_SIZE, Header, Kind, Segment};
use crate::{Input, LayerError, Uuid};

/// What a new upper is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewUpper {
    /// Bytes of the disk, a multiple of 512; zero takes it from the layers below.
    pub virtual_size: u64,
    /// Which layer it is.
    pub uuid: Uuid,
    /// Which layer it lies on.
    pub parent: Uuid,
    /// Up to 256 bytes for whoever made it.
    pub user_tag: Vec<u8>,
}

/// The files of an upper, open.
#[derive(Debug)]
pub struct Upper {
    pub(crate) store: Store,
    pub(crate) header: Header,
    pub(crate) name: String,
}

/// How an upper is stored.
#[derive(Debug)]
pub(crate) enum Store {
    Log(Log),
    Sparse(Sparse),
}

impl Upper {
    /// Makes an empty log of two files, neither of which may exist.
    pub fn create_log(data: &Path, index: &Path, new: &NewUpper) -> Result<Upper, LayerError> {
        let name = data.display().to_string();
        let header = header_of(new, Kind::LogData)?;
        let index_header = header_of(new, Kind::LogIndex)?;
        let data = create(data)?;
        data.write_all_at(&header.encode(), 0).map_err(failed("write", &name))?;
        let index_file = create(index)?;
        index_file
            .write_all_at(&index_header.encode(), 0)
            .map_err(failed("write", &index.display().to_string()))?;
        let store = Store::Log(Log::new(data, index_file));
        Ok(Upper { store, header, name })
    }

    /// Makes an empty sparse upper of one file, which may not exist.
    pub fn create_sparse(data: &Path, new: &NewUpper) -> Result<Upper, LayerError> {
        let name = data.display().to_string();
        let header = header_of(new, Kind::Sparse)?;
        let data = create(data)?;
        data.write_all_at(&header.encode(), 0).map_err(failed("write", &name))?;
        let store = Store::Sparse(Sparse::create(data, new.virtual_size, &name)?);
        Ok(Upper { store, header, name })
    }

    /// Opens an upper as it is found. A log needs its index; a sparse upper has none.
    pub fn open(data: &Path, index: Option<&Path>) -> Result<Upper, LayerError> {
        let name = data.display().to_string();
        let file = open(data)?;
        let header = read_header(&file, &name)?;
        let damaged =
            |rule: &str| LayerError::Damaged { name: name.clone(), at: 28, rule: rule.into() };
        if !header.is_header() || !header.is_data() {
            return Err(damaged("the flags are not those of an upper's data file"));
        }
        if header.is_sealed() {
            return Err(damaged(
                "it is a sealed layer; a layer below can hold it, an upper cannot",
            ));
        }
        let store = if header.is_sparse() {
            Store::Sparse(Sparse::open(file, header.virtual_size, &name)?)
        } else {
            let Some(index) = index else {
                return Err(LayerError::Refused(format!(
                    "{name} is a log and needs its index file"
                )));
            };
            let index_name = index.display().to_string();
            let index_file = open(index)?;
            let index_header = read_header(&index_file, &index_name)?;
            if !index_header.is_header() || index_header.is_data() {
                let rule = "the flags are not those of an upper's index file".to_owned();
                return Err(LayerError::Damaged { name: index_name, at: 28, rule });
            }
            if index_header.uuid != header.uuid {
                let rule = format!("its UUID is not the one of {name}, so they are no pair");
                return Err(LayerError::Damaged { name: index_name, at: 56, rule });
            }
            Store::Log(Log::open(file, &name, index_file, &index_name)?)
        };
        Ok(Upper { store, header, name })
    }

    /// Bytes of the disk; zero if it has yet to take its size from the layers below.
    pub fn virtual_size(&self) -> u64 {
        self.header.virtual_size
    }

    /// Which layer it is, if it says so.
    pub fn uuid(&self) -> Option<Uuid> {
        self.header.uuid.filter(|uuid| !uuid.is_nil())
    }

    /// Which layer it was made to lie on, if it says so.
    pub fn parent(&self) -> Option<Uuid> {
        self.header.parent.filter(|uuid| !uuid.is_nil())
    }

    /// Takes the size of the layers below, and remembers it.
    pub(crate) fn inherit_size(&mut self, size: u64) -> Result<(), LayerError> {
        self.header.virtual_size = size;
        let bytes = size.to_le_bytes();
        let written = match &mut self.store {
            Store::Log(log) => log.write_size(bytes),
            Store::Sparse(sparse) => sparse.write_size(size),
        };
        written.map_err(failed("write", &self.name))
    }

    /// Makes everything written so far durable.
    pub(crate) fn flush(&self) -> Result<(), DeviceError> {
        match &self.store {
            Store::Log(log) => log.flush(),
            Store::Sparse(sparse) => sparse.flush(),
        }
        .map_err(|source| DeviceError::Io { act: "flush", at: ByteOffset::ZERO, source })
    }

    /// What it holds, sorted.
    pub(crate) fn segments(&self) -> Vec<Segment> {
        match &self.store {
            Store::Log(log) => log.segments(),
            Store::Sparse(sparse) => sparse.segments(),
        }
    }

    /// Writes a sealed layer of what the upper holds, and leaves the upper as it is. A parent of
    /// zeros in `sealing` becomes the upper's.
    pub fn commit<W: Write + Seek>(
        &self,
        out: W,
        sealing: &Sealing,
    ) -> Result<Written<W>, LayerError> {
        let data = match &self.store {
            Store::Log(log) => log.data(),
            Store::Sparse(sparse) => sparse.data(),
        };
        let device = data.try_clone().and_then(file_device).map_err(failed("read", &self.name))?;
        let input = Input::new(&self.name, device);
        let parent = if sealing.parent.is_nil() {
            self.parent().unwrap_or_default()
        } else {
            sealing.parent
        };
        let content = Content {
            virtual_size: self.header.virtual_size,
            segments: self.segments(),
            source: &|_| Some(&input),
        };
        compact::write(out, &content, &Sealing { parent, ..sealing.clone() })
    }

    /// Makes a sealed layer of a log where it is: its data file gets the index and a trailer. What was
    /// overwritten stays in it. A sparse upper cannot become a layer this way.
    pub fn seal(self) -> Result<(), LayerError> {
        let Upper { store, header, name } = self;
        match store {
            Store::Log(log) => log.seal(&header).map_err(failed("seal", &name)),
            Store::Sparse(_) => Err(LayerError::Refused(format!(
                "{name} is sparse and cannot be sealed where it is; commit it"
            ))),
        }
    }
}

fn header_of(new: &NewUpper, kind: Kind) -> Result<Header, LayerError> {
    if !new.virtual_size.is_multiple_of(512) || new.virtual_size >= 1 << 59 {
        let size = new.virtual_size;
        return Err(LayerError::Refused(format!(
            "a disk of {size} bytes is no multiple of 512 below 512 PiB"
        )));
    }
    let header = Header::new(kind, new.virtual_size, new.uuid, new.parent);
    Ok(Header { user_tag: compact::tag(&new.user_tag)?, ..header })
}

fn create(path: &Path) -> Result<File, LayerError> {
    let name = path.display().to_string();
    let mut options = FileOptions::new();
    let file = options.read(true).write(true).create_new(true).open(path);
    let file = file.map_err(failed("create", &name))?;
    lock(&file, &name)?;
    Ok(file)
}

fn open(path: &Path) -> Result<File, LayerError> {
    let name = path.display().to_string();
    let file = FileOptions::new().read(true).write(true).open(path);
    let file = file.map_err(failed("open", &name))?;
    lock(&file, &name)?;
    Ok(file)
}

/// Two writers would append over each other. The lock goes with the file, so a killed writer leaves none.
fn lock(file: &File, name: &str) -> Result<(), LayerError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(LayerError::Refused(format!(
            "{name} is an upper that is being written; unmount it or wait for who writes it"
        ))),
        // A file system without locks has one user at a time as far as anybody can tell.
        Err(Errno::NOTSUP | Errno::NOLCK) => Ok(()),
        Err(errno) => Err(failed("lock", name)(errno.into())),
    }
}

fn read_header(file: &File, name: &str) -> Result<Header, LayerError> {
    let damaged = |rule| LayerError::Damaged { name: name.to_owned(), at: 0, rule };
    if file.metadata().map_err(failed("read", name))?.len() < HEADER_SIZE {
        return Err(damaged("it is too short for its header of 4096 bytes".to_owned()));
    }
    let mut bytes = [0; 4096];
    file.read_exact_at(&mut bytes, 0).map_err(failed("read", name))?;
    Header::parse(&bytes).map_err(damaged)
}

/// A second handle on an upper's data, as the disk that a layer is copied from.
fn file_device(file: File) -> io::Result<std::sync::Arc<dyn kiln_block::BlockDevice>> {
    use std::os::fd::AsRawFd;
    // Through the descriptor, for the path may name another file by now.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let device = kiln_block::FileDevice::open(Path::new(&path), true).map_err(io::Error::other)?;
    Ok(std::sync::Arc::new(device))
}
