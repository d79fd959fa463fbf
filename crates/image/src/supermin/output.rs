//! An output directory that is there whole or not at all, and never gone in between.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use tempfile::TempDir;

use super::SuperminError;

/// An output under way, beside where it will be.
#[derive(Debug)]
pub(super) struct Output {
    place: PathBuf,
    made: TempDir,
}

impl Output {
    /// Makes an empty directory that will become `place`.
    pub(super) fn begin(place: &Path) -> Result<Output, SuperminError> {
        let place = std::path::absolute(place)
            .map_err(|source| SuperminError::host("make", place, source))?;
        let (Some(folder), Some(name)) = (place.parent(), place.file_name()) else {
            let why = "an output cannot be the root directory".to_owned();
            return Err(SuperminError::Input { path: place, why });
        };
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        let made = tempfile::Builder::new()
            .prefix(&prefix)
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(folder)
            .map_err(|source| SuperminError::host("write to", folder, source))?;
        Ok(Output { place, made })
    }

    pub(super) fn path(&self) -> &Path {
        self.made.path()
    }

    /// Puts it in its place; what was there goes.
    pub(super) fn publish(self) -> Result<(), SuperminError> {
        let failed = |source: io::Error| SuperminError::host("make", &self.place, source);
        let ours = self.made.path();
        match renameat_with(CWD, ours, CWD, &self.place, RenameFlags::EXCHANGE) {
            // What was there is now where ours was.
            Ok(()) => {
                clear(ours);
                return Ok(());
            }
            Err(Errno::NOENT) => {}
            // A file system that cannot exchange: for a moment there is none.
            Err(Errno::INVAL | Errno::NOSYS) => {
                let old = tempfile::Builder::new()
                    .prefix(".old-")
                    .tempdir_in(self.place.parent().unwrap_or(Path::new("/")))
                    .map_err(failed)?;
                match fs::rename(&self.place, old.path().join("output")) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(failed(error));
                    }
                    _ => {}
                }
                clear(&old.path().join("output"));
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        fs::rename(ours, &self.place).map_err(failed)?;
        // It is not there any more, and so nothing is removed.
        drop(self.made.keep());
        Ok(())
    }
}

/// Removes a tree of which some directories may be read-only. What cannot be removed stays: the new output is in its
/// place already.
fn clear(path: &Path) {
    if fs::remove_dir_all(path).is_ok() {
        return;
    }
    let mut ahead = vec![path.to_owned()];
    while let Some(folder) = ahead.pop() {
        let _ = fs::set_permissions(&folder, fs::Permissions::from_mode(0o700));
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        ahead.extend(folders.map(|entry| entry.path()));
    }
    let _ = fs::remove_dir_all(path);
}

/// A lock that is held as long as this lives. supermin locks the same file with `lockf`: both locks are taken, so that
/// either program waits for the other.
#[derive(Debug)]
pub(super) struct Locked {
    _file: File,
}

impl Locked {
    pub(super) fn wait(path: &Path) -> Result<Locked, SuperminError> {
        let failed = |source| SuperminError::host("lock", path, source);
        let mut options = File::options();
        let file = options.create(true).append(true).open(path).map_err(failed)?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        loop {
            match rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        Ok(Locked { _file: file })
    }
}

/// Whether one path lies in the other.
pub(super) fn lies_in(path: &Path, folder: &Path) -> bool {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (path, folder) = (absolute(path), absolute(folder));
    !folder.as_os_str().as_bytes().is_empty() && path.starts_with(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_takes_the_place_of_another_though_parts_of_that_are_read_only() {
        let here = tempfile::tempdir().unwrap();
        let place = here.path().join("out");
        for text in ["first", "second"] {
            let output = Output::begin(&place).unwrap();
            fs::create_dir(output.path().join("folder")).unwrap();
            fs::write(output.path().join("folder/file"), text).unwrap();
            let mode = fs::Permissions::from_mode(0o555);
            fs::set_permissions(output.path().join("folder"), mode).unwrap();
            output.publish().unwrap();
            assert_eq!(fs::read_to_string(place.join("folder/file")).unwrap(), text);
            assert_eq!(fs::read_dir(here.path()).unwrap().count(), 1, "nothing else is left");
        }
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o755);
        fs::set_permissions(place.join("folder"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn an_output_that_is_given_up_leaves_nothing() {
        let here = tempfile::tempdir().unwrap();
        drop(Output::begin(&here.path().join("out")).unwrap());
        assert_eq!(fs::read_dir(here.path()).unwrap().count(), 0);
        assert!(Output::begin(Path::new("/")).is_err());
    }
}
