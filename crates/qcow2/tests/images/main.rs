//! Images that QEMU's tools made are read right, and those tools find nothing wrong with what is written here.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod hostile;
mod made_by_qemu;
mod written;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, ExtentKind};
use kiln_qcow2::chain::{self, Allow};

/// Runs a tool that must succeed.
fn run(program: &str, args: &[&str], folder: &Path) {
    let output = Command::new(program)
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; `script/bootstrap --with-tests`"));
    let text = String::from_utf8_lossy(&output.stderr);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{program} {args:?}: {out}{text}");
}

fn qemu_img(folder: &Path, args: &[&str]) {
    run("qemu-img", args, folder);
}

/// A raw disk of that size with data here and there, some of it compressible, some of it zeros.
fn scattered(size: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let mut dice = Dice::seeded(seed);
    for _ in 0..24 {
        let at = usize::try_from(dice.below(size as u64)).unwrap();
        let len = usize::try_from(dice.below(200_000)).unwrap().min(size - at);
        match dice.below(3) {
            0 => dice.fill(&mut bytes[at..at + len]),
            1 => bytes[at..at + len].fill(0x61),
            _ => bytes[at..at + len].fill(0),
        }
    }
    bytes
}

fn open(path: &Path) -> Arc<dyn BlockDevice> {
    chain::open_disk(path, None, Allow::Beside, None)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A disk holds exactly these bytes, its extents are right about zeros, and it keeps the contract.
fn assert_holds(disk: &dyn BlockDevice, bytes: &[u8], what: &str) {
    assert_eq!(disk.size(), ByteLen::of(bytes), "{what}");
    let mut dice = Dice::seeded(7);
    let mut at = 0;
    while at < bytes.len() {
        let len = usize::try_from(1 + dice.below(300_000)).unwrap().min(bytes.len() - at);
        let mut found = vec![1; len];
        disk.read_at(ByteOffset::new(at as u64), &mut found)
            .unwrap_or_else(|error| panic!("{what}, byte {at}: {error}"));
        assert!(found == bytes[at..at + len], "{what}: wrong bytes in {at}, {len} long");
        at += len;
    }
    let mut cursor = 0;
    for extent in disk.extents(ByteOffset::ZERO, disk.size()).unwrap() {
        assert_eq!(extent.at.get(), cursor, "{what}: extents follow each other");
        cursor += extent.len.get();
        if extent.kind != ExtentKind::Data {
            let from = usize::try_from(extent.at.get()).unwrap();
            let to = usize::try_from(cursor).unwrap();
            assert!(bytes[from..to].iter().all(|byte| *byte == 0), "{what}: {extent:?}");
        }
    }
    assert_eq!(cursor, bytes.len() as u64, "{what}: extents cover the disk");
}
