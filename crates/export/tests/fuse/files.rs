//! What can be done with the files.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::sync::Arc;

use kiln_block::testing::{Abilities, Act, Dice, FaultDisk, conforms};
use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, FileDevice, MemoryDevice, zeros};
use kiln_export::{Export, Exports};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::room::{Room, run};

fn memory(size: ByteLen) -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(size))
}

#[test]
fn every_disk_is_a_file_as_large_as_the_disk() {
    let exports = Exports::new();
    exports.add("root", Export::new(memory(ByteLen::mib(3)))).unwrap();
    exports.add("base@1/2", Export::new(memory(ByteLen::gib(100))).read_only()).unwrap();
    exports.add(".", Export::new(Arc::new(zeros(ByteLen::new(5))))).unwrap();
    let room = Room::serving(exports);
    let mut seen: Vec<(String, u64, u32)> = fs::read_dir(room.mount.folder())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let about = entry.metadata().unwrap();
            (entry.file_name().into_string().unwrap(), about.len(), about.mode() & 0o777)
        })
        .collect();
    seen.sort();
    let file = |name: &str, size, mode| (name.to_owned(), size, mode);
    assert_eq!(
        seen,
        [file("%2E", 5, 0o400), file("base@1%2F2", 100 << 30, 0o400), file("root", 3 << 20, 0o600)]
    );
    for path in ["%2F", "nobody", "%2e", "base@1"] {
        let error = fs::metadata(room.mount.folder().join(path)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{path}");
    }
}

#[test]
fn a_file_keeps_every_promise_of_a_disk() {
    let room = Room::with(memory(ByteLen::mib(2)));
    let file = FileDevice::open(&room.path(), false).unwrap();
    conforms(&file, Abilities { granularity: 1, writable: true });
    let room = Room::with(Arc::new(zeros(ByteLen::mib(2))));
    let file = FileDevice::open(&room.path(), true).unwrap();
    conforms(&file, Abilities { granularity: 1, writable: false });
}

#[test]
fn what_is_written_is_with_the_disk_when_the_write_returns() {
    let device = memory(ByteLen::mib(4));
    let room = Room::with(device.clone());
    let mut bytes = vec![0; 3 << 20];
    Dice::seeded(3).fill(&mut bytes);
    room.open().write_all_at(&bytes, 1234).unwrap();
    assert!(device.to_vec()[1234..1234 + bytes.len()] == bytes);
    // Another frontend changes the disk; nothing here remembers how it was.
    let file = room.open();
    let mut seen = [0; 4];
    file.read_exact_at(&mut seen, 0).unwrap();
    device.write_at(ByteOffset::ZERO, b"news").unwrap();
    file.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"news");
}

#[test]
fn fsync_flushes_the_disk_and_says_when_that_failed() {
    let device = Arc::new(FaultDisk::new(MemoryDevice::new(ByteLen::mib(1))));
    let room = Room::with(device.clone());
    let file = room.open();
    file.write_all_at(b"x", 0).unwrap();
    assert_eq!(device.calls(Act::Flush), 0, "a write is not a flush");
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    assert_eq!(device.calls(Act::Flush), 2);
    let durable = OpenOptions::new().write(true).custom_flags(0o10000).open(room.path()).unwrap();
    durable.write_all_at(b"y", 1).unwrap();
    assert_eq!(device.calls(Act::Flush), 3, "O_DSYNC flushes with every write");
    device.fail(Act::Flush, 0, Errno::IO.raw_os_error(), false);
    let error = file.sync_data().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
}

#[test]
fn a_write_that_failed_says_so_itself() {
    let device = Arc::new(FaultDisk::new(MemoryDevice::new(ByteLen::mib(1))));
    let room = Room::with(device.clone());
    let file = room.open();
    for errno in [Errno::IO, Errno::NOSPC] {
        device.fail(Act::Write, 0, errno.raw_os_error(), false);
        let error = file.write_all_at(&[1; 8192], 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()));
    }
    device.fail(Act::Read, 0, Errno::IO.raw_os_error(), false);
    let error = file.read_exact_at(&mut [0; 512], 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
}

#[test]
fn the_file_ends_where_the_disk_does() {
    let room = Room::with(memory(ByteLen::new(10_000)));
    let file = room.open();
    assert_eq!(file.write_at(&[7; 4096], 8000).unwrap(), 2000, "up to the end");
    let error = file.write_at(&[7; 4096], 10_000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(file.read_at(&mut [0; 4096], 9_999).unwrap(), 1);
    assert_eq!(file.read_at(&mut [0; 4096], 1 << 40).unwrap(), 0);
    assert_eq!(file.metadata().unwrap().len(), 10_000);
}

#[test]
fn the_size_is_not_the_files_to_change_and_nothing_else_is() {
    let room = Room::with(memory(ByteLen::mib(1)));
    let file = room.open();
    file.write_all_at(b"kept", 0).unwrap();
    file.set_len(1 << 20).unwrap();
    for size in [0, 4096, 2 << 20] {
        assert_eq!(file.set_len(size).unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
    assert!(fs::write(room.path(), "cut first").is_err());
    assert!(fs::remove_file(room.path()).is_err());
    assert!(fs::write(room.mount.folder().join("new"), "").is_err());
    assert!(fs::create_dir(room.mount.folder().join("new")).is_err());
    assert!(fs::rename(room.path(), room.mount.folder().join("new")).is_err());
    assert!(fs::set_permissions(room.path(), fs::Permissions::from_mode(0o644)).is_err());
    let mut seen = [0; 4];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"kept");
}

#[test]
fn holes_can_be_punched_and_found() {
    let device = memory(ByteLen::mib(8));
    let room = Room::with(device.clone());
    let file = room.open();
    file.write_all_at(&vec![9; 3 << 20], 1 << 20).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 2 << 20, 1 << 20).unwrap();
    fallocate(&file, FallocateFlags::ZERO_RANGE, (3 << 20) + 100, 1000).unwrap();
    let now = device.to_vec();
    assert!(now[2 << 20..3 << 20].iter().all(|byte| *byte == 0));
    assert!(now[(3 << 20) + 100..(3 << 20) + 1100].iter().all(|byte| *byte == 0));
    assert!(now[1 << 20..2 << 20].iter().all(|byte| *byte == 9));
    let place = |from: SeekFrom| seek(&file, from).map(|at| at >> 20);
    assert_eq!(place(SeekFrom::Data(0)), Ok(1));
    assert_eq!(place(SeekFrom::Hole(1 << 20)), Ok(2));
    assert_eq!(place(SeekFrom::Data(2 << 20)), Ok(3));
    assert_eq!(place(SeekFrom::Hole(0)), Ok(0));
    assert_eq!(place(SeekFrom::Data(5 << 20)), Err(Errno::NXIO));
    assert_eq!(place(SeekFrom::Hole(8 << 20)), Err(Errno::NXIO));
    // What reaches past the end: a hole stops there, and zeros would make the file longer.
    fallocate(&file, punch, 7 << 20, 2 << 20).unwrap();
    assert_eq!(fallocate(&file, FallocateFlags::ZERO_RANGE, 7 << 20, 2 << 20), Err(Errno::NOSPC));
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 4096), Err(Errno::OPNOTSUPP));
}

#[test]
fn copying_programs_skip_what_is_not_there() {
    let device = memory(ByteLen::gib(64));
    device.write_at(ByteOffset::new(40 << 30), &[1; 5000]).unwrap();
    let room = Room::with(device);
    let copy = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    run("cp", &["--sparse=auto", room.path().to_str().unwrap(), copy.path().to_str().unwrap()]);
    let about = copy.as_file().metadata().unwrap();
    assert_eq!(about.len(), 64 << 30);
    assert!(about.blocks() * 512 < 1 << 20, "{} blocks", about.blocks());
    let mut bytes = [0; 5001];
    copy.as_file().read_exact_at(&mut bytes, 40 << 30).unwrap();
    assert_eq!((bytes[0], bytes[4999], bytes[5000]), (1, 1, 0));
}

#[test]
fn a_read_only_disk_cannot_be_opened_for_writing_even_by_root() {
    let exports = Exports::new();
    exports.add("disk", Export::new(memory(ByteLen::mib(1))).read_only()).unwrap();
    let room = Room::serving(exports);
    let error = OpenOptions::new().write(true).open(room.path()).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied),
        "{error}"
    );
    assert_eq!(fs::read(room.path()).unwrap().len(), 1 << 20);
}

#[test]
fn disks_come_and_go_while_the_folder_is_there() {
    let room = Room::with(memory(ByteLen::mib(1)));
    let file = room.open();
    file.write_all_at(b"first", 0).unwrap();
    let gone = room.exports.remove("disk").unwrap();
    drop(gone);
    assert_eq!(fs::metadata(room.path()).unwrap_err().kind(), ErrorKind::NotFound);
    // Whoever has it open keeps it.
    let mut seen = [0; 5];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!((&seen, file.metadata().unwrap().len()), (b"first", 1 << 20));
    // Another disk of the same name is another file.
    let second = memory(ByteLen::mib(2));
    let alive = Arc::downgrade(&second);
    room.exports.add("disk", Export::new(second)).unwrap();
    assert_eq!(fs::metadata(room.path()).unwrap().len(), 2 << 20);
    let other = room.open();
    other.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(seen, [0; 5]);
    file.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"first");
    // Nothing but an open file keeps a disk that is no longer served. The kernel says when one was
    // closed, and says so after the fact.
    room.exports.remove("disk").unwrap();
    drop(other);
    while alive.upgrade().is_some() {
        std::thread::yield_now();
    }
}

#[test]
fn many_programs_use_many_disks_at_once() {
    let exports = Exports::new();
    for disk in 0..4 {
        exports.add(&format!("disk{disk}"), Export::new(memory(ByteLen::mib(8)))).unwrap();
    }
    let room = Room::serving(exports);
    std::thread::scope(|scope| {
        for worker in 0..16_u8 {
            let path = room.mount.path_of(&format!("disk{}", worker % 4)).unwrap();
            scope.spawn(move || {
                let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
                let start = u64::from(worker / 4) * (2 << 20);
                for round in 0..20_u64 {
                    let at = start + round * 65536;
                    file.write_all_at(&[worker; 65536], at).unwrap();
                    file.sync_data().unwrap();
                    let mut bytes = vec![0; 65536];
                    file.read_exact_at(&mut bytes, at).unwrap();
                    assert!(bytes.iter().all(|byte| *byte == worker));
                }
            });
        }
    });
}

/// A disk with a bug.
struct Panics;

impl BlockDevice for Panics {
    fn size(&self) -> ByteLen {
        ByteLen::mib(1)
    }
    fn read_vectored_at(
        &self,
        at: ByteOffset,
        _buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        assert!(at.get() > 0, "a bug, on purpose");
        Ok(())
    }
    fn write_vectored_at(&self, _: ByteOffset, _: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        Ok(())
    }
    fn discard(&self, _: ByteOffset, _: ByteLen) -> Result<(), DeviceError> {
        Ok(())
    }
    fn write_zeroes(&self, _: ByteOffset, _: ByteLen, _: bool) -> Result<(), DeviceError> {
        Ok(())
    }
    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

#[test]
fn a_disk_that_panics_fails_its_own_requests_alone() {
    let room = Room::with(Arc::new(Panics));
    let file = room.open();
    for _ in 0..20 {
        let error = file.read_exact_at(&mut [0; 512], 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
    }
    file.read_exact_at(&mut [0; 512], 512).unwrap();
}
