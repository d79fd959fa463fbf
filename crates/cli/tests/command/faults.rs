//! What a run needs and this machine lacks: found out before any machine is started, and cured by what is said.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::kiln::{Ended, Kiln, ended};
use crate::planning::kernel;

/// Runs a scenario with this `[guest]` on a kernel without modules, with an emulator that only says its version.
fn run(kiln: &Kiln, guest: &str) -> Ended {
    let kernel = kernel(kiln);
    kiln.write(
        "s.toml",
        format!("name = \"s\"\n[guest]\n{guest}\n[[stages]]\nname = \"a\"\nrun = \"true\"\n"),
    );
    kiln.write("guest", "stands for the guest executable");
    let qemu = kiln.write("qemu", "#!/bin/sh\necho QEMU emulator version 8.0.0\n");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&qemu, executable).expect("it is our file");
    let mut command = kiln.command(&["run", "s.toml", "-k", &kernel]);
    command.env("KILN_GUEST", kiln.folder().join("guest")).env("KILN_QEMU", qemu);
    let ended = ended(&mut command);
    assert!(!kiln.home().join("data/runs").exists(), "nothing ran, so nothing is recorded");
    ended
}

#[test]
fn without_qemu_the_package_is_named() {
    let kiln = Kiln::new();
    let kernel = kernel(&kiln);
    kiln.write("empty/nothing", "");
    let mut command = kiln.command(&["run", "simple-example", "-k", &kernel]);
    ended(command.env("PATH", kiln.folder().join("empty")).env("KILN_QEMU", "/no/such/qemu"))
        .exits(96)
        .complains(&["/no/such/qemu", "hint: kiln doctor"]);
}

#[test]
fn a_kernel_without_the_module_a_scenario_needs_cannot_be_built_for() {
    let kiln = Kiln::new();
    run(&kiln, "modules = [\"btrfs\"]").exits(101).complains(&[
        "btrfs",
        "hint: ",
        "kiln kernel fetch",
    ]);
}

#[test]
fn a_missing_binary_is_named_with_where_it_was_looked_for() {
    let kiln = Kiln::new();
    run(&kiln, "binaries = [\"no-such-program\"]").exits(101).complains(&[
        "no-such-program",
        "install it",
        "hint: ",
    ]);
}

#[test]
fn an_unknown_key_for_the_guest_is_the_users_mistake() {
    let kiln = Kiln::new();
    run(&kiln, "binarys = [\"sh\"]").exits(2).complains(&["binarys", "binaries"]);
}

#[test]
fn a_bisection_skips_what_cannot_be_tested() {
    let kiln = Kiln::new();
    kiln.run(&["run", "simple-example", "--bisect", "-k", "./nowhere"]).exits(125);
    kiln.run(&["run", "no-such-scenario", "--bisect"]).exits(130);
}

/// As distributions keep `/boot/vmlinuz-*`: for root alone.
#[test]
fn an_unreadable_kernel_names_both_cures() {
    let kiln = Kiln::new();
    let kernel = kernel(&kiln);
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(kernel.as_ref(), 0o000);
    open(kiln.folder(), 0o755);
    // Root may read everything, so a user without its rights asks; the program must be where that user can get at it.
    let program = kiln.folder().join("kiln");
    // Not by this process: a child forked by another test could still hold the copy open for writing, and what is
    // open for writing cannot be started.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_kiln")).arg(&program).status().unwrap();
    assert!(copied.success());
    let mut command = Command::new(program);
    command.args(["plan", "simple-example", "-k", &kernel]).env_clear().current_dir(kiln.folder());
    command.env("KILN_HOME", kiln.home()).stdin(std::process::Stdio::null());
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    ended(&mut command).exits(96).complains(&[
        "may not read the kernel",
        "sudo chmod +r",
        "kiln kernel fetch debian",
    ]);
}
