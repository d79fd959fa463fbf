//! A tree of all extremes at once, and whole systems, through all readers. `KILN_LONG=1` makes the tree as large as
//! ext2 lets it be; `KILN_TEST_TREES` names directories, with colons between them, that are taken through the same.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use kiln_block::{BlockDevice as _, ByteLen, ByteOffset, ExtentKind, ReadOnly};
use kiln_image::ext2::{Mapping, Options};
use rustix::fs::{CWD, FileType, Mode};

use super::debugged::same_debugged;
use super::faithful::{same_mounted, same_viewed};
use super::round_trip::{mounted, set, set_time};
use super::{image, is_root, long, plan};

/// Makes one of everything, and much of some things.
fn everything(root: &Path) {
    let scale = |all: u32, few: u32| if long() { all } else { few };
    let at = |name: &str| root.join(name);
    names(&at("names"));
    fs::create_dir(at("many")).unwrap();
    for number in 0..scale(65_000, 2000) {
        fs::write(root.join(format!("many/entry number {number}")), number.to_string()).unwrap();
    }
    fs::create_dir(at("folders")).unwrap();
    for number in 0..scale(32_000, 400) {
        fs::create_dir(root.join(format!("folders/{number}"))).unwrap();
    }
    fs::create_dir(at("links")).unwrap();
    fs::write(at("links/first"), "of many").unwrap();
    for number in 1..scale(60_000, 400) {
        fs::hard_link(at("links/first"), root.join(format!("links/{number}"))).unwrap();
    }
    let mut deep = at("deep");
    (0..200).for_each(|level| deep.push(format!("level {level}")));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), "reached").unwrap();

    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len((10 << 30) + 4097).unwrap();
    let ends = [0, 47 << 10, 48 << 10, 4 << 20, (4 << 20) + (48 << 10), 4 << 30, 5 << 30, 10 << 30];
    for place in ends.into_iter().chain((1 << 30..(1 << 30) + (40 << 20)).step_by(16 << 10)) {
        sparse.write_all_at(format!("at {place}").as_bytes(), place).unwrap();
    }
    let dense = fs::File::create(at("dense")).unwrap();
    let mut piece = vec![0xa5; 1 << 20];
    for number in 0..u64::from(scale(5 << 10, 40)) {
        piece[..8].copy_from_slice(&(number | 1 << 63).to_le_bytes());
        dense.write_all_at(&piece, number << 20).unwrap();
    }
    for (target, name) in [(59, "in the inode"), (60, "in a block"), (4095, "longest")] {
        let parts: String = "t/".chars().cycle().take(target).collect();
        symlink(parts, at(name)).unwrap();
    }
    rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::from(0o604), 0).unwrap();
    rustix::fs::mknodat(CWD, at("socket"), FileType::Socket, Mode::from(0o640), 0).unwrap();
    for (seconds, name) in
        [(-1, "before 1970"), (i64::from(i32::MIN), "1901"), (1 << 31, "2038"), (1 << 32, "2106")]
    {
        fs::write(at(name), name).unwrap();
        set_time(&at(name), seconds, 123_456_789);
    }
    attributes(root);
    if is_root() {
        owned(root);
    }
    set_time(&at("names"), -1, 1);
}

/// Each byte that a name may have, and names as long as they may be.
fn names(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for byte in (1..=u8::MAX).filter(|byte| *byte != b'/' && *byte != b'.') {
        fs::write(folder.join(OsStr::from_bytes(&[byte])), [byte]).unwrap();
        let mut long = [byte; 255];
        long[254] = !byte | 0x40;
        fs::write(folder.join(OsStr::from_bytes(&long)), long).unwrap();
    }
    for name in ["...", "..x", " ", "-rf", "new\nline", "\u{202e}tfel"] {
        fs::write(folder.join(name), name).unwrap();
    }
}

fn attributes(root: &Path) {
    for (name, sizes) in [("small", &[5][..]), ("large", &[3000]), ("several", &[40, 60, 0, 500])] {
        let path = root.join(format!("attributes {name}"));
        fs::write(&path, name).unwrap();
        for (number, size) in sizes.iter().enumerate() {
            set(&path, &format!("user.number{number}"), &vec![b'v'; *size]);
        }
        set(&path, "user.\u{e4}\u{df} odd", &[0xff; 100]);
    }
}

/// What only root can make. A root of few users, as containers have, may not do all of it: then less is compared.
fn owned(root: &Path) {
    let at = |name: &str| root.join(name);
    for (name, uid, gid) in [("uid", 1 << 31, 70_000), ("largest", u32::MAX - 1, u32::MAX - 1)] {
        fs::write(at(name), name).unwrap();
        let _ = std::os::unix::fs::lchown(at(name), Some(uid), Some(gid));
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o7751)).unwrap();
    }
    symlink("uid", at("link of others")).unwrap();
    let _ = std::os::unix::fs::lchown(at("link of others"), Some(12), Some(13));
    for (name, kind, major, minor) in [
        ("null", FileType::CharacterDevice, 1, 3),
        ("disk", FileType::BlockDevice, 259, 1_000_000),
        ("wide", FileType::CharacterDevice, 4000, 256),
        ("last", FileType::BlockDevice, 4095, 0xf_ffff),
    ] {
        let device = rustix::fs::makedev(major, minor);
        let _ = rustix::fs::mknodat(CWD, at(name), kind, Mode::from(0o600), device);
    }
    fs::write(at("capable"), "").unwrap();
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set(&at("capable"), "security.capability", &capability);
    set(&at("capable"), "trusted.note", b"trusted");
    let mut list = vec![2, 0, 0, 0];
    for (tag, permissions, id) in [
        (1_u16, 7_u16, u32::MAX),
        (2, 5, 4711),
        (4, 5, u32::MAX),
        (8, 6, 1 << 31),
        (16, 7, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        list.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        list.extend(id.to_le_bytes());
    }
    fs::create_dir(at("listed")).unwrap();
    set(&at("listed"), "system.posix_acl_default", &list);
    set(&at("listed"), "system.posix_acl_access", &list);
}

/// Through e2fsck, debugfs, `ext4-view`, and where it may be mounted the kernel; then whether a second plan is the same disk.
fn faithful(source: &Path, work: &Path, mapping: Mapping) {
    let options = Options { mapping, free: ByteLen::mib(1), ..Options::default() };
    let image = image(&plan(source, &options), work);
    let viewed = same_viewed(source, &image, mapping);
    assert_eq!(same_debugged(source, &image, work), viewed);
    if long() && is_root() {
        let kind = if mapping == Mapping::Tables { "ext2" } else { "ext4" };
        mounted(&image, work, kind, |mount| assert_eq!(same_mounted(source, mount), viewed));
        fs::remove_dir(work.join("mount")).unwrap();
    }
    let again = ReadOnly(plan(source, &options));
    let written = fs::File::open(&image).unwrap();
    assert_eq!(written.metadata().unwrap().len(), again.size().get());
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for extent in again.extents(ByteOffset::ZERO, again.size()).unwrap() {
        if extent.kind == ExtentKind::Hole && extent.len.get() > 1 << 30 {
            continue;
        }
        let end = extent.at.get() + extent.len.get();
        for at in (extent.at.get()..end).step_by(1 << 20) {
            let len = usize::try_from(end - at).unwrap().min(1 << 20);
            written.read_exact_at(&mut one[..len], at).unwrap();
            again.read_at(ByteOffset::new(at), &mut other[..len]).unwrap();
            assert!(one[..len] == other[..len], "another disk from {at} on");
        }
    }
    fs::remove_file(image).unwrap();
}

#[test]
fn a_tree_of_all_extremes_is_the_same_to_every_reader() {
    let (source, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    everything(source.path());
    for mapping in [Mapping::Tables, Mapping::Extents] {
        faithful(source.path(), work.path(), mapping);
    }
}

/// Whole systems, when somebody names some: `KILN_LONG=1 KILN_TEST_TREES=/usr:/srv/debian`.
#[test]
fn named_trees_are_the_same_to_every_reader() {
    let trees = std::env::var_os("KILN_TEST_TREES").unwrap_or_default();
    let work = tempfile::tempdir().unwrap();
    for tree in std::env::split_paths(&trees).filter(|tree| !tree.as_os_str().is_empty()) {
        faithful(&tree, work.path(), Mapping::Tables);
    }
}
