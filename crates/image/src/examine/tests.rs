//! What is found in images that Kiln wrote, and in the same with something wrong.

use std::fs;

use super::*;
use crate::ext2::{Mapping, Options, Plan, Tree};

/// A folder with one of everything that a user may make.
fn source() -> tempfile::TempDir {
    let here = tempfile::tempdir().unwrap();
    let path = |name: &str| here.path().join(name);
    fs::create_dir_all(path("a/b")).unwrap();
    fs::write(path("a/file"), "content\n").unwrap();
    fs::hard_link(path("a/file"), path("a/again")).unwrap();
    fs::write(path("large"), vec![7; 300_000]).unwrap();
    std::os::unix::fs::symlink("a/file", path("short")).unwrap();
    std::os::unix::fs::symlink("x".repeat(200), path("long")).unwrap();
    let sparse = File::create(path("sparse")).unwrap();
    sparse.write_all_at(b"end", 40 << 20).unwrap();
    here
}

fn image(source: &Path, mapping: Mapping) -> tempfile::NamedTempFile {
    let mut tree = Tree::new();
    tree.add_directory(source).unwrap();
    let free = kiln_block::ByteLen::mib(1);
    let plan = Plan::new(tree, &Options { free, mapping, ..Options::default() }).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    plan.write(file.as_file()).unwrap();
    file
}

#[test]
fn a_disk_that_kiln_wrote_is_whole_whichever_way_its_blocks_are_found() {
    let source = source();
    let tables = examine_file(image(source.path(), Mapping::Tables).path()).unwrap();
    let extents = examine_file(image(source.path(), Mapping::Extents).path()).unwrap();
    for examined in [&tables, &extents] {
        assert_eq!(examined.form, Form::Ext2);
        assert_eq!(examined.faults, Vec::<String>::new());
        assert_eq!(examined.entries.len(), 10, "the root and lost+found among them");
        assert_eq!(examined.entries[&b"long"[..]].target.len(), 200);
        assert_eq!(examined.entries[&b"sparse"[..]].size, (40 << 20) + 3);
    }
    assert!(differences(&tables, &extents, true).is_empty());
}

#[test]
fn every_difference_is_found_and_no_other() {
    let source = source();
    let path = |name: &str| source.path().join(name);
    let before = examine_file(image(source.path(), Mapping::Tables).path()).unwrap();
    fs::write(path("large"), vec![8; 300_000]).unwrap();
    fs::remove_file(path("short")).unwrap();
    fs::write(path("new"), "").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path("a/file"), fs::Permissions::from_mode(0o600)).unwrap();
    let after = examine_file(image(source.path(), Mapping::Tables).path()).unwrap();
    let found = differences(&before, &after, false);
    let mode = Difference::Changed(vec!["mode 0644 -> 0600".to_owned()]);
    let expected: BTreeMap<Vec<u8>, Difference> = [
        (&b"a/again"[..], mode.clone()),
        (b"a/file", mode),
        (b"large", Difference::Changed(vec!["content".to_owned()])),
        (b"new", Difference::Added),
        (b"short", Difference::Removed),
    ]
    .map(|(path, difference)| (path.to_vec(), difference))
    .into();
    assert_eq!(found, expected);
}

#[test]
fn a_bit_that_is_wrong_in_what_describes_the_disk_is_noticed() {
    let source = source();
    let file = image(source.path(), Mapping::Tables);
    let bytes = fs::read(file.path()).unwrap();
    // Counts of the superblock and of the first group, its maps, and the first inodes that are in use.
    let table = usize::try_from(u32::from_le_bytes(bytes[4104..4108].try_into().unwrap())).unwrap();
    let map = usize::try_from(u32::from_le_bytes(bytes[4096..4100].try_into().unwrap())).unwrap();
    let places =
        [1036, 1040, 4108, 4110, 4112, map * 4096, (map + 1) * 4096, table * 4096 + 256 + 26];
    for place in places {
        let mut changed = bytes.clone();
        changed[place] ^= 1;
        fs::write(file.path(), &changed).unwrap();
        let faults = examine_file(file.path()).map_or(1, |examined| examined.faults.len());
        assert!(faults > 0, "byte {place}");
    }
}

#[test]
fn no_damage_makes_examining_panic_or_hang() {
    let source = source();
    for mapping in [Mapping::Tables, Mapping::Extents] {
        let file = image(source.path(), mapping);
        let bytes = fs::read(file.path()).unwrap();
        let mut state = 1_u64;
        for _ in 0..150 {
            let mut changed = bytes.clone();
            for _ in 0..20 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // Where there is more than files' bytes.
                let place = usize::try_from(state >> 33).unwrap() % (bytes.len().min(600_000));
                changed[place] = u8::try_from(state >> 56).unwrap();
            }
            fs::write(file.path(), &changed).unwrap();
            let _ = examine_file(file.path());
        }
    }
}

#[test]
fn an_initramfs_is_told_apart_and_its_end_is_missed() {
    let mut writer = newc::Writer::new(tempfile::tempfile().unwrap());
    let attributes = |mode| newc::Attributes {
        mode,
        inode: 1,
        links: 1,
        owner: (0, 0),
        modified: 0,
        device: (0, 0),
    };
    writer.member(b"dir", attributes(0o040_755), b"").unwrap();
    writer.member(b"dir/file", attributes(0o100_644), b"content").unwrap();
    writer.member(b"link", attributes(0o120_777), b"dir/file").unwrap();
    let (file, len) = writer.finish().unwrap();
    let whole = examine(&file).unwrap();
    assert_eq!((whole.form, whole.entries.len()), (Form::Initramfs, 3));
    assert_eq!(whole.faults, Vec::<String>::new());
    assert_eq!(whole.entries[&b"link"[..]].target, b"dir/file");
    file.set_len(len - 130).unwrap();
    assert_eq!(examine(&file).unwrap().faults.len(), 1);
    file.set_len(0).unwrap();
    assert!(matches!(examine(&file), Err(ExamineError::Unknown)));
}
