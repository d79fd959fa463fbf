//! The verdict on KVM, asked as the command asks it: by starting a program again.

use std::process::Command;

use kiln_vm::probe::{KvmVerdict, kvm_with, take_over};

/// Not a test but the program the probe starts: this one, told to run nothing but this.
#[test]
#[ignore = "plays the probing process"]
fn probing_process() {
    let _ = take_over();
}

fn this_program() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a test has a path"));
    command.args([
        "--exact",
        "probe::probing_process",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command
}

#[test]
fn the_probe_comes_to_a_verdict_and_the_verdict_is_kept_for_this_boot() {
    let cache = tempfile::tempdir().unwrap();
    let verdict = kvm_with(this_program(), Some(cache.path()));
    eprintln!("{verdict}");
    if let KvmVerdict::Unusable { reason } = &verdict {
        assert!(!reason.contains("the probe"), "the probe itself failed: {reason}");
        assert!(verdict.cure().unwrap().contains("nested virtualisation"));
    }
    let again = kvm_with(Command::new("/nonexistent/program"), Some(cache.path()));
    assert_eq!(again, verdict, "the second answer comes from the cache");
}

#[test]
fn a_probe_that_says_nothing_is_an_answer_that_is_not_kept() {
    let cache = tempfile::tempdir().unwrap();
    match kvm_with(Command::new("/bin/true"), Some(cache.path())) {
        KvmVerdict::Missing | KvmVerdict::Forbidden => {}
        KvmVerdict::Usable => panic!("nobody said so"),
        KvmVerdict::Unusable { reason } => {
            assert_eq!(reason, "the probe ended without a word");
            assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
        }
    }
}
