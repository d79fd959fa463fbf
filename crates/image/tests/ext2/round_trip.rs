//! What was put in comes out again.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use kiln_block::{ByteLen, ReadOnly};
use kiln_image::ext2::{Mapping, Options, Plan, Time, Tree};
use kiln_image::inventory::Inventory;
use proptest::prelude::*;
use rustix::fs::{FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::debugged::same_debugged;
use super::reader::{self, File};
use super::{check, debugfs, image, is_root, long, plan, tool};

/// Every file of a plan is what the source has, and nothing else is there.
pub(crate) fn same(plan: Plan, source: &Path) -> BTreeMap<Vec<u8>, File> {
    let disk = reader::read(&ReadOnly(plan));
    let mut left = disk.clone();
    let mut lost = left.remove(&b"/lost+found"[..]).unwrap();
    lost.links = 2;
    assert_eq!((lost.inode, lost.mode, lost.uid), (11, 0o040_700, 0));
    let mut inodes: BTreeMap<u64, u32> = BTreeMap::new();
    let mut ahead = vec![(source.to_owned(), Vec::new())];
    while let Some((path, name)) = ahead.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let file = left.remove(&name).unwrap_or_else(|| panic!("{} is missing", path.display()));
        let shown = path.display();
        assert_eq!(u32::from(file.mode), meta.mode(), "mode of {shown}");
        assert_eq!((file.uid, file.gid), (meta.uid(), meta.gid()), "owner of {shown}");
        let modified = (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap());
        assert_eq!(file.modified, modified, "time of {shown}");
        let inode = *inodes.entry(meta.ino()).or_insert(file.inode);
        assert_eq!(inode, file.inode, "hard links of {shown}");
        if meta.is_file() {
            assert_eq!(u64::from(file.links), meta.nlink(), "links of {shown}");
            assert!(file.content == fs::read(&path).unwrap(), "content of {shown}");
        } else if meta.is_symlink() {
            let target = fs::read_link(&path).unwrap();
            assert_eq!(file.content, target.as_os_str().as_bytes(), "target of {shown}");
        } else if meta.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                let entry = entry.unwrap();
                let mut below = name.clone();
                below.push(b'/');
                below.extend_from_slice(entry.file_name().as_bytes());
                ahead.push((entry.path(), below));
            }
        } else {
            let device = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
            assert_eq!(file.device, device, "device of {shown}");
        }
    }
    assert!(left.is_empty(), "more than the source has: {left:?}");
    disk
}

pub(crate) fn set_time(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
}

/// A bit of everything that any user can make.
pub(crate) fn assorted(root: &Path) {
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("a/one"), b"x").unwrap();
    fs::write(root.join("a/block"), vec![7; 4096]).unwrap();
    fs::write(root.join("a/direct"), vec![8; 12 * 4096]).unwrap();
    let large: Vec<u8> = (0..5_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    fs::write(root.join("a/b/double"), &large[..5_300_001]).unwrap();
    fs::hard_link(root.join("a/one"), root.join("a/b/two")).unwrap();
    fs::hard_link(root.join("a/one"), root.join("three")).unwrap();
    symlink("a/one", root.join("short")).unwrap();
    symlink("x".repeat(59), root.join("longest-short")).unwrap();
    symlink("x".repeat(60), root.join("shortest-long")).unwrap();
    symlink("y/".repeat(2000), root.join("long")).unwrap();
    fs::write(root.join("n".repeat(255)), b"longest name").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"odd \xff\x01\n\"\\")), b"odd").unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(root.join("a/b/c"), fs::Permissions::from_mode(0o3770)).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), FileType::Fifo, Mode::from(0o640), 0)
        .unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(30 << 20).unwrap();
    sparse.write_all_at(b"start", 0).unwrap();
    sparse.write_all_at(b"middle", (9 << 20) + 100).unwrap();
    sparse.write_all_at(b"end", (30 << 20) - 3).unwrap();
    set_time(&root.join("a/one"), -5, 999_999_999);
    set_time(&root.join("short"), 0, 1);
    set_time(&root.join("empty"), 1 << 32, 500);
    set_time(&root.join("a"), 4_102_444_800, 0);
}

#[test]
fn an_assorted_tree_survives_to_the_last_nanosecond() {
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assorted(source.path());
    image(&plan(source.path(), &Options::default()), folder.path());
    let disk = same(plan(source.path(), &Options::default()), source.path());
    let sectors = disk[&b"/sparse"[..]].sectors;
    assert!(sectors <= 200, "holes stay holes: {sectors} sectors");
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assorted(source.path());
    let options = Options { epoch: Some(1_700_000_000), ..Options::default() };
    let bytes = || fs::read(image(&plan(source.path(), &options), folder.path())).unwrap();
    let first = bytes();
    assert!(first == bytes());
    assert_ne!(&first[1024 + 104..1024 + 120], [0; 16], "it has an identity");
    let disk = reader::read(&ReadOnly(plan(source.path(), &options)));
    let latest = disk.values().map(|file| file.modified).max().unwrap();
    assert_eq!(latest, (1_700_000_000, 0), "no time is later than SOURCE_DATE_EPOCH");
}

/// Neither the order in which files were made shows, nor their numbers on the host, nor when it was done.
#[test]
fn the_same_files_elsewhere_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let written = |backwards: bool| {
        let source = tempfile::tempdir().unwrap();
        let mut numbers: Vec<u32> = (0..300).collect();
        if backwards {
            numbers.reverse();
        }
        fs::create_dir(source.path().join("many")).unwrap();
        for number in numbers {
            let name = format!("many/{number} {}", "n".repeat(150));
            fs::write(source.path().join(name), number.to_string()).unwrap();
        }
        let pair = if backwards { ["b", "a"] } else { ["a", "b"] };
        fs::write(source.path().join(pair[0]), "linked").unwrap();
        fs::hard_link(source.path().join(pair[0]), source.path().join(pair[1])).unwrap();
        let options = Options { epoch: Some(1_000_000_000), ..Options::default() };
        fs::read(image(&plan(source.path(), &options), folder.path())).unwrap()
    };
    assert!(written(false) == written(true));
}

#[test]
fn free_space_is_as_asked_for() {
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(source.path().join("file"), vec![1; 100_000]).unwrap();
    for mib in [0, 3, 127, 128, 300, 5000] {
        let options = Options { free: ByteLen::mib(mib), ..Options::default() };
        let plan = plan(source.path(), &options);
        let free = plan.summary().free.get();
        assert!(free >= mib << 20 && free < (mib + 1) << 20, "{mib} MiB: {free}");
        image(&plan, folder.path());
    }
}

#[test]
fn later_sources_lie_over_earlier_ones() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(one.path().join("both")).unwrap();
    fs::write(one.path().join("both/kept"), b"1").unwrap();
    fs::write(one.path().join("both/replaced"), b"1").unwrap();
    fs::create_dir(two.path().join("both")).unwrap();
    fs::write(two.path().join("both/replaced"), b"2").unwrap();
    let mut tree = Tree::new();
    tree.add_directory(one.path()).unwrap();
    tree.add_directory(two.path()).unwrap();
    let disk = reader::read(&ReadOnly(Plan::new(tree, &Options::default()).unwrap()));
    assert_eq!(disk[&b"/both/kept"[..]].content, b"1");
    assert_eq!(disk[&b"/both/replaced"[..]].content, b"2");
}

#[test]
fn an_empty_inventory_is_an_empty_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut tree = Tree::new();
    tree.add_inventory(&Inventory::default(), Time::default()).unwrap();
    let plan = Plan::new(tree, &Options::default()).unwrap();
    image(&plan, folder.path());
    assert_eq!(reader::read(&ReadOnly(plan)).len(), 2, "the root and lost+found");
}

pub(crate) fn set(path: &Path, name: &str, value: &[u8]) -> bool {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).is_ok()
}

/// Where attributes cannot be set, as on some file systems, there is nothing to compare.
#[test]
fn extended_attributes_survive_in_the_inode_and_in_shared_blocks() {
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| source.path().join(name);
    for name in ["none", "small", "large", "both", "shared1", "shared2"] {
        fs::write(at(name), name).unwrap();
    }
    if !set(&at("small"), "user.small", b"value") {
        return;
    }
    assert!(set(&at("large"), "user.large", &[b'L'; 900]) && set(&at("large"), "user.none", b""));
    assert!(set(&at("both"), "user.a", &[b'a'; 40]) && set(&at("both"), "user.b", &[b'b'; 60]));
    for name in ["shared1", "shared2"] {
        assert!(set(&at(name), "user.same", &[b's'; 200]));
    }
    let image = image(&plan(source.path(), &Options::default()), folder.path());
    let get = |file: &str, name: &str| debugfs(&image, &format!("ea_get -x {file} {name}"));
    assert!(debugfs(&image, "ea_list small").contains("user.small (5) = \"value\""));
    assert!(
        get("large", "user.large").contains(&"4c ".repeat(8)),
        "{}",
        get("large", "user.large")
    );
    let listed = debugfs(&image, "ea_list large");
    assert!(listed.contains("user.large (900)") && listed.contains("user.none (0)"), "{listed}");
    let block = |file: &str| {
        let shown = debugfs(&image, &format!("stat {file}"));
        let line = shown.lines().find(|line| line.starts_with("File ACL:")).unwrap().to_owned();
        line.split_whitespace().nth(2).unwrap().to_owned()
    };
    assert_eq!(block("small"), "0", "a short one lies in the inode");
    assert_ne!(block("shared1"), "0");
    assert_eq!(block("shared1"), block("shared2"), "equal ones are stored once");
}

/// A capability (v2: `cap_net_raw+ep`) and an access control list, as the kernel gives them out. Only
/// root may set the first.
#[test]
fn capabilities_lists_and_devices_survive() {
    if !is_root() {
        return;
    }
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| source.path().join(name);
    fs::write(at("ping"), "ping").unwrap();
    fs::create_dir(at("folder")).unwrap();
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let has_capability = set(&at("ping"), "security.capability", &capability);
    let mut list = vec![2, 0, 0, 0];
    for (tag, permissions, id) in [
        (1_u16, 7_u16, u32::MAX),
        (2, 5, 4711),
        (4, 5, u32::MAX),
        (16, 5, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        list.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        list.extend(id.to_le_bytes());
    }
    let has_list = set(&at("folder"), "system.posix_acl_default", &list)
        && set(&at("ping"), "system.posix_acl_access", &list);
    let mut has_devices = true;
    for (name, kind, major, minor) in [
        ("null", FileType::CharacterDevice, 1, 3),
        ("large", FileType::BlockDevice, 259, 1_000_000),
        ("wide", FileType::CharacterDevice, 4000, 256),
    ] {
        let device = rustix::fs::makedev(major, minor);
        has_devices &=
            rustix::fs::mknodat(rustix::fs::CWD, at(name), kind, Mode::from(0o600), device).is_ok();
    }
    std::os::unix::fs::lchown(at("ping"), Some(1 << 31), Some(70_000)).unwrap();
    // A change of owner takes a capability away.
    let has_capability = has_capability && set(&at("ping"), "security.capability", &capability);

    let image = image(&plan(source.path(), &Options::default()), folder.path());
    let listed = debugfs(&image, "ea_list ping");
    if has_capability {
        let found = debugfs(&image, "ea_get -x ping security.capability");
        assert!(found.contains("01 00 00 02 00 20"), "{found} {listed}");
    }
    if has_list {
        let folder = debugfs(&image, "ea_list folder");
        assert!(folder.contains("system.posix_acl_default (28)"), "{folder}");
        assert!(listed.contains("system.posix_acl_access (28)"), "{listed}");
    }
    let disk = same(plan(source.path(), &Options::default()), source.path());
    assert_eq!(disk[&b"/ping"[..]].uid, 1 << 31);
    if has_devices {
        assert_eq!(disk[&b"/large"[..]].device, (259, 1_000_000));
    }
    if long() {
        mounted(&image, folder.path(), "ext2", |mount| {
            assert_eq!(fs::symlink_metadata(mount.join("ping")).unwrap().gid(), 70_000);
            let mut value = [0; 256];
            if has_capability {
                let path = mount.join("ping");
                let len =
                    rustix::fs::lgetxattr(&path, "security.capability", &mut value[..]).unwrap();
                assert_eq!(value[..len], capability);
            }
            if has_list {
                let path = mount.join("folder");
                let len = rustix::fs::lgetxattr(&path, "system.posix_acl_default", &mut value[..])
                    .unwrap();
                assert_eq!(value[..len], list);
            }
        });
    }
}

/// Mounts an image as a kind of file system, for what is then done.
pub(crate) fn mounted(image: &Path, folder: &Path, kind: &str, act: impl FnOnce(&Path)) {
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            drop(std::process::Command::new("umount").arg(&self.0).status());
        }
    }
    let mount = folder.join("mount");
    fs::create_dir(&mount).unwrap();
    let status = std::process::Command::new("mount")
        .args(["-t", kind, "-o", "loop,ro"])
        .args([image, &mount])
        .status()
        .unwrap();
    assert!(status.success(), "root with KILN_LONG=1 must be able to mount");
    let mounted = Mounted(mount);
    act(&mounted.0);
}

/// The kernel agrees. Needs root and a loop device, so it is a long test.
#[test]
fn the_kernel_reads_what_was_written() {
    if !long() || !is_root() {
        return;
    }
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assorted(source.path());
    for number in 0..3000 {
        fs::write(source.path().join(format!("a/b/{number:0>90}")), "x").unwrap();
    }
    let image = image(&plan(source.path(), &Options::default()), folder.path());
    mounted(&image, folder.path(), "ext2", |mount| {
        let output = std::process::Command::new("diff")
            .args(["-r", "--no-dereference"])
            .args([source.path(), mount])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let said: Vec<&str> = said
            .lines()
            .filter(|line| !line.ends_with(": lost+found") && !line.contains("is a fifo"))
            .collect();
        assert!(said.is_empty(), "{said:?}");
        // Each name is found by its hash, and each time is the source's.
        for number in 0..3000 {
            fs::metadata(mount.join(format!("a/b/{number:0>90}"))).unwrap();
        }
        for name in ["a/one", "short", "empty", "a"] {
            let of = |root: &Path| {
                let meta = fs::symlink_metadata(root.join(name)).unwrap();
                (meta.mtime(), meta.mtime_nsec(), meta.mode(), meta.nlink(), meta.size())
            };
            let (here, there) = (of(source.path()), of(mount));
            assert_eq!((here.0, here.1, here.2), (there.0, there.1, there.2), "{name}");
        }
    });
}

/// A directory of the machine itself, when there is time.
#[test]
fn the_machines_own_programs_survive() {
    if !long() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let options = Options { free: ByteLen::mib(10), ..Options::default() };
    let path = image(&plan(Path::new("/usr"), &options), folder.path());
    tool("dumpe2fs").arg("-h").arg(&path).output().unwrap();
    check(&path);
}

#[derive(Clone, Debug)]
enum Made {
    Folder,
    File(usize, u8),
    Sparse(u64, Vec<(u64, u8)>),
    Link(String),
    Again(prop::sample::Index),
}

fn made() -> impl Strategy<Value = Made> {
    prop_oneof![
        2 => Just(Made::Folder),
        4 => (0_usize..20_000, any::<u8>()).prop_map(|(len, byte)| Made::File(len, byte)),
        1 => (0_u64..9 << 20, prop::collection::vec((0_u64..9 << 20, 1_u8..), 0..4))
            .prop_map(|(len, bytes)| Made::Sparse(len, bytes)),
        2 => "[a-z/.]{1,200}".prop_map(Made::Link),
        1 => any::<prop::sample::Index>().prop_map(Made::Again),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn any_tree_survives(
        entries in prop::collection::vec(
            (any::<prop::sample::Index>(), "[a-zA-Z0-9 _.-]{1,60}", made(), 0o400_u32..0o1000, any::<u32>()),
            0..60,
        ),
        free in 0_u64..2 << 20,
        extents: bool,
    ) {
        let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut folders = vec![source.path().to_owned()];
        let mut files = Vec::new();
        for (parent, name, made, permissions, seconds) in entries {
            let path = folders[parent.index(folders.len())].join(name);
            if path.file_name().is_none() || path.ends_with("..") || path.symlink_metadata().is_ok() {
                continue;
            }
            match made {
                Made::Folder => {
                    fs::create_dir(&path).unwrap();
                    folders.push(path);
                    continue;
                }
                Made::File(len, byte) => fs::write(&path, vec![byte; len]).unwrap(),
                Made::Sparse(len, bytes) => {
                    let file = fs::File::create(&path).unwrap();
                    file.set_len(len).unwrap();
                    for (at, byte) in bytes.into_iter().filter(|(at, _)| *at < len) {
                        file.write_all_at(&[byte], at).unwrap();
                    }
                }
                Made::Link(target) => {
                    symlink(target, &path).unwrap();
                    continue;
                }
                Made::Again(_) if files.is_empty() => continue,
                Made::Again(which) => {
                    let there: &std::path::PathBuf = which.get(&files);
                    fs::hard_link(there, &path).unwrap();
                    continue;
                }
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(permissions)).unwrap();
            set_time(&path, seconds.into(), 1);
            files.push(path);
        }
        let mapping = if extents { Mapping::Extents } else { Mapping::Tables };
        let options = Options { free: ByteLen::new(free), mapping, ..Options::default() };
        let written = image(&plan(source.path(), &options), folder.path());
        same_debugged(source.path(), &written, folder.path());
        let first = fs::read(written).unwrap();
        let second = fs::read(image(&plan(source.path(), &options), folder.path())).unwrap();
        prop_assert!(first == second, "byte-identical twice");
        same(plan(source.path(), &options), source.path());
    }
}
