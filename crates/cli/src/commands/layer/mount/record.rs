//! What is mounted: a file for each, locked by the process that serves it for as long as it lives.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

use super::device::{backing_file, detach_loop};

/// The largest record.
const LARGEST: u64 = 64 << 10;

/// One mount.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Record {
    /// Who serves it.
    pub(super) pid: u32,
    /// Where the disk is a file, if it is by FUSE.
    pub(super) folder: Option<PathBuf>,
    /// That file.
    pub(super) file: Option<PathBuf>,
    /// The block device.
    pub(super) device: Option<PathBuf>,
    /// Where the file system is mounted.
    pub(super) at: Option<PathBuf>,
    /// Why what was written is not all in the upper.
    pub(super) error: Option<String>,
}

/// This process's own record; it goes when this is dropped.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) record: Record,
    path: PathBuf,
    file: File,
    stays: bool,
}

/// Somebody's record.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) record: Record,
    pub(super) path: PathBuf,
    pub(super) is_alive: bool,
}

/// Where records are: in the user's own short folder.
pub(super) fn folder() -> io::Result<PathBuf> {
    let folder = kiln_store::private_folder()?.join("layers");
    match fs::create_dir(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(folder),
    }
}

impl Kept {
    pub(super) fn begin() -> io::Result<Kept> {
        let folder = folder()?;
        let record = Record { pid: std::process::id(), ..Record::default() };
        // Nobody sees it before it is locked.
        let file = tempfile::Builder::new().prefix(".").tempfile_in(&folder)?;
        flock(file.as_file(), FlockOperation::NonBlockingLockExclusive)?;
        write(file.as_file(), &record)?;
        let path = folder.join(format!("{}.json", record.pid));
        let file = file.persist(&path)?;
        Ok(Kept { record, path, file, stays: false })
    }

    /// Notes what was made, so that others can take it away should this process be killed.
    pub(super) fn note(&mut self, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        change(&mut self.record);
        write(&self.file, &self.record)
    }

    /// Leaves word that something went wrong at the end.
    pub(super) fn leave_word(&mut self, error: String) {
        self.stays = self.note(|record| record.error = Some(error)).is_ok();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.stays {
            // Somebody may have been tidy.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn write(mut file: &File, record: &Record) -> io::Result<()> {
    let mut text = serde_json::to_vec(record)?;
    text.push(b'\n');
    // In one write from the start, so that a reader sees the old one, or the new one and what is left of the old.
    let len = text.len() as u64;
    file.write_all_at(&text, 0)?;
    file.set_len(len)?;
    file.flush()
}

/// All records of this user.
pub(super) fn all() -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder()?)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        // It may go at any moment.
        let Ok(file) = File::open(&path) else { continue };
        let is_alive = flock(&file, FlockOperation::NonBlockingLockShared).is_err();
        let mut text = String::new();
        if file.take(LARGEST).read_to_string(&mut text).is_err() {
            continue;
        }
        let line = text.lines().next().unwrap_or_default();
        if let Ok(record) = serde_json::from_str(line) {
            found.push(Found { record, path, is_alive });
        }
    }
    found.sort_by_key(|found| found.record.pid);
    Ok(found)
}

/// Takes away what killed processes left.
pub(super) fn clear_dead() {
    let Ok(found) = all() else { return };
    for dead in found.iter().filter(|found| !found.is_alive && found.record.error.is_none()) {
        clear(dead);
    }
}

/// Takes away what a process left.
pub(super) fn clear(dead: &Found) {
    let Record { at, device, folder, .. } = &dead.record;
    let is_ours = |device: &&PathBuf| match (backing_file(device), folder) {
        (Some(file), Some(folder)) => file.starts_with(folder),
        _ => false,
    };
    let device = device.as_ref().filter(is_ours);
    // Each of these fails where there is nothing to take away.
    if let (Some(at), Some(device)) = (at, device)
        && super::table::is_mounted(device, at)
    {
        let _ = unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
    if let Some(device) = device {
        let _ = detach_loop(device);
    }
    if let Some(folder) = folder.as_ref().filter(|folder| is_below_ours(folder)) {
        let unmounted = unmount(folder, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        if unmounted == Err(rustix::io::Errno::PERM) {
            let mut helper = std::process::Command::new("fusermount3");
            let helper = helper.args(["-u", "-z", "--"]).arg(folder);
            let _ = helper.stderr(std::process::Stdio::null()).status();
        }
        let _ = fs::remove_dir(folder);
    }
    let _ = fs::remove_file(&dead.path);
}

fn is_below_ours(path: &Path) -> bool {
    folder().is_ok_and(|own| path.parent() == Some(own.as_path()))
}
