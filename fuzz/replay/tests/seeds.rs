//! Inputs that are kept run through the targets they were found with.
#![expect(clippy::unwrap_used, reason = "tests end where something is not as it must be")]

use std::collections::BTreeSet;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use kiln_fuzz_replay::TARGETS;

fn seeds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../seeds")
}

/// What is in a folder, sorted.
fn listed(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn every_input_that_is_kept_is_taken_or_refused_as_its_target_demands() {
    let mut failed = Vec::new();
    for (name, run) in TARGETS {
        let folder = seeds().join(name);
        if !folder.is_dir() {
            continue;
        }
        for seed in listed(&folder) {
            let bytes = std::fs::read(&seed).unwrap();
            if catch_unwind(|| run(&bytes)).is_err() {
                failed.push(seed);
            }
        }
    }
    assert!(failed.is_empty(), "a fault is back: {failed:#?}");
}

#[test]
fn inputs_are_kept_under_the_names_of_targets_and_are_few_and_small() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz_targets");
    let targets: BTreeSet<PathBuf> = listed(&targets).into_iter().collect();
    let name = |path: &Path| path.file_stem().unwrap().to_owned();
    let names: BTreeSet<_> = targets.iter().map(|path| name(path)).collect();
    for folder in listed(&seeds()) {
        assert!(names.contains(&name(&folder)), "{} is of no target", folder.display());
        let sizes: Vec<u64> =
            listed(&folder).iter().map(|seed| seed.metadata().unwrap().len()).collect();
        let all: u64 = sizes.iter().sum();
        let count = sizes.len();
        assert!((1..=100).contains(&count) && all <= 512 << 10, "{count} of {all} bytes");
    }
    for name in ["overlaybd_layer", "overlaybd_index", "overlaybd_zfile", "overlaybd_tar"] {
        assert!(seeds().join(name).is_dir(), "{name} has none");
    }
}
