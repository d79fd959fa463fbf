//! From a scenario that ships to a published page.

use std::process::Command;

use crate::room::Room;

fn git(room: &Room, arguments: &[&str]) -> String {
    let output = Command::new("git").args(arguments).current_dir(room.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_shipped_scenario_runs_and_its_result_is_listed_compared_reported_and_published() {
    let room = Room::new();
    let first = room.run(&["run", "simple-example", "--junit", "junit.xml"]).exits(0);
    first.complains(&["passed: 2 of 2 stages passed"]);
    room.nothing_is_left();
    let junit = std::fs::read_to_string(room.path().join("junit.xml")).unwrap();
    assert!(junit.contains("look-around"), "{junit}");
    room.run(&["run", "--rerun", "last"]).exits(4).complains(&["nothing to run again"]);

    let second = room.run(&["run", "simple-example", "--stage", "k*", "--format", "json"]).exits(0);
    let lines: Vec<&str> = second.stdout.lines().collect();
    assert!(
        lines[0].contains("\"run-started\"") && lines[0].contains("\"schema\":1"),
        "{}",
        lines[0]
    );
    assert!(lines[lines.len() - 1].contains("\"run-ended\""), "{}", second.stdout);
    assert!(second.stdout.contains("\"cached\":true"), "{}", second.stdout);

    let runs = room.run(&["runs"]).exits(0).stdout;
    assert_eq!(runs.lines().filter(|line| line.contains("passed")).count(), 2, "{runs}");
    room.run(&["show", "last~1"]).exits(0);
    assert!(!room.run(&["replay", "last/kernel"]).exits(0).stdout.is_empty());
    assert!(room.run(&["diff", "last~1", "last"]).exits(0).stdout.contains("look-around"));

    let index = room.run(&["report", "--output", "site"]).exits(0).stdout;
    assert!(std::path::Path::new(index.trim()).is_file(), "{index}");
    git(&room, &["init", "--quiet", "--bare", "results.git"]);
    let publish = ["publish", "--git", "results.git", "--branch", "pages"];
    let published = room.run(&publish).exits(0).stdout;
    assert!(published.starts_with("published 2 runs"), "{published}");
    assert!(room.run(&publish).exits(0).stdout.starts_with("nothing new"));
    let files = git(&room, &["--git-dir", "results.git", "ls-tree", "-r", "--name-only", "pages"]);
    assert!(files.lines().any(|file| file == "index.html"), "{files}");
}
