//! Serves disks as a folder of files (`docs/formats/fuse.md`): every disk is a file as large as the disk, for
//! programs that know nothing but files, and for a loop device where the kernel has neither NBD nor ublk.
//!
//! ```no_run
//! use std::sync::Arc;
//! use kiln_block::{ByteLen, MemoryDevice};
//! use kiln_export::{Export, Exports, fuse};
//!
//! let disk = Arc::new(MemoryDevice::new(ByteLen::gib(1)));
//! let exports = Exports::one("scratch", Export::new(disk))?;
//! let mount = fuse::Mount::start("/mnt/disks".as_ref(), exports)?;
//! println!("{}", mount.path_of("scratch").unwrap().display());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod file;
mod folder;
mod mounting;
mod names;
mod table;

use std::io;
use std::path::{Path, PathBuf};

use fuser::{BackgroundSession, Config, Session, SessionACL};

use crate::Exports;
use folder::Folder;
use mounting::{By, Left, Place};

/// Threads that serve a folder, and so requests that can wait for its disks at once.
const THREADS: usize = 8;

/// Serves disks in a folder until it is stopped or dropped.
#[derive(Debug)]
pub struct Mount {
    place: Place,
    session: Option<BackgroundSession>,
}

/// Why a folder does not serve disks.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel cannot do it.
    #[error("cannot open /dev/fuse: load the kernel's module with `modprobe fuse`")]
    NoFuse {
        /// The cause.
        source: io::Error,
    },
    /// It takes the superuser or a program that is not there.
    #[error("cannot mount on {folder} without fusermount3: install the package fuse3, or be root")]
    NoHelper {
        /// Where.
        folder: PathBuf,
    },
    /// The program refused.
    #[error("cannot mount on {folder}: {said}")]
    Helper {
        /// Where.
        folder: PathBuf,
        /// What it said.
        said: String,
    },
    /// Something is mounted there, or about to be.
    #[error("{folder} is in use: another process serves disks there, or something else is mounted")]
    InUse {
        /// Where.
        folder: PathBuf,
    },
    /// Files would be hidden.
    #[error("{folder} is not empty: choose an empty folder")]
    NotEmpty {
        /// Where.
        folder: PathBuf,
    },
    /// The system refused.
    #[error("cannot {act} {folder}")]
    Io {
        /// `open`, `mount`, `look at`.
        act: &'static str,
        /// Where.
        folder: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Mount {
    /// Mounts on an empty folder, and serves from then on, in threads of its own.
    ///
    /// Only the process's user can use the folder, and neither can root where that is somebody else. A mount that
    /// a process left there when it died is replaced; one that lives is left alone.
    pub fn start(folder: &Path, exports: Exports) -> Result<Mount, MountError> {
        Mount::start_by(folder, exports, By::Whoever)
    }

    /// Like [`start`](Mount::start), but has `fusermount3` do what only root may, even for root.
    pub fn start_unprivileged(folder: &Path, exports: Exports) -> Result<Mount, MountError> {
        Mount::start_by(folder, exports, By::Helper)
    }

    fn start_by(folder: &Path, exports: Exports, by: By) -> Result<Mount, MountError> {
        let (place, kernel) = Place::take(folder, by)?;
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let started = Session::from_fd(Folder::new(exports), kernel, SessionACL::All, config)
            .and_then(Session::spawn);
        match started {
            Ok(session) => Ok(Mount { place, session: Some(session) }),
            Err(source) => {
                let folder = place.folder().to_owned();
                Err(MountError::Io { act: "serve disks in", folder, source })
            }
        }
    }

    /// Where the files are.
    pub fn folder(&self) -> &Path {
        self.place.folder()
    }

    /// The file of a disk with this name, be it served or not; `None` when the name is too long for one.
    pub fn path_of(&self, name: &str) -> Option<PathBuf> {
        names::file_of(name).map(|file| self.folder().join(file))
    }

    /// Takes the folder away. Returns whether a file in it was in use, by a loop device for instance:
    /// whoever used it gets errors from now on.
    ///
    /// Nothing is flushed that nobody asked to flush.
    pub fn stop(mut self) -> bool {
        self.end()
    }

    fn end(&mut self) -> bool {
        let left = self.place.leave();
        if let Some(session) = self.session.take()
            && left != Left::Lingering
        {
            // The kernel has hung up on every thread. What went wrong with one is told to nobody's good.
            let _ = session.join();
        }
        left != Left::Free
    }
}

/// Takes the folder away as [`stop`](Mount::stop) does.
impl Drop for Mount {
    fn drop(&mut self) {
        self.end();
    }
}
