//! The far ends: many names, long names, deep folders, files beyond what 32 bits count.

use std::fs;
use std::os::unix::fs::FileExt as _;

use kiln_block::ReadOnly;
use kiln_image::ext2::{Ext2Error, Options, Plan, Tree};

use super::debugged::same_debugged;
use super::round_trip::mounted;
use super::{check, check_from, debugfs, image, is_root, long, plan, reader};

/// Bytes of the longest file that kernels take, holes or not.
const LONGEST: u64 = 2_194_719_883_264;

#[test]
fn a_large_directory_has_an_index_that_e2fsck_believes() {
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(source.path().join("many")).unwrap();
    let first = source.path().join("many/first");
    fs::write(&first, "x").unwrap();
    // Links are cheaper to make than files.
    for number in 0..4000_u32 {
        let odd = if number.is_multiple_of(3) { "ä\u{fffd}" } else { "" };
        fs::hard_link(&first, source.path().join(format!("many/{number}{odd}{}", "n".repeat(80))))
            .unwrap();
    }
    let plan = plan(source.path(), &Options::default());
    let image = image(&plan, folder.path());
    let dump = debugfs(&image, "htree_dump /many");
    assert!(dump.contains("Root node dump"), "{dump}");
    // e2fsck and debugfs compute each hash anew; the first is also compared here.
    let hash = debugfs(&image, "dx_hash -h half_md4 first");
    assert!(hash.contains("Hash of first"), "{hash}");
    assert_eq!(reader::read(&ReadOnly(plan)).len(), 4004);
}

#[test]
fn names_of_255_bytes_fill_an_index_of_two_levels() {
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = source.path().join("first");
    fs::write(&first, "x").unwrap();
    // 15 such names fit into a block, and the root points at 508 blocks.
    let count = if long() { 60_000 } else { 8200 };
    for number in 0..count {
        fs::hard_link(&first, source.path().join(format!("{number:0>255}"))).unwrap();
    }
    let image = image(&plan(source.path(), &Options::default()), folder.path());
    let dump = debugfs(&image, "htree_dump /");
    assert!(dump.contains("Indirect levels: 1"), "{}", &dump[..dump.len().min(600)]);
}

#[test]
fn a_deep_tree_and_thousands_of_folders_in_one_survive() {
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut deep = source.path().to_owned();
    for level in 0..200 {
        deep.push(format!("level{level}"));
    }
    fs::create_dir_all(&deep).unwrap();
    let wide = source.path().join("wide");
    fs::create_dir(&wide).unwrap();
    let count = if long() { 32_000 } else { 2000 };
    for number in 0..count {
        fs::create_dir(wide.join(number.to_string())).unwrap();
    }
    image(&plan(source.path(), &Options::default()), folder.path());
}

/// Holes cost nothing, so files far beyond 4 GiB are cheap to try: both ends of the third level.
#[test]
fn sparse_files_reach_through_all_levels() {
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let places =
        [0, 47 << 10, 48 << 10, 4 << 20, (4 << 20) + (48 << 10), 4 << 30, 5 << 30, 10 << 30];
    let file = fs::File::create(source.path().join("sparse")).unwrap();
    file.set_len((10 << 30) + 4097).unwrap();
    for place in places {
        file.write_all_at(&[0x5a; 100], place).unwrap();
    }
    let longest = fs::File::create(source.path().join("longest")).unwrap();
    longest.set_len(LONGEST).unwrap();
    longest.write_all_at(b"end", LONGEST - 3).unwrap();
    let plan = plan(source.path(), &Options::default());
    assert!(plan.summary().size.get() < 2 << 20, "{:?}", plan.summary());
    let image = image(&plan, folder.path());
    let stat = debugfs(&image, "stat sparse");
    assert!(stat.contains(&format!("Size: {}", (10_u64 << 30) + 4097)), "{stat}");
    for place in places {
        let block = debugfs(&image, &format!("bmap sparse {}", place / 4096));
        let block: u64 = block.trim().parse().unwrap_or_else(|_| panic!("{block}"));
        let mut bytes = [0; 101];
        fs::File::open(&image).unwrap().read_at(&mut bytes, block * 4096 + place % 4096).unwrap();
        assert_eq!((&bytes[..100], bytes[100]), (&[0x5a; 100][..], 0), "at {place}");
    }
    assert_eq!(debugfs(&image, "bmap sparse 5000").trim(), "0");
    same_debugged(source.path(), &image, folder.path());
    if long() && is_root() {
        mounted(&image, folder.path(), "ext2", |mount| {
            let mut end = [0; 3];
            let file = fs::File::open(mount.join("longest")).unwrap();
            file.read_exact_at(&mut end, LONGEST - 3).unwrap();
            assert_eq!(&end, b"end");
        });
    }
}

/// What counts a file's blocks with its tables has 32 bits, and the kernel looks at the length alone.
#[test]
fn a_file_longer_than_the_kernel_takes_is_refused_by_name() {
    let source = tempfile::tempdir().unwrap();
    fs::File::create(source.path().join("longer")).unwrap().set_len(LONGEST + 1).unwrap();
    let mut tree = Tree::new();
    tree.add_directory(source.path()).unwrap();
    let error = Plan::new(tree, &Options::default()).unwrap_err().to_string();
    assert!(error.starts_with("ext2 cannot hold /longer: it is longer than"), "{error}");
}

#[test]
fn every_copy_of_the_superblock_leads_to_a_whole_disk() {
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(source.path().join("file"), "content").unwrap();
    let options = Options { free: kiln_block::ByteLen::mib(3300), ..Options::default() };
    let image = image(&plan(source.path(), &options), folder.path());
    for group in [1, 3, 5, 7, 9, 25] {
        let block = (group * 32768).to_string();
        check_from(&image, &["-b", &block, "-B", "4096"]);
    }
}

#[test]
fn a_dense_file_crosses_groups() {
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(source.path().join("dense"))
        .unwrap();
    let size = if long() { 5_u64 << 30 } else { 140 << 20 };
    let mut bytes = vec![0; 1 << 20];
    for at in (0..size).step_by(1 << 20) {
        bytes[..8].copy_from_slice(&(at | 1).to_le_bytes());
        bytes[500_000..500_008].copy_from_slice(&(at | 3).to_le_bytes());
        file.write_all_at(&bytes, at).unwrap();
    }
    let plan = plan(source.path(), &Options::default());
    assert!(plan.summary().size.get() > size);
    let image = image(&plan, folder.path());
    let copy = folder.path().join("copy");
    debugfs(&image, &format!("dump /dense {}", copy.display()));
    assert!(copy.metadata().unwrap().len() == size);
    let (copy, mut one, mut other) =
        (fs::File::open(copy).unwrap(), vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (0..size).step_by(1 << 20) {
        file.read_exact_at(&mut one, at).unwrap();
        copy.read_exact_at(&mut other, at).unwrap();
        assert!(one == other, "at {at}");
    }
}

#[test]
fn more_names_than_an_inode_can_count_are_refused() {
    if !long() {
        return;
    }
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // The file system of a test may allow fewer names per file, so both kinds are tried.
    let many = |count: u32| {
        for number in 0..count {
            fs::create_dir_all(source.path().join(format!("many/{number}"))).unwrap();
        }
        let mut tree = Tree::new();
        tree.add_directory(source.path()).unwrap();
        Plan::new(tree, &Options::default())
    };
    let path = folder.path().join("image");
    many(64_998).unwrap().write(&fs::File::create(&path).unwrap()).unwrap();
    check(&path);
    let error = many(64_999).unwrap_err();
    assert!(matches!(error, Ext2Error::Unstorable { .. }), "{error}");
    assert!(error.to_string().starts_with("ext2 cannot hold /many"), "{error}");
}
