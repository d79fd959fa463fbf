//! Kernels, guests and hosts that misbehave: each ends as `docs/exit-codes.md` says, and leaves nothing behind.

use std::process::Command;

use crate::room::{GUEST, Room};

#[test]
fn a_kernel_that_panics_at_boot_fails_the_run_and_says_what_it_said() {
    let room = Room::new();
    room.write(
        "noinit.toml",
        &format!(
            "name = \"noinit\"\n{GUEST}\nkernel_parameters = [\"rdinit=/nowhere\", \"root=/dev/nowhere\"]\n\
             [[stages]]\nname = \"only\"\nrun = \"true\"\n"
        ),
    );
    let ended = room.run(&["run", "noinit.toml"]).exits(100);
    assert!(room.outcomes()[0].starts_with("only: crashed (panic: "), "{:?}", room.outcomes());
    ended.complains(&["Kernel panic - not syncing"]);
    room.nothing_is_left();
}

#[test]
fn a_guest_that_says_nothing_is_no_verdict_on_the_kernel() {
    let room = Room::new();
    room.write(
        "silent.toml",
        &format!(
            "name = \"silent\"\n{}\nkernel_parameters = [\"console=null\", \"module_blacklist=virtio_console\", \"initcall_blacklist=virtio_console_init\"]\n\
             [[stages]]\nname = \"only\"\nrun = \"true\"\n",
            GUEST.replace("4m", "25s")
        ),
    );
    let ended = room.run(&["run", "silent.toml"]).exits(103);
    assert!(room.outcomes()[0].starts_with("only: broken ("), "{:?}", room.outcomes());
    ended.complains(&["boot_timeout"]);
    room.nothing_is_left();
    room.run(&["run", "silent.toml", "--bisect", "--boot-timeout", "1s"]).exits(125);
}

#[test]
fn a_flood_on_the_console_is_bounded_and_a_fork_does_not_outlive_its_stage() {
    let room = Room::new();
    room.write(
        "unruly.toml",
        &format!(
            r#"
name = "unruly"
{GUEST}
[[stages]]
name = "forks"
run = "setsid sleep 1000 & sleep 999 & echo left two behind"
[[stages]]
name = "looks"
run = "for file in /proc/[0-9]*/comm; do read name <$file && echo saw $name; done; exit 0"
[[stages]]
name = "floods"
timeout = "4m"
run = "dd if=/dev/zero bs=1M count=20 2>/dev/null; echo; echo kept >/dev/kmsg"
"#
        ),
    );
    room.run(&["run", "unruly.toml"]).exits(0);
    assert_eq!(room.outcomes(), ["forks: passed", "looks: passed", "floods: passed"]);
    let seen = room.run(&["replay", "last/looks"]).exits(0).stdout;
    assert!(seen.contains("saw ") && !seen.contains("saw sleep"), "{seen}");
    let (_, folder) = room.recorded();
    let cast = std::fs::metadata(folder.cast(&"floods".parse().unwrap())).unwrap().len();
    assert!(cast <= kiln_history::LARGEST_CAST + (1 << 20), "{cast} bytes of terminal were kept");
    room.nothing_is_left();
}

/// On a file system of its own that is far too small for what the stage prints.
#[test]
fn a_full_disk_under_the_recording_is_told_and_what_was_recorded_stays_readable() {
    let room = Room::new();
    room.write(
        "chatty.toml",
        &format!(
            "name = \"chatty\"\n{GUEST}\n\
             [[stages]]\nname = \"quiet\"\nrun = \"true\"\n\
             [[stages]]\nname = \"chatty\"\nrun = \"dd if=/dev/urandom bs=64k count=200 2>/dev/null; true\"\n\
             [[stages]]\nname = \"never\"\nrun = \"true\"\n"
        ),
    );
    std::fs::create_dir(room.path().join("data")).unwrap();
    let inside = "mount -t tmpfs -o size=4m kiln data || exit 77\n\
                  \"$0\" run chatty.toml; echo \"run exited with $?\" >&2\n\
                  \"$0\" show last";
    let kiln = room.command(&[]);
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--map-root-user",
        "/bin/sh",
        "-c",
        inside,
        env!("CARGO_BIN_EXE_kiln"),
    ]);
    command.current_dir(room.path()).env_clear().stdin(std::process::Stdio::null());
    command.envs(kiln.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().expect("unshare (util-linux) starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "a mount of one's own needs user namespaces\n{stderr}"
    );
    assert!(stderr.contains("run exited with 103"), "{stderr}\n{stdout}");
    assert!(stderr.contains("no other stage is started"), "{stderr}");
    assert!(stdout.contains("passed") && stdout.contains("quiet"), "{stdout}");
    assert!(stdout.contains("not-run"), "{stdout}");
}
