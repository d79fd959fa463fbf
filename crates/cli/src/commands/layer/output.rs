//! Files that appear when they are complete.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::NamedTempFile;

use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::signals;

/// The folder a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file beside the output, so that it takes its place at once.
pub(crate) fn begin(path: &Path) -> Result<NamedTempFile, Failure> {
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let text = format!("{} is not a regular file", path.display());
        return Err(Failure::new(Exit::Usage, text).hint("name a new file after --output"));
    }
    tempfile::Builder::new()
        .prefix(".kiln-layer-")
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(folder_of(path))
        .tried(|| format!("cannot write {}", path.display()))
        .exits(Exit::Setup)
}

/// Makes it durable, then gives it its name.
pub(crate) fn finish(file: NamedTempFile, path: &Path) -> Result<(), Failure> {
    let tried = || format!("cannot write {}", path.display());
    file.as_file().sync_all().tried(tried).exits(Exit::InfrastructureBroke)?;
    file.persist(path).tried(tried).exits(Exit::Setup)?;
    sync(folder_of(path))
}

/// Makes a file or a folder durable.
pub(crate) fn sync(path: &Path) -> Result<(), Failure> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .tried(|| format!("cannot sync {}", path.display()))
        .exits(Exit::InfrastructureBroke)
}

/// Set by Ctrl-C or a signal: what was begun is removed first.
pub(crate) fn listen() -> Result<Arc<AtomicBool>, Failure> {
    let enough = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&enough);
    signals::when_told_to_end(move || heard.store(true, Ordering::Relaxed))?;
    Ok(enough)
}

/// A file whose writing fails as soon as somebody wants us to end.
#[derive(Debug)]
pub(crate) struct Stoppable {
    pub(crate) file: File,
    pub(crate) enough: Arc<AtomicBool>,
}

impl Write for Stoppable {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.enough.load(Ordering::Relaxed) {
            // Not the kind that writers try again after.
            return Err(io::Error::other("interrupted"));
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Stoppable {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}
