//! Whose a folder is: taken, refused, cured and given back.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use kiln_block::{ByteLen, MemoryDevice};
use kiln_export::fuse::{Mount, MountError};
use kiln_export::{Export, Exports};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::room::{Room, empty_folder, mounted};

fn disk() -> Exports {
    Exports::one("disk", Export::new(Arc::new(MemoryDevice::new(ByteLen::mib(1))))).unwrap()
}

fn mounts_at(folder: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let folder = format!(" {} ", folder.display());
    table.lines().filter(|line| line.contains(&folder)).count()
}

/// What is left of a process that served a folder and was killed: a mount that nobody answers for.
fn leave_a_dead_mount(folder: &Path, kind: &str) {
    let kernel = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", kernel.as_raw_fd());
    let options = std::ffi::CString::new(options).unwrap();
    mount("dead", folder, kind, MountFlags::NODEV, options.as_c_str())
        .expect("these tests need root");
    drop(kernel);
    assert_eq!(
        fs::read_dir(folder).unwrap_err().raw_os_error(),
        Some(Errno::NOTCONN.raw_os_error())
    );
}

#[test]
fn the_folder_is_empty_again_when_the_mount_is_dropped() {
    let folder = empty_folder();
    let mount = mounted(folder.path(), disk());
    assert!(folder.path().join("disk").is_file());
    assert_eq!(mounts_at(folder.path()), 1);
    drop(mount);
    assert_eq!((mounts_at(folder.path()), fs::read_dir(folder.path()).unwrap().count()), (0, 0));
    assert!(!mounted(folder.path(), disk()).stop(), "nobody used it");
}

#[test]
fn whoever_still_uses_a_disk_when_the_folder_goes_is_cut_off() {
    let folder = empty_folder();
    let mount = mounted(folder.path(), disk());
    let file = fs::File::open(mount.path_of("disk").unwrap()).unwrap();
    assert!(mount.stop(), "somebody used it");
    assert_eq!(mounts_at(folder.path()), 0);
    assert!(file.read_at(&mut [0; 512], 0).is_err());
    drop(mounted(folder.path(), disk()));
}

#[test]
fn a_folder_that_is_served_already_is_refused() {
    let room = Room::serving(disk());
    let error = Mount::start(room.mount.folder(), disk()).unwrap_err();
    assert!(matches!(error, MountError::InUse { .. }), "{error}");
    assert!(room.path().is_file(), "and goes on being served");
}

#[test]
fn of_servers_that_race_for_a_folder_one_wins() {
    let folder = empty_folder();
    let barrier = std::sync::Barrier::new(4);
    let race = || {
        barrier.wait();
        Mount::start(folder.path(), disk())
    };
    let mounts: Vec<Mount> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..4).map(|_| scope.spawn(race)).collect();
        racers.into_iter().filter_map(|racer| racer.join().unwrap().ok()).collect()
    });
    assert_eq!((mounts.len(), mounts_at(folder.path())), (1, 1));
    assert!(mounts[0].path_of("disk").unwrap().is_file());
}

#[test]
fn files_are_not_hidden() {
    let folder = empty_folder();
    fs::write(folder.path().join("precious"), "").unwrap();
    let error = Mount::start(folder.path(), disk()).unwrap_err();
    assert!(matches!(error, MountError::NotEmpty { .. }), "{error}");
    let error = Mount::start(&folder.path().join("nowhere"), disk()).unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
    let error = Mount::start(&folder.path().join("precious"), disk()).unwrap_err();
    assert!(matches!(error, MountError::Io { act: "open", .. }), "{error}");
}

#[test]
fn what_a_killed_server_left_is_replaced() {
    let folder = empty_folder();
    leave_a_dead_mount(folder.path(), "fuse.kiln");
    let mount = mounted(folder.path(), disk());
    assert!(mount.path_of("disk").unwrap().is_file());
    assert_eq!(mounts_at(folder.path()), 1);
}

#[test]
fn what_another_program_left_is_not_ours_to_clear() {
    let folder = empty_folder();
    leave_a_dead_mount(folder.path(), "fuse.other");
    let error = Mount::start(folder.path(), disk()).unwrap_err();
    assert_eq!(mounts_at(folder.path()), 1);
    unmount(folder.path(), UnmountFlags::DETACH).unwrap();
    assert!(matches!(error, MountError::InUse { .. }), "{error}");
}

#[test]
fn a_folder_that_somebody_unmounted_is_not_unmounted_again() {
    let folder = empty_folder();
    let first = mounted(folder.path(), disk());
    unmount(folder.path(), UnmountFlags::empty()).unwrap();
    mount("other", folder.path(), "tmpfs", MountFlags::NODEV, None).unwrap();
    first.stop();
    assert_eq!(mounts_at(folder.path()), 1, "another mount is another's");
    unmount(folder.path(), UnmountFlags::empty()).unwrap();
}

#[test]
fn fusermount3_mounts_for_those_who_may_not() {
    let folder = empty_folder();
    let mount = Mount::start_unprivileged(folder.path(), disk())
        .unwrap_or_else(|error| panic!("{error}; `script/bootstrap --with-tests` installs it"));
    fs::write(mount.folder().join("x"), "").unwrap_err();
    let path = mount.path_of("disk").unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.write_all_at(b"through the helper", 0).unwrap();
    assert!(fs::read(&path).unwrap().starts_with(b"through the helper"));
    drop(file);
    assert!(!mount.stop());
    assert_eq!(mounts_at(folder.path()), 0);
    let error = fs::metadata(path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
