//! `kiln doctor` on machines that lack things.

use crate::kiln::{Kiln, ended};

fn check<'a>(report: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    let checks = report["checks"].as_array().expect("checks are a list");
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn every_check_has_a_state_and_whatever_is_not_ok_has_a_cure() {
    let kiln = Kiln::new();
    let ended = kiln.run(&["doctor", "--format", "json"]);
    let report = ended.json();
    assert_eq!(report["schema"], 1);
    for name in
        ["qemu", "kvm", "guest", "kernel", "cache", "runs", "tools", "git", "fuse", "ublk", "nbd"]
    {
        let check = check(&report, name);
        let ok = check["state"] == "ok";
        assert_eq!(check["cure"].is_null(), ok, "{check}");
        assert!(check["found"].as_str().is_some_and(|found| !found.is_empty()), "{check}");
    }
    let can_run = report["can_run"].as_bool().expect("a yes or no");
    assert_eq!(ended.code, if can_run { 0 } else { 96 });
}

#[test]
fn a_machine_without_anything_is_told_what_to_do() {
    let kiln = Kiln::new();
    kiln.write("empty/nothing", "");
    let mut command = kiln.command(&["doctor", "--format", "json"]);
    command.env("PATH", kiln.folder().join("empty")).env("KILN_GUEST", "/no/such/guest");
    command.env("KILN_QEMU", "/no/such/qemu").env("KILN_KERNEL", "0.0.1-none");
    let ended = ended(&mut command).exits(96);
    let report = ended.json();
    for (name, cure) in [
        ("qemu", "qemu-system-x86"),
        ("guest", "make guest"),
        ("kernel", "kiln kernel fetch debian"),
        ("git", "git"),
    ] {
        let check = check(&report, name);
        assert_ne!(check["state"], "ok", "{check}");
        assert!(check["cure"].as_str().is_some_and(|said| said.contains(cure)), "{check}");
    }
}

#[test]
fn each_failing_line_ends_with_its_cure() {
    let kiln = Kiln::new();
    let mut command = kiln.command(&["doctor"]);
    command.env("KILN_QEMU", "/no/such/qemu").env("KILN_KERNEL", "0.0.1-none");
    let text = ended(&mut command).exits(96).stdout;
    for line in
        text.lines().filter(|line| line.starts_with("missing") || line.starts_with("limited"))
    {
        assert!(line.contains(". Cure: "), "{line}");
    }
    assert!(text.lines().any(|line| line.starts_with("missing  qemu")), "{text}");
}
