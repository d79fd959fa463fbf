//! The plan as a disk: nothing written, and never other bytes than those that were planned.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

use kiln_block::testing::{Abilities, conforms};
use kiln_block::{BlockDevice, BlockSource as _, ByteLen, ByteOffset, ExtentKind, ReadOnly};
use kiln_image::ext2::{Ext2Error, Mapping, Options};

use super::{debugfs, image, plan};

const READ_ONLY: Abilities = Abilities { granularity: 1, writable: false };

fn some_files(root: &Path) {
    fs::create_dir(root.join("folder")).unwrap();
    for (name, len) in [("folder/a", 3_000_000), ("folder/b", 1), ("c", 4096), ("d", 700_001)] {
        let bytes: Vec<u8> =
            (0..len).map(|at: u32| at.to_le_bytes()[at as usize % 3] | 1).collect();
        fs::write(root.join(name), bytes).unwrap();
    }
}

#[test]
fn a_plan_is_a_disk() {
    let source = tempfile::tempdir().unwrap();
    some_files(source.path());
    conforms(&ReadOnly(plan(source.path(), &Options::default())), READ_ONLY);
    let options = Options { free: ByteLen::gib(40), ..Options::default() };
    conforms(&ReadOnly(plan(source.path(), &options)), READ_ONLY);
}

#[test]
fn the_disk_and_the_file_have_the_same_bytes() {
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    some_files(source.path());
    let options = Options { free: ByteLen::mib(140), ..Options::default() };
    let plan = plan(source.path(), &options);
    let written = fs::read(image(&plan, folder.path())).unwrap();
    let disk = ReadOnly(plan);
    let mut served = vec![1; written.len()];
    // Odd pieces, so that blocks and files are cut everywhere.
    for (at, piece) in (0..).step_by(10_007).zip(served.chunks_mut(10_007)) {
        disk.read_at(ByteOffset::new(at), piece).unwrap();
    }
    assert!(served == written);
    let size = disk.size();
    let holes: u64 = disk
        .extents(ByteOffset::ZERO, size)
        .unwrap()
        .iter()
        .filter(|extent| extent.kind == ExtentKind::Hole)
        .map(|extent| extent.len.get())
        .sum();
    assert!(holes >= 140 << 20, "free space is a hole");
}

#[test]
fn a_file_that_changed_is_an_error_for_its_blocks_and_no_others() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 5] = [
        ("one byte in place", |path| {
            fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"!", 9).unwrap();
        }),
        ("longer", |path| {
            let file = fs::OpenOptions::new().append(true).open(path).unwrap();
            file.write_all_at(b"more", 0).unwrap();
        }),
        ("shorter", |path| {
            fs::OpenOptions::new().write(true).open(path).unwrap().set_len(5).unwrap();
        }),
        ("replaced", |path| {
            let bytes = fs::read(path).unwrap();
            fs::remove_file(path).unwrap();
            fs::write(path, bytes).unwrap();
        }),
        ("gone", |path| fs::remove_file(path).unwrap()),
    ];
    for (what, change) in changes {
        let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        some_files(source.path());
        let plan = plan(source.path(), &Options::default());
        let changed = source.path().join("folder/a");
        let before = fs::read(image(&plan, folder.path())).unwrap();
        change(&changed);

        let error = plan.write(&tempfile::tempfile().unwrap()).unwrap_err();
        assert!(
            matches!(&error, Ext2Error::Changed { path } if *path == changed),
            "{what}: {error}"
        );
        assert!(error.to_string().contains("plan it again"), "{error}");

        let disk = ReadOnly(plan);
        let (mut failed, mut block) = (0, vec![0; 4096]);
        for (at, expected) in (0..).step_by(4096).zip(before.chunks(4096)) {
            match disk.read_at(ByteOffset::new(at), &mut block) {
                Ok(()) => assert!(block == expected, "{what}: other bytes at {at}"),
                Err(error) => {
                    let cause = std::error::Error::source(&error).unwrap().to_string();
                    assert!(cause.contains("folder/a changed since"), "{what}: {cause}");
                    failed += 1;
                }
            }
        }
        assert_eq!(failed, 3_000_000_u64.div_ceil(4096), "{what}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_told_before_anything_boots_from_it() {
    if super::is_root() {
        return; // who may read everything
    }
    let source = tempfile::tempdir().unwrap();
    some_files(source.path());
    fs::set_permissions(source.path().join("c"), fs::Permissions::from_mode(0o000)).unwrap();
    let mut tree = kiln_image::ext2::Tree::new();
    let error = tree.add_directory(source.path()).unwrap_err();
    assert!(error.to_string().contains("/c"), "{error}");
}

#[test]
fn planning_reads_nothing_and_knows_the_size() {
    let source = tempfile::tempdir().unwrap();
    some_files(source.path());
    let plan = plan(source.path(), &Options::default());
    let summary = plan.summary();
    assert_eq!(summary.size, plan.size());
    assert_eq!(summary.host_files, 4);
    assert_eq!(summary.entries, 7, "four files, one folder, the root and lost+found");
}

/// Numbers that look random and are the same each time (xorshift).
fn numbers(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

#[test]
fn many_readers_at_once_see_the_written_image() {
    let (source, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    some_files(source.path());
    // More files than are kept open.
    for number in 0..100_u8 {
        fs::write(source.path().join(format!("folder/{number}")), vec![number; 5000]).unwrap();
    }
    for mapping in [Mapping::Tables, Mapping::Extents] {
        let options = Options { mapping, free: ByteLen::kib(500), ..Options::default() };
        let plan = plan(source.path(), &options);
        let written = fs::read(image(&plan, folder.path())).unwrap();
        let disk = ReadOnly(plan);
        std::thread::scope(|scope| {
            for reader in 1..=4 {
                let (disk, written) = (&disk, &written);
                scope.spawn(move || {
                    let mut next = numbers(reader);
                    let mut buffer = vec![0; 70_000];
                    for _ in 0..600 {
                        let at = usize::try_from(next()).unwrap() % written.len();
                        let len = usize::try_from(next() % 70_000).unwrap().min(written.len() - at);
                        disk.read_at(ByteOffset::new(at as u64), &mut buffer[..len]).unwrap();
                        assert!(buffer[..len] == written[at..at + len], "{len} bytes at {at}");
                    }
                });
            }
        });
    }
}

#[test]
fn no_more_than_a_few_files_are_open_at_once() {
    let source = tempfile::tempdir().unwrap();
    for number in 0..300_u16 {
        fs::write(source.path().join(number.to_string()), number.to_le_bytes()).unwrap();
    }
    let disk = ReadOnly(plan(source.path(), &Options::default()));
    let mut block = vec![0; 4096];
    for at in (0..disk.size().get()).step_by(4096) {
        disk.read_at(ByteOffset::new(at), &mut block).unwrap();
    }
    let open = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|path| path.starts_with(source.path()))
        .count();
    assert!((1..=32).contains(&open), "{open} files are open");
}

/// A change races with the copy of the file. Whoever wins, no image has other bytes than those that were planned.
#[test]
fn a_file_that_changes_while_an_image_is_written_is_an_error_or_is_not_in_it() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("changing");
    fs::write(&path, vec![1; 6 << 20]).unwrap();
    for round in 2..14_u8 {
        let plan = plan(source.path(), &Options::default());
        let before = fs::read(&path).unwrap();
        let out = tempfile::NamedTempFile::new().unwrap();
        let start = std::sync::Barrier::new(2);
        let written = std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
                start.wait();
                for at in (0..6 << 20).step_by(1 << 20) {
                    file.write_all_at(&[round], at + u64::from(round) * 7).unwrap();
                }
            });
            start.wait();
            plan.write(out.as_file())
        });
        match written {
            Err(error) => {
                assert!(matches!(&error, Ext2Error::Changed { path: named } if *named == path));
            }
            Ok(_) => {
                let file = debugfs(out.path(), "bmap changing 0").trim().parse::<u64>().unwrap();
                let image = fs::read(out.path()).unwrap();
                let start = usize::try_from(file).unwrap() * 4096;
                assert!(image[start..start + 48 * 1024] == before[..48 * 1024], "round {round}");
            }
        }
    }
    // With all the changes made, nothing is left to be noticed later.
    let plan = plan(source.path(), &Options::default());
    plan.write(&tempfile::tempfile().unwrap()).unwrap();
}
