//! The disks of one machine: sparse files without a name.
//!
//! A file that was never linked, or is unlinked before anything is written to it, is gone when its last
//! holder is, however that holder ends. QEMU opens it by way of our descriptor (`/proc/PID/fd/N`). Keeping a
//! disk gives it a name after all, or copies its allocated parts where the filesystem cannot do that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kiln_model::job::Disk;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use super::machine::Saved;

/// The disks of one machine.
#[derive(Debug)]
pub(crate) struct Scratch {
    disks: Vec<(String, File)>,
}

impl Scratch {
    /// Makes the disks on the filesystem of `folder`, without leaving anything in it.
    pub(crate) fn make(folder: &Path, disks: &[Disk]) -> Result<Scratch, String> {
        let mut made = Vec::new();
        for disk in disks {
            let file = nameless(folder)
                .and_then(|file| file.set_len(disk.size).map(|()| file))
                .map_err(|error| {
                    let size = kiln_block::ByteLen::new(disk.size);
                    format!(
                        "cannot make disk {} of {size} in {}: {error}",
                        disk.serial,
                        folder.display()
                    )
                })?;
            made.push((disk.serial.clone(), file));
        }
        Ok(Scratch { disks: made })
    }

    /// Serial and path of each, in order. The paths lead somewhere for as long as this lives.
    pub(crate) fn paths(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        let pid = std::process::id();
        self.disks.iter().map(move |(serial, file)| {
            (serial.as_str(), PathBuf::from(format!("/proc/{pid}/fd/{}", file.as_raw_fd())))
        })
    }

    /// Keeps the disks as `SERIAL.raw` in a folder, which is made. What a running machine writes later lands in the kept
    /// files too, so it should be stopped first.
    pub(crate) fn keep(&mut self, folder: &Path) -> io::Result<Vec<Saved>> {
        fs::create_dir_all(folder)?;
        let mut saved = Vec::new();
        for (serial, file) in &mut self.disks {
            let path = folder.join(format!("{serial}.raw"));
            let link = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            // Only a file born nameless can be linked; an unlinked one has to be copied.
            let linked = rustix::fs::linkat(CWD, &link, CWD, &path, AtFlags::SYMLINK_FOLLOW);
            if linked.is_err() {
                copy_sparse(file, &path)?;
            }
            saved.push(Saved { bytes: file.metadata()?.len(), path });
        }
        Ok(saved)
    }
}

/// A file nobody can find.
fn nameless(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    // Filesystems without O_TMPFILE say so in several ways; anything else fails below as well.
    if let Ok(fd) = rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        return Ok(File::from(fd));
    }
    let path = folder.join(format!(".disk-{}-{:x}", std::process::id(), unique()));
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn copy_sparse(from: &mut File, to: &Path) -> io::Result<()> {
    let size = from.metadata()?.len();
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    to.set_len(size)?;
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(&*from, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(&*from, rustix::fs::SeekFrom::Hole(data))?;
        from.seek(SeekFrom::Start(data))?;
        to.seek(SeekFrom::Start(data))?;
        io::copy(&mut Read::by_ref(from).take(hole - data), &mut to)?;
        at = hole;
    }
    to.flush()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    fn disks() -> Vec<Disk> {
        vec![
            Disk { serial: "a1".into(), size: 64 << 20, base: None },
            Disk { serial: "a2".into(), size: 1 << 20, base: None },
        ]
    }

    #[test]
    fn disks_leave_nothing_in_the_folder_and_can_be_opened_by_others() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = Scratch::make(folder.path(), &disks()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        for (serial, path) in scratch.paths() {
            let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            file.write_all_at(serial.as_bytes(), 4096).unwrap();
        }
    }

    #[test]
    fn a_kept_disk_has_its_size_its_bytes_and_its_holes() {
        let folder = tempfile::tempdir().unwrap();
        let mut scratch = Scratch::make(folder.path(), &disks()).unwrap();
        scratch.disks[0].1.write_all_at(b"kept", 32 << 20).unwrap();
        let saved = scratch.keep(&folder.path().join("kept")).unwrap();
        let copy = folder.path().join("copy.raw");
        copy_sparse(&mut scratch.disks[0].1, &copy).unwrap();
        for path in [&saved[0].path, &copy] {
            let file = File::open(path).unwrap();
            let mut bytes = [0; 4];
            file.read_exact_at(&mut bytes, 32 << 20).unwrap();
            assert_eq!(&bytes, b"kept");
            assert_eq!(file.metadata().unwrap().len(), 64 << 20);
            assert!(file.metadata().unwrap().blocks() * 512 < 16 << 20);
        }
    }

    #[test]
    fn a_disk_that_cannot_be_made_is_named() {
        let error = Scratch::make(Path::new("/nowhere/at/all"), &disks()).unwrap_err();
        assert!(error.contains("disk a1 of 64M in /nowhere/at/all"), "{error}");
    }
}
