//! `/dev/disk/by-id/virtio-SERIAL`: links by which tests find their disks, as udev would make them.
//!
//! The kernel asks the disk for its serial whenever it is read, so a scan may wait for a disk that
//! hangs: never scan where others wait.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

const LINKS: &str = "/dev/disk/by-id";

/// Makes the links that are missing, removes those that point nowhere, and returns how many disks
/// have a serial.
pub(crate) fn rescan() -> io::Result<u64> {
    /// One scan at a time: an older view of the disks must not remove what a newer one has just linked.
    static SCAN: Mutex<()> = Mutex::new(());
    let _one = SCAN.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = wanted_links(Path::new("/sys/block"))?;
    let links = Path::new(LINKS);
    if wanted.is_empty() && !links.exists() {
        return Ok(0);
    }
    fs::create_dir_all(links)?;
    for entry in fs::read_dir(links)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let stands = wanted.get(&name).is_some_and(|wanted| target == Path::new(wanted));
        if name.starts_with("virtio-") && !stands {
            match fs::remove_file(entry.path()) {
                // Another scan, at the same time, was quicker.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    for (name, target) in &wanted {
        match symlink(target, links.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(u64::try_from(wanted.len()).unwrap_or(u64::MAX))
}

/// Name and target of every link, partitions included.
fn wanted_links(blocks: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut wanted = BTreeMap::new();
    let disks = match fs::read_dir(blocks) {
        Ok(disks) => disks,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(wanted),
        Err(error) => return Err(error),
    };
    for disk in disks.flatten() {
        let device = disk.file_name().to_string_lossy().into_owned();
        let Ok(serial) = fs::read_to_string(disk.path().join("serial")) else { continue };
        let serial = serial.trim();
        if serial.is_empty() || serial.contains('/') {
            continue;
        }
        for part in fs::read_dir(disk.path())?.flatten() {
            if let Ok(number) = fs::read_to_string(part.path().join("partition")) {
                let target = format!("../../{}", part.file_name().to_string_lossy());
                wanted.insert(format!("virtio-{serial}-part{}", number.trim()), target);
            }
        }
        wanted.insert(format!("virtio-{serial}"), format!("../../{device}"));
    }
    Ok(wanted)
}
