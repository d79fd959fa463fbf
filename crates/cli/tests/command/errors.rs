//! Bad input, and readers that go away.

use std::process::Stdio;

use crate::kiln::{Kiln, ended};

#[test]
fn a_scenario_nobody_ships_is_a_usage_error_with_a_near_name() {
    Kiln::new().run(&["run", "btrfs-smok"]).exits(2).complains(&["btrfs-smoke", "hint: "]);
}

#[test]
fn a_scenario_with_an_unknown_key_names_line_and_neighbour() {
    let kiln = Kiln::new();
    kiln.write("bad.toml", "name = \"bad\"\n[vm]\nmemroy = \"1G\"\n");
    kiln.run(&["plan", "bad.toml"]).exits(2).complains(&["bad.toml", "line 3", "memory"]);
}

#[test]
fn hostile_names_reach_the_terminal_escaped() {
    let kiln = Kiln::new();
    for arguments in [
        ["show", "\u{1b}[2J\u{202e}x"],
        ["plan", "./\u{1b}]0;x\u{7}.toml"],
        ["replay", "\u{1b}c/x"],
    ] {
        let said = kiln.run(&arguments).exits(2).stderr;
        let steers = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!said.contains(steers), "{arguments:?} said {said:?}");
    }
}

#[test]
fn a_kernel_that_is_not_there_is_this_machines_lack() {
    let kiln = Kiln::new();
    kiln.run(&["plan", "simple-example", "--kernel", "./nowhere"])
        .exits(96)
        .complains(&["nowhere", "hint: kiln kernel fetch debian"]);
    kiln.write("linux/.config", "");
    kiln.run(&["plan", "simple-example", "--kernel", "./linux"]).exits(96).complains(&["make -j"]);
    kiln.write("vmlinuz", "not a kernel");
    kiln.run(&["plan", "simple-example", "--kernel", "./vmlinuz"])
        .exits(96)
        .complains(&["cannot be booted"]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let kiln = Kiln::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = kiln.command(&["completions", "bash"]);
    let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_full_disk_behind_stdout_is_told() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let kiln = Kiln::new();
    let mut command = kiln.command(&["config", "schema"]);
    let output = command.stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(103));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write to stdout"));
}

#[test]
fn colour_is_asked_for_or_absent() {
    let kiln = Kiln::new();
    let plain = kiln.run(&["config", "show"]).exits(0).stdout;
    assert!(!plain.contains('\x1b'));
    let coloured = kiln.run(&["config", "show", "--color", "always"]).exits(0).stdout;
    assert!(coloured.contains("\x1b[1m[run]\x1b[0m"), "{coloured}");
    let mut command = kiln.command(&["config", "show"]);
    command.env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1");
    assert!(!ended(&mut command).exits(0).stdout.contains('\x1b'));
}

#[test]
fn a_job_spec_that_is_none_is_a_usage_error() {
    let kiln = Kiln::new();
    kiln.run(&["job", "exec", "gone.json"]).exits(2).complains(&["gone.json", "because"]);
    kiln.write("job.json", "{\"schema\": 999}");
    kiln.run(&["job", "exec", "job.json"]).exits(2).complains(&["999"]);
}
