//! A loop device over a disk's file: an ext4 that is made, used, trimmed and checked.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_block::testing::{Act, Dice, FaultDisk};
use kiln_block::{BlockDevice, ByteLen, ByteOffset, ExtentKind, MemoryDevice};

use crate::room::{Room, run};

/// An attached loop device; detached when the test ends, also when it fails.
struct Loop(String);

impl Loop {
    fn over(room: &Room) -> Loop {
        let file = room.path();
        let arguments = ["--find", "--show", "--direct-io=on", file.to_str().unwrap()];
        Loop(run("losetup", &arguments).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // A mount of it that a failing test left goes away with its last user, and then so does the device.
        let _ = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// A mounted file system; unmounted when the test ends.
struct Mounted(PathBuf);

impl Mounted {
    fn on(device: &Loop, folder: &std::path::Path) -> Mounted {
        run("mount", &["-t", "ext4", &device.0, folder.to_str().unwrap()]);
        Mounted(folder.to_owned())
    }

    fn unmount(self) {
        run("umount", &[self.0.to_str().unwrap()]);
        std::mem::forget(self);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn data_bytes(device: &dyn BlockDevice) -> u64 {
    let extents = device.extents(ByteOffset::ZERO, device.size()).unwrap();
    extents.iter().filter(|e| e.kind == ExtentKind::Data).map(|e| e.len.get()).sum()
}

#[test]
fn a_loop_device_carries_an_ext4_that_survives_use_and_gives_back_what_it_trims() {
    let device = Arc::new(FaultDisk::new(MemoryDevice::new(ByteLen::mib(128))));
    let room = Room::with(device.clone());
    let disk = Loop::over(&room);
    let told = run("losetup", &["--list", "--noheadings", "--output", "DIO,SIZELIMIT", &disk.0]);
    assert!(told.trim_start().starts_with('1'), "direct I/O is on: {told}");
    run("mkfs.ext4", &["-q", "-F", &disk.0]);
    let mut bytes = vec![0; 40 << 20];
    Dice::seeded(11).fill(&mut bytes);
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let mounted = Mounted::on(&disk, folder.path());
    let file = folder.path().join("file");
    fs::write(&file, &bytes).unwrap();
    let before = device.calls(Act::Flush);
    fs::File::open(&file).unwrap().sync_all().unwrap();
    assert!(device.calls(Act::Flush) > before, "an fsync in the file system reaches the disk");
    mounted.unmount();
    let mounted = Mounted::on(&disk, folder.path());
    assert!(fs::read(&file).unwrap() == bytes);
    let full = data_bytes(device.as_ref());
    assert!(full >= 40 << 20);
    fs::remove_file(&file).unwrap();
    run("sync", &["--file-system", folder.path().to_str().unwrap()]);
    run("fstrim", &[folder.path().to_str().unwrap()]);
    let trimmed = data_bytes(device.as_ref());
    assert!(trimmed + (32 << 20) < full, "{trimmed} of {full} bytes are left after a trim");
    mounted.unmount();
    run("e2fsck", &["-f", "-n", &disk.0]);
}
