//! The devices that need no format keep the contract of `BlockDevice`.
#![cfg(feature = "testing")]

use std::io::IoSlice;

use kiln_block::testing::{Abilities, Act, CrashDisk, Dice, FaultDisk, GateDisk, conforms};
use kiln_block::{
    BlockDevice, ByteLen, ByteOffset, DeviceError, ExtentKind, FileDevice, MemoryDevice, zeros,
};

const ANY: Abilities = Abilities { granularity: 1, writable: true };

#[test]
fn memory_file_and_test_disks_conform() {
    conforms(&MemoryDevice::new(ByteLen::new((3 << 20) + 513)), ANY);
    conforms(&CrashDisk::new(ByteLen::mib(1)), ANY);
    conforms(&FaultDisk::new(MemoryDevice::new(ByteLen::mib(2))), ANY);
    conforms(&GateDisk::new(MemoryDevice::new(ByteLen::mib(2)), |_, _| true), ANY);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    conforms(&FileDevice::create(&path, ByteLen::mib(2)).unwrap(), ANY);
    conforms(
        &FileDevice::open(&path, true).unwrap(),
        Abilities { granularity: 1, writable: false },
    );
    conforms(&zeros(ByteLen::gib(4)), Abilities { granularity: 1, writable: false });
}

#[test]
fn a_file_shows_its_holes() {
    let folder = tempfile::tempdir().unwrap();
    let device = FileDevice::create(&folder.path().join("disk"), ByteLen::mib(8)).unwrap();
    device.write_at(ByteOffset::new(4 << 20), &[1; 65536]).unwrap();
    let extents = device.extents(ByteOffset::ZERO, ByteLen::mib(8)).unwrap();
    let kinds: Vec<ExtentKind> = extents.iter().map(|extent| extent.kind).collect();
    assert_eq!(kinds, [ExtentKind::Hole, ExtentKind::Data, ExtentKind::Hole]);
    device.discard(ByteOffset::new(4 << 20), ByteLen::kib(64)).unwrap();
    let extents = device.extents(ByteOffset::ZERO, ByteLen::mib(8)).unwrap();
    assert_eq!(extents.len(), 1, "a discard gives the space back: {extents:?}");
}

/// However its buffers are cut: calls write some of them together and others in pieces.
#[test]
fn a_long_write_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let disk = FileDevice::create(&path, ByteLen::mib(2)).unwrap();
    let mut bytes = vec![0; 1 << 20];
    Dice::seeded(1).fill(&mut bytes);
    let mut rest = bytes.as_slice();
    let mut buffers = Vec::new();
    for len in [1, 65_535, 1, 65_536, 200_000, 0, 30_000, 30_000, 30_000, usize::MAX] {
        let (buffer, after) = rest.split_at(len.min(rest.len()));
        buffers.push(IoSlice::new(buffer));
        rest = after;
    }
    disk.write_vectored_at(ByteOffset::new(4096), &buffers).unwrap();
    assert!(std::fs::read(&path).unwrap()[4096..][..1 << 20] == bytes);
}

#[test]
fn a_folder_is_not_a_disk() {
    let folder = tempfile::tempdir().unwrap();
    let error = FileDevice::open(folder.path(), true).unwrap_err();
    assert!(error.to_string().contains("neither a regular file nor a block device"), "{error}");
}

#[test]
fn a_fault_strikes_the_call_it_was_told_to() {
    let disk = FaultDisk::new(MemoryDevice::new(ByteLen::mib(1)));
    disk.fail(Act::Write, 1, 28, false);
    disk.write_at(ByteOffset::ZERO, &[1; 512]).unwrap();
    let error = disk.write_at(ByteOffset::ZERO, &[2; 1024]).unwrap_err();
    assert!(matches!(error, DeviceError::NoSpace { .. }), "{error}");
    disk.write_at(ByteOffset::ZERO, &[3; 512]).unwrap();
}

#[test]
fn a_power_cut_keeps_what_was_flushed_and_any_part_of_the_rest() {
    let disk = CrashDisk::new(ByteLen::kib(8));
    disk.write_at(ByteOffset::ZERO, &[1; 1024]).unwrap();
    disk.flush().unwrap();
    disk.write_at(ByteOffset::ZERO, &[2; 1024]).unwrap();
    assert_eq!(disk.steps(), 3);
    let before = disk.images_a_power_cut_may_leave(2, 4, 1);
    assert!(before.iter().all(|image| image[..1024] == [1; 1024]));
    let mut seen: Vec<(u8, u8)> = disk
        .images_a_power_cut_may_leave(3, 4, 1)
        .iter()
        .map(|image| (image[0], image[512]))
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, [(1, 1), (1, 2), (2, 1), (2, 2)]);
}
