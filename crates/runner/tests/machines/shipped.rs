//! The scenarios that ship pass on a distribution's kernel.

use kiln_runner::{StopToken, load};

use crate::support::Room;

fn passes(name: &str) {
    let room = Room::new();
    let spec = room.job(&load(name).unwrap());
    let told = room.execute(&spec, &StopToken::new());
    let expected: Vec<String> =
        spec.stages.iter().map(|stage| format!("{}: passed", stage.name)).collect();
    assert_eq!(told.outcomes(), expected, "{}", told.transcript());
}

#[test]
fn simple_example_passes() {
    passes("simple-example");
}

#[test]
fn btrfs_smoke_passes() {
    passes("btrfs-smoke");
}

#[test]
fn ext4_smoke_passes() {
    passes("ext4-smoke");
}

#[test]
fn xfs_smoke_passes() {
    passes("xfs-smoke");
}

#[test]
fn btrfs_raid5_scrub_passes() {
    passes("btrfs-raid5-scrub");
}
