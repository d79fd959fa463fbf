//! Real machines with disks over vhost-user, whose back-end is killed, whose machine is killed, that grow, and that
//! are saved. These tests need QEMU and a kernel (`KILN_TEST_KERNEL`, or one that `make kernel` fetched).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod machine;
#[path = "../vhost_user/serve.rs"]
mod serve;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use machine::{Machine, Room};
use serve::Backend;

/// Kills the back-end when the guest has come so far, and starts another.
fn kill_at(machine: &mut Machine, backend: &mut Backend, room: &Room, word: &str) {
    machine.until(word);
    backend.kill();
    *backend = room.serve();
}

/// `e2fsck` with these arguments finds nothing wrong.
fn check(arguments: &[&str], disk: &Path) {
    let output = Command::new("e2fsck").args(arguments).arg(disk).stdin(Stdio::null()).output();
    let output = output.expect("e2fsck runs: `script/bootstrap` installs it");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_guest_writes_on_while_its_back_end_is_killed() {
    let room = Room::new();
    let mut backend = room.serve();
    let mut machine = room.boot("verify=60", &[]);
    for round in ["ROUND 5\n", "ROUND 12", "ROUND 20", "ROUND 28", "ROUND 41"] {
        kill_at(&mut machine, &mut backend, &room, round);
    }
    machine.until("VERIFIED");
}

#[test]
fn a_file_system_outlives_its_back_end_and_its_machine() {
    let room = Room::new();
    room.format();
    let mut backend = room.serve();
    let mut machine = room.boot("files=40", &[]);
    for file in ["SYNCED 3\n", "SYNCED 11", "SYNCED 22"] {
        kill_at(&mut machine, &mut backend, &room, file);
    }
    machine.until("WRITTEN");
    drop(machine);
    check(&["-fn"], &room.disk());

    // The next machine dies while it writes further files over them.
    let mut machine = room.boot("check=40 files=1000", &[]);
    machine.until("CHECKED");
    machine.until("SYNCED 25");
    drop(machine);
    drop(backend);
    // What the journal holds belongs to the file system: it is replayed before anybody looks for damage.
    let replayed =
        Command::new("e2fsck").args(["-p", "-E", "journal_only"]).arg(room.disk()).output();
    assert!(matches!(replayed.unwrap().status.code(), Some(0 | 1)));
    check(&["-fn"], &room.disk());
    let _backend = room.serve();
    room.boot("check=40", &[]).until("CHECKED");
}

#[test]
fn a_guest_sees_its_disk_grow() {
    let room = Room::new();
    let mut backend = room.serve();
    let mut machine = room.boot("resized", &[]);
    machine.until("WATCHING");
    backend.0.stdin.as_mut().unwrap().write_all(b"96M\n").unwrap();
    machine.until("SIZE 100663296");
}

/// QEMU saves a machine only if every device can say which memory it writes. The machine stands still meanwhile:
/// QEMU 7.2 with two translated processors loses writes of a running one, whatever disk it has.
#[test]
fn a_machine_is_saved_while_it_writes_and_goes_on_elsewhere() {
    let room = Room::new();
    let _backend = room.serve();
    let mut machine = room.boot("verify=100", &[]);
    machine.until("ROUND 3");
    let state = room.folder().join("state");
    let mut monitor = machine.monitor();
    monitor.run("stop", "{}");
    monitor.run("migrate", &format!(r#"{{"uri":"exec:cat > {}"}}"#, state.display()));
    monitor.until("query-migrate", "completed");
    drop(machine);
    let incoming = format!("exec:cat {}", state.display());
    let mut machine = room.boot("verify=100", &["-incoming", &incoming]);
    let mut monitor = machine.monitor();
    monitor.until("query-status", "paused");
    monitor.run("cont", "{}");
    machine.until("VERIFIED");
}
