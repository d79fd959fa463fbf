//! A glance at the names in a pool, for whoever types one: quick, silent, and nobody's way is barred. An owner is
//! asked, never started; where there is none the file is read as it is, without the lock, and what reading it wants
//! to write stays in memory.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_block::{
    BlockDevice, ByteLen, ByteOffset, DeviceError, FileDevice, buffers_len, check_range,
};
use kiln_parallax::{Pool, PoolOptions};

use crate::reply::Reply;
use crate::request::Request;
use crate::store::Store;

/// The names that begin so: disks, or with an `@` a disk's snapshots. Nothing where no answer came in time, or none
/// can be had.
pub fn glance(pool: &Path, prefix: &str, patience: Duration) -> Vec<String> {
    let (tell, told) = mpsc::channel();
    let (pool, asked) = (pool.to_owned(), prefix.to_owned());
    let look = move || {
        // Fails when nobody waits any more.
        let _ = tell.send(names(&pool, &asked));
    };
    let looking = std::thread::Builder::new().name("glance".to_owned()).spawn(look);
    let found = looking.ok().and_then(|_| told.recv_timeout(patience).ok()).flatten();
    let mut found = found.unwrap_or_default();
    found.retain(|name| name.starts_with(prefix));
    found
}

fn names(path: &Path, prefix: &str) -> Option<Vec<String>> {
    let of_disk = prefix.split_once('@').map(|(disk, _)| disk);
    if let Some(owner) = Store::connected(path).ok()? {
        let (request, disk) = match of_disk {
            Some(disk) => (Request::Snapshots { disk: disk.to_owned() }, disk),
            None => (Request::List, ""),
        };
        return match owner.ask(request).ok()? {
            Reply::Disks { disks } => Some(disks.into_iter().map(|disk| disk.name).collect()),
            Reply::Snapshots { snapshots } => {
                let name = |snapshot: crate::Snapshot| format!("{disk}@{}", snapshot.snapshot);
                Some(snapshots.into_iter().map(name).collect())
            }
            _ => None,
        };
    }
    let file = FileDevice::open(path, true).ok()?;
    let device = Unchanged { below: Arc::new(file), above: Mutex::default() };
    let pool = Pool::open(Arc::new(device), &PoolOptions::default()).ok()?;
    match of_disk {
        None => Some(pool.disks().into_iter().map(|disk| disk.name).collect()),
        Some(disk) => {
            let snapshots = pool.snapshots(disk).ok()?.into_iter();
            Some(snapshots.map(|snapshot| format!("{disk}@{}", snapshot.name)).collect())
        }
    }
}

const BLOCK: u64 = 4096;
/// Blocks that may be written; nobody waits for a pool that wants more.
const MOST: usize = 8192;

/// A device that is only read: what is written to it is kept in memory.
struct Unchanged {
    below: Arc<dyn BlockDevice>,
    above: Mutex<BTreeMap<u64, Box<[u8]>>>,
}

impl Unchanged {
    fn above(&self) -> MutexGuard<'_, BTreeMap<u64, Box<[u8]>>> {
        self.above.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `on` for each block of a range, with what is there and where of the range it lies.
    fn change(
        &self,
        at: ByteOffset,
        len: ByteLen,
        mut on: impl FnMut(&mut [u8], u64),
    ) -> Result<(), DeviceError> {
        check_range(self.size(), at, len)?;
        let (from, end) = (at.get(), at.get() + len.get());
        let mut above = self.above();
        let mut here = from;
        while here < end {
            let (number, skip) = (here / BLOCK, here % BLOCK);
            let next = end.min((number + 1) * BLOCK);
            if above.len() >= MOST && !above.contains_key(&number) {
                let source = std::io::ErrorKind::StorageFull.into();
                return Err(DeviceError::Io { act: "keep in memory", at, source });
            }
            let block = match above.entry(number) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    let start = number * BLOCK;
                    let whole = BLOCK.min(self.size().get() - start);
                    let mut bytes = vec![0; usize::try_from(whole).unwrap_or(0)];
                    self.below.read_at(ByteOffset::new(start), &mut bytes)?;
                    entry.insert(bytes.into_boxed_slice())
                }
            };
            let range = usize::try_from(skip).unwrap_or(0)
                ..usize::try_from(skip + next - here).unwrap_or(0);
            if let Some(part) = block.get_mut(range) {
                on(part, here - from);
            }
            here = next;
        }
        Ok(())
    }
}

impl BlockDevice for Unchanged {
    fn size(&self) -> ByteLen {
        self.below.size()
    }

    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        self.below.read_vectored_at(at, buffers)?;
        let above = self.above();
        let mut here = at.get();
        for buffer in buffers {
            let end = here + u64::try_from(buffer.len()).unwrap_or(0);
            for (number, block) in above.range(here / BLOCK..end.div_ceil(BLOCK)) {
                // Where the block and the buffer meet.
                let (start, stop) = (number * BLOCK, number * BLOCK + BLOCK);
                let (from, until) = (start.max(here), stop.min(end));
                let place = |at: u64, of: u64| usize::try_from(at - of).unwrap_or(0);
                let source = block.get(place(from, start)..place(until, start));
                let target = buffer.get_mut(place(from, here)..place(until, here));
                if let (Some(source), Some(target)) = (source, target) {
                    target.copy_from_slice(source);
                }
            }
            here = end;
        }
        Ok(())
    }

    fn write_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        let bytes: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
        self.change(at, buffers_len(buffers), |part, skip| {
            let skip = usize::try_from(skip).unwrap_or(0);
            part.copy_from_slice(&bytes[skip..skip + part.len()]);
        })
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        // What is there afterwards may be anything.
        check_range(self.size(), at, len)
    }

    fn write_zeroes(&self, at: ByteOffset, len: ByteLen, _: bool) -> Result<(), DeviceError> {
        self.change(at, len, |part, _| part.fill(0))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kiln_block::MemoryDevice;
    use kiln_block::testing::Abilities;
    use kiln_parallax::DiskOptions;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn names_are_seen_though_the_pool_is_locked_and_nothing_changes() {
        let folder = tempfile::Builder::new().prefix("kiln-glance").tempdir_in("/tmp").unwrap();
        let path = folder.path().join("p");
        let pool = Pool::create_file(&path, ByteLen::mib(64), &PoolOptions::default()).unwrap();
        for name in ["base", "basalt", "other"] {
            pool.create_disk(name, ByteLen::mib(8), &DiskOptions::default()).unwrap();
        }
        pool.snapshot("base", "monday").unwrap();
        pool.snapshot("base", "tuesday").unwrap();
        // There is something in the log too, and somebody holds the lock.
        let disk = pool.open_disk("base").unwrap();
        disk.write_at(ByteOffset::ZERO, &[7; 8192]).unwrap();
        disk.flush().unwrap();
        let before = std::fs::read(&path).unwrap();
        assert_eq!(glance(&path, "ba", PATIENCE), ["basalt", "base"]);
        assert_eq!(glance(&path, "base@t", PATIENCE), ["base@tuesday"]);
        assert_eq!(glance(&path, "gone@", PATIENCE), Vec::<String>::new());
        assert!(std::fs::read(&path).unwrap() == before, "nothing was written");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no owner was started");
    }

    #[test]
    fn what_is_no_pool_has_no_names() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(glance(&folder.path().join("nowhere"), "", PATIENCE), Vec::<String>::new());
        let file = folder.path().join("file");
        std::fs::write(&file, vec![7; 1 << 20]).unwrap();
        assert_eq!(glance(&file, "", PATIENCE), Vec::<String>::new());
        assert_eq!(glance(folder.path(), "", PATIENCE), Vec::<String>::new());
    }

    #[test]
    fn writes_stay_in_memory_and_are_read_back() {
        let below = Arc::new(MemoryDevice::new(ByteLen::mib(1)));
        let device = Unchanged { below: below.clone(), above: Mutex::default() };
        kiln_block::testing::conforms(&device, Abilities { granularity: 1, writable: true });
        let mut bytes = vec![1; 1 << 20];
        below.read_at(ByteOffset::ZERO, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
    }
}
