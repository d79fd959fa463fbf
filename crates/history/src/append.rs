//! A file that only grows, a whole line at a time.
//!
//! A line that did not fit is taken back, so a full disk leaves no half line in the middle of a file that
//! grows again later.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::HistoryError;

#[derive(Debug)]
pub(crate) struct AppendFile {
    path: PathBuf,
    file: File,
    len: u64,
    #[cfg(test)]
    space: Option<Space>,
}

/// How many bytes the disk of a test still has; shared by its files.
#[cfg(test)]
pub(crate) type Space = std::rc::Rc<std::cell::Cell<usize>>;

impl AppendFile {
    /// Creates a file that is not there yet.
    pub(crate) fn create(path: PathBuf) -> Result<AppendFile, HistoryError> {
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&path)
            .map_err(|source| failure("create", &path, source))?;
        Ok(AppendFile {
            path,
            file,
            len: 0,
            #[cfg(test)]
            space: None,
        })
    }

    #[cfg(test)]
    pub(crate) fn limit(&mut self, space: Space) {
        self.space = Some(space);
    }

    /// Bytes in it.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Appends one line (its newline included) or nothing.
    pub(crate) fn append(&mut self, line: &[u8]) -> Result<(), HistoryError> {
        match self.write(line) {
            Ok(()) => {
                self.len += u64::try_from(line.len()).unwrap_or(u64::MAX);
                Ok(())
            }
            Err(source) => {
                // If even this fails, the reader meets a torn line and says so.
                let _ = self.file.set_len(self.len);
                Err(failure("write", &self.path, source))
            }
        }
    }

    /// Waits until everything appended is on the disk.
    pub(crate) fn sync(&self) -> Result<(), HistoryError> {
        self.file.sync_data().map_err(|source| failure("sync", &self.path, source))
    }

    #[cfg(not(test))]
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.file.write_all(line)
    }

    #[cfg(test)]
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if let Some(space) = &self.space {
            let fits = line.len().min(space.get());
            if fits < line.len() {
                // As the kernel does: what fits is written, then comes the error.
                self.file.write_all(&line[..fits])?;
                return Err(rustix::io::Errno::NOSPC.into());
            }
            space.set(space.get() - fits);
        }
        self.file.write_all(line)
    }
}

/// Tells a full disk from every other failure.
pub(crate) fn failure(act: &'static str, path: &Path, source: io::Error) -> HistoryError {
    let full = matches!(
        source.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    );
    let path = path.to_owned();
    if full { HistoryError::Full { path, source } } else { HistoryError::Io { act, path, source } }
}
