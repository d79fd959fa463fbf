//! Traces: what whoever uses an image wants first, fetched before they ask; and what they read, written down.

use std::fs;
use std::io::{Cursor, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_block::{BlockDevice, ByteLen};
use kiln_overlaybd::{LayerError, Stack, Trace, Traced};
use kiln_registry::{Descriptor, Repository};

use super::output::{begin, finish, folder_of};
use super::refused;
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::{hostile, terminal};

/// What of a trace is fetched at once.
const THREADS: usize = 4;
/// What a tar adds to a trace.
const AROUND: u64 = 64 << 10;

/// A trace that an image brings along, or somebody has given, before anybody knows whether it is one.
pub(super) struct Brought {
    bytes: Vec<u8>,
    name: String,
}

impl Brought {
    /// Reads the file somebody has named.
    pub(super) fn of_file(path: &Path) -> Result<Brought, Failure> {
        let tried = || format!("cannot read {}", path.display());
        let file = fs::File::open(path).tried(tried).exits(Exit::Usage)?;
        let mut bytes = Vec::new();
        let most = Trace::LARGEST as u64 + AROUND;
        let read = file.take(most + 1).read_to_end(&mut bytes);
        read.tried(tried).exits(Exit::InfrastructureBroke)?;
        let name = path.display().to_string();
        if bytes.len() as u64 > most {
            let text = format!("{name} is too large for a trace");
            return Err(Failure::new(Exit::Usage, text));
        }
        Ok(Brought { bytes, name })
    }

    /// Fetches what lies on top of an image; without it the image can be used all the same.
    pub(super) fn of_blob(repository: &Repository, blob: &Descriptor) -> Option<Brought> {
        let name = format!("the image's trace ({})", blob.digest);
        if blob.size > Trace::LARGEST as u64 + AROUND {
            passed_over(&name, "it is too large");
            return None;
        }
        let mut bytes = Cursor::new(Vec::new());
        match repository.pull(blob, &mut bytes, &mut |_| {}) {
            Ok(()) => Some(Brought { bytes: bytes.into_inner(), name }),
            Err(error) => {
                passed_over(&name, &error.to_string());
                None
            }
        }
    }

    /// What is in the tar around it.
    pub(super) fn unwrapped(&self) -> Result<Vec<u8>, LayerError> {
        Trace::from_tar(&self.bytes, &self.name)
    }

    /// The trace, which may be by layer, of those layers.
    pub(super) fn read(&self, stack: Option<&Stack>) -> Result<Trace, Failure> {
        let bytes = self.unwrapped().map_err(refused)?;
        if Trace::is_of_layers(&bytes) {
            let Some(stack) = stack else { return Ok(Trace::default()) };
            return Trace::of_layers(&bytes, &self.name, stack).map_err(refused);
        }
        let text = String::from_utf8_lossy(&bytes);
        let trace = Trace::parse(&text, &self.name).map_err(refused);
        trace.hint("kiln layer mount --record-trace FILE writes one")
    }

    /// The same, of what nobody has asked for: one that cannot be used is told of.
    pub(super) fn try_read(&self, stack: Option<&Stack>) -> Option<Trace> {
        match self.read(stack) {
            Ok(trace) => Some(trace),
            Err(failure) => {
                let why = failure.lines().into_iter().map(|(_, line)| line).next();
                passed_over(&self.name, &why.unwrap_or_default());
                None
            }
        }
    }
}

fn passed_over(name: &str, why: &str) {
    let text = format!("note: nothing is fetched ahead by {name}: {why}");
    terminal::say(&hostile::line(&text));
}

/// Fetches what a trace names, on threads of its own, until it is dropped.
#[derive(Debug)]
pub(super) struct Ahead(Arc<AtomicBool>);

impl Ahead {
    pub(super) fn start(trace: Trace, disk: Arc<dyn BlockDevice>) -> Ahead {
        let enough = Arc::new(AtomicBool::new(false));
        let ahead = Ahead(Arc::clone(&enough));
        let work = move || {
            trace.prefetch(&*disk, THREADS, &enough);
        };
        // Without a thread, what is needed is fetched when it is needed.
        let _ = std::thread::Builder::new().name("trace".to_owned()).spawn(work);
        ahead
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What is read of a disk, to be written down at the end.
pub(super) struct Recording {
    disk: Arc<Traced>,
    path: PathBuf,
}

impl Recording {
    /// Notes what is read of a disk. That it can be written down is found out now.
    pub(super) fn begin(disk: Arc<dyn BlockDevice>, path: PathBuf) -> Result<Recording, Failure> {
        if !folder_of(&path).is_dir() {
            let text = format!("cannot write {}", path.display());
            let hint = format!("mkdir {}", folder_of(&path).display());
            return Err(Failure::new(Exit::Usage, text).hint(hint));
        }
        drop(begin(&path)?);
        Ok(Recording { disk: Arc::new(Traced::new(disk)), path })
    }

    /// The disk to be used.
    pub(super) fn disk(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.disk) as Arc<dyn BlockDevice>
    }

    /// Writes it down.
    pub(super) fn keep(&self) -> Result<(), Failure> {
        let trace = self.disk.trace();
        let file = begin(&self.path)?;
        file.as_file()
            .write_all(trace.to_text().as_bytes())
            .tried(|| format!("cannot write {}", self.path.display()))
            .exits(Exit::InfrastructureBroke)?;
        finish(file, &self.path)?;
        let bytes = ByteLen::new(trace.bytes());
        let text = format!("{}: {bytes} were read", self.path.display());
        terminal::say(&hostile::line(&text));
        Ok(())
    }
}
