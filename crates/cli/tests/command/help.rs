//! Help, version, completions and manual pages.

use crate::kiln::Kiln;

#[test]
fn the_short_help_fits_a_screen_and_names_every_command() {
    let help = Kiln::new().run(&["-h"]).exits(0).stdout;
    assert!(help.lines().count() <= 60, "{help}");
    for command in [
        "run",
        "shell",
        "plan",
        "runs",
        "show",
        "replay",
        "diff",
        "report",
        "publish",
        "history",
        "kernel",
        "image",
        "supermin",
        "disk",
        "layer",
        "job",
        "doctor",
        "config",
        "completions",
        "man",
    ] {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(&format!("{command} "))),
            "{command}\n{help}"
        );
    }
}

#[test]
fn the_long_help_ends_with_the_exit_codes() {
    let help = Kiln::new().run(&["--help"]).exits(0).stdout;
    assert!(help.contains("Exit codes:\n    0  done"), "{help}");
    assert!(help.contains("  100  tests failed"), "{help}");
}

#[test]
fn help_and_version_are_data_and_a_missing_command_is_a_complaint() {
    let kiln = Kiln::new();
    let version = kiln.run(&["--version"]).exits(0);
    assert_eq!(version.stdout, concat!("kiln ", env!("CARGO_PKG_VERSION"), "\n"));
    let nothing = kiln.run(&[]).exits(2);
    assert_eq!(nothing.stdout, "");
    kiln.run(&["rnu"]).exits(2).complains(&["'rnu'", "run"]);
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let kiln = Kiln::new();
    assert!(kiln.run(&["man"]).exits(0).stdout.starts_with(".ie"), "roff");
    let folder = kiln.folder().join("man1");
    kiln.run(&["man", "--output", "man1"]).exits(0);
    for page in ["kiln.1", "kiln-run.1", "kiln-kernel-fetch.1"] {
        let text = std::fs::read_to_string(folder.join(page)).unwrap();
        assert!(text.contains("kiln"), "{page}");
    }
}

#[test]
fn nothing_of_kilns_own_commands_needs_a_home() {
    let kiln = Kiln::new();
    let mut command = kiln.command(&["completions", "bash"]);
    crate::kiln::ended(command.env_remove("HOME").env_remove("KILN_HOME")).exits(0);
    let mut command = kiln.command(&["runs"]);
    crate::kiln::ended(command.env_remove("HOME").env_remove("KILN_HOME"))
        .exits(96)
        .complains(&["$HOME", "hint: export KILN_HOME="]);
}
