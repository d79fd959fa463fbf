//! Readers of recordings, on a recording written by hand.

use crate::kiln::Kiln;

const RUN: &str = "20261121-142530-7f3a";

/// A run with a hostile guest that was never finished.
fn recorded() -> Kiln {
    let kiln = Kiln::new();
    let events = [
        r#"{"at":1763735130000,"event":{"type":"run-started","schema":1,"run":"20261121-142530-7f3a","kiln":"0.1.0","scenario":"smoke","scenario_source":"smoke","kernel":{"release":"6.12.1","digest":"00"},"memory":1073741824,"cpus":1,"stages":["one","two"],"command":["kiln","run","smoke"]}}"#,
        r#"{"at":1763735131000,"event":{"type":"stage-started","stage":"one","vm":1}}"#,
        r#"{"at":1763735132000,"event":{"type":"stage-ended","stage":"one","outcome":{"kind":"failed","reason":"exit \u001b[2J status 3"},"took_ms":1000}}"#,
        r#"{"at":1763735133000,"event":{"type":"stage-started","stage":"two","vm":1}}"#,
    ];
    kiln.write(&format!("home/data/runs/{RUN}/events.jsonl"), events.join("\n") + "\n");
    kiln.write(
        &format!("home/data/runs/{RUN}/stages/one/terminal.cast"),
        "{\"version\":2,\"width\":80,\"height\":24}\n[0.1,\"o\",\"hello\\u001b]0;x\\u0007 there\\r\\n\"]\n",
    );
    kiln
}

#[test]
fn a_run_without_an_end_is_shown_as_interrupted_with_its_finished_stages() {
    let kiln = recorded();
    let rows = kiln.run(&["runs", "--format", "json"]).exits(0).json();
    assert_eq!(rows[0]["id"], RUN);
    assert_eq!(rows[0]["word"], "interrupted");
    let shown = kiln.run(&["show", "last"]).exits(0).stdout;
    assert!(shown.contains("    failed     1.00s  one  exit \\x1b[2J status 3"), "{shown}");
    assert!(
        shown.contains("interrupted: 0 of 2 stages passed, 1 failed, 1 without an end"),
        "{shown}"
    );
    assert!(shown.contains(&format!("kiln run --rerun {RUN} --stage one")), "{shown}");
    assert!(shown.contains(&format!("kiln replay {RUN}/one")), "{shown}");
    assert!(!shown.contains('\x1b'), "{shown}");
    assert_eq!(kiln.run(&["show", "2026", "--format", "json"]).exits(0).json()["id"], RUN);
}

#[test]
fn replay_without_a_terminal_prints_plain_text() {
    let kiln = recorded();
    assert_eq!(kiln.run(&["replay", "last/one"]).exits(0).stdout, "hello there\n");
    kiln.run(&["replay", "last/two"]).exits(2).complains(&["hint: "]);
    kiln.run(&["replay", "last"]).exits(2).complains(&[&format!("hint: kiln replay {RUN}/one")]);
}

#[test]
fn a_run_nobody_recorded_names_the_list() {
    recorded().run(&["show", "1999"]).exits(2).complains(&["1999", "kiln runs"]);
}

#[test]
fn a_damaged_index_is_made_again() {
    let kiln = recorded();
    kiln.run(&["runs"]).exits(0);
    kiln.write("home/data/index.db", "this is no database, whatever it is");
    assert!(kiln.run(&["runs"]).exits(0).complains(&["warning: "]).stdout.contains(RUN));
    let rebuilt = kiln.run(&["history", "rebuild", "--format", "json"]).exits(0).json();
    assert_eq!(rebuilt["read"], 1);
}

#[test]
fn a_run_compared_with_itself_has_no_difference() {
    let ended = recorded().run(&["diff", "last", "last"]).exits(0);
    assert!(
        ended.stdout.contains("no difference") || ended.stdout.contains("still failing"),
        "{}",
        ended.stdout
    );
}

#[test]
fn a_verdict_nobody_gives_is_refused_and_one_without_runs_is_no_empty_history() {
    let kiln = recorded();
    kiln.run(&["runs", "--verdict", "fialed"]).exits(2).complains(&["failed"]);
    kiln.run(&["runs", "--verdict", "passed"]).exits(0).complains(&["no run matches"]);
    kiln.run(&["runs", "--limit", "0"]).exits(2);
}

#[test]
fn a_new_failure_is_an_exit_status_where_one_is_asked_for() {
    let kiln = recorded();
    let earlier = kiln.home().join(format!("data/runs/{RUN}/events.jsonl"));
    let passed = std::fs::read_to_string(earlier)
        .unwrap()
        .replace(RUN, "20261120-142530-0000")
        .replace(r#"{"kind":"failed","reason":"exit \u001b[2J status 3"}"#, r#"{"kind":"passed"}"#);
    kiln.write("home/data/runs/20261120-142530-0000/events.jsonl", passed);
    kiln.run(&["diff", "20261120", RUN]).exits(0);
    kiln.run(&["diff", "--exit-code", "20261120", RUN]).exits(100);
    kiln.run(&["diff", "--exit-code", RUN, "20261120"]).exits(0);
    kiln.run(&["diff", "--exit-code", RUN, RUN, "--format", "json"]).exits(0);
}

#[test]
fn publishing_one_run_leaves_the_others_at_home() {
    let kiln = recorded();
    let other = "20261120-142530-0000";
    let events = kiln.home().join(format!("data/runs/{RUN}/events.jsonl"));
    let events = std::fs::read_to_string(events).unwrap().replace(RUN, other);
    kiln.write(&format!("home/data/runs/{other}/events.jsonl"), events);
    kiln.run(&["report"]).exits(0);
    let git = |arguments: &[&str]| {
        let mut git = std::process::Command::new("git");
        let output = git.args(arguments).current_dir(kiln.folder()).output().expect("git starts");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("names are UTF-8")
    };
    git(&["init", "--quiet", "--bare", "results.git"]);
    kiln.run(&["publish", other, "--git", "results.git", "--branch", "pages"]).exits(0);
    let there = || git(&["-C", "results.git", "ls-tree", "--name-only", "pages", "runs/"]);
    assert!(there().contains(other) && !there().contains(RUN), "{}", there());
    kiln.run(&["publish", RUN, "--git", "results.git", "--branch", "pages"]).exits(0);
    assert!(there().contains(other) && there().contains(RUN), "{}", there());
    kiln.run(&["publish", RUN, "--git", "nowhere.git"]).exits(103).complains(&["git ls-remote"]);
}
