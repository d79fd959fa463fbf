//! Disks whose files' blocks are found by extents: ext4 without a journal.

use std::fs;
use std::os::unix::fs::FileExt as _;

use kiln_block::{ByteLen, ReadOnly};
use kiln_image::ext2::{Mapping, Options, Plan};

use super::round_trip::{assorted, mounted, same};
use super::{debugfs, image, is_root, long, plan, reader, tool};

fn extents() -> Options {
    Options { mapping: Mapping::Extents, ..Options::default() }
}

#[test]
fn an_assorted_tree_survives_in_extents() {
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assorted(source.path());
    let image = image(&plan(source.path(), &extents()), folder.path());
    let disk = same(plan(source.path(), &extents()), source.path());
    for (name, depth) in [("/empty", Some(0)), ("/a/b/double", Some(0)), ("/a", Some(0))] {
        assert_eq!(disk[name.as_bytes()].depth, depth, "{name}");
    }
    for name in ["/short", "/pipe"] {
        assert_eq!(disk[name.as_bytes()].depth, None, "{name} has no blocks");
    }
    let sectors = disk[&b"/a/b/double"[..]].sectors;
    assert_eq!(sectors, 5_300_001_u32.div_ceil(4096) * 8, "no tables");
    let features = tool("dumpe2fs").arg("-h").arg(&image).output().unwrap();
    let features = String::from_utf8_lossy(&features.stdout).into_owned();
    let line = features.lines().find(|line| line.starts_with("Filesystem features:")).unwrap();
    assert!(line.contains(" extent ") && !line.contains("journal"), "{line}");
    if long() && is_root() {
        mounted(&image, folder.path(), "ext4", |mount| {
            let read = fs::read(mount.join("a/b/double")).unwrap();
            assert!(read == fs::read(source.path().join("a/b/double")).unwrap());
        });
    }
}

/// Four extents fit into the inode, 340 into a node, and 340 nodes into one above.
#[test]
fn trees_of_extents_grow_a_level_when_the_one_below_is_full() {
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let counts = [(1, 0), (4, 0), (5, 1), (340, 1), (1360, 1), (1361, 2), (3000, 2)];
    for (count, _) in counts {
        let file = fs::File::create(source.path().join(count.to_string())).unwrap();
        for at in 0..count {
            file.write_all_at(&[7; 100], at * 8192).unwrap();
        }
        file.set_len(count * 8192 + 5).unwrap();
    }
    let image = image(&plan(source.path(), &extents()), folder.path());
    let disk = same(plan(source.path(), &extents()), source.path());
    for (count, depth) in counts {
        let name = format!("/{count}");
        assert_eq!(disk[name.as_bytes()].depth, Some(depth), "{name}");
        let blocks = debugfs(&image, &format!("blocks {name}"));
        assert!(blocks.split_whitespace().count() as u64 >= count, "{name}: {blocks}");
    }
}

/// Wherever a group's head falls into a file, and whatever nodes that costs, the disk is as large as it has to be.
#[test]
fn extents_end_at_the_heads_of_groups() {
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dense = fs::File::create(source.path().join("dense")).unwrap();
    // Three groups, written in few places; the rest of the bytes is asked for as data all the same.
    rustix::fs::fallocate(&dense, rustix::fs::FallocateFlags::empty(), 0, 300 << 20).unwrap();
    for at in [0, 100 << 20, 200 << 20, (300 << 20) - 9] {
        dense.write_all_at(b"something", at).unwrap();
    }
    let options = Options { free: ByteLen::mib(3), ..extents() };
    let free = plan(source.path(), &options).summary().free.get();
    assert!((3 << 20..4 << 20).contains(&free), "{free}");
    let image = image(&plan(source.path(), &options), folder.path());
    let file = &reader::read_inodes(&ReadOnly(plan(source.path(), &options)))[&b"/dense"[..]];
    assert!(file.depth.is_some());
    for at in [0, 100 << 20, 200 << 20, (300 << 20) - 9_u64] {
        let block: u64 =
            debugfs(&image, &format!("bmap dense {}", at / 4096)).trim().parse().unwrap();
        let mut bytes = [0; 9];
        if block > 0 {
            let place = block * 4096 + at % 4096;
            fs::File::open(&image).unwrap().read_at(&mut bytes, place).unwrap();
        }
        assert_eq!(&bytes, b"something", "at {at}");
    }
}

#[test]
fn a_kept_plan_remembers_that_it_has_extents() {
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assorted(source.path());
    let kept = folder.path().join("plan");
    plan(source.path(), &extents()).store(&fs::File::create(&kept).unwrap()).unwrap();
    let written = fs::read(image(&Plan::load(&kept).unwrap(), folder.path())).unwrap();
    let again = fs::read(image(&plan(source.path(), &extents()), folder.path())).unwrap();
    assert!(written == again);
}
