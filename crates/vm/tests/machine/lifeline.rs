//! No child outlives its parent, whichever way the parent goes.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use kiln_vm::lifeline;

/// Not a test: the parent that another test kills. Its child inherits our standard output, and so do the child's
/// children: the pipe ends when the last of them is gone.
#[test]
#[ignore = "plays the parent that is killed"]
fn doomed_parent() {
    if std::env::var_os("KILN_TEST_DOOMED").is_none() {
        return;
    }
    let script = std::env::var("KILN_TEST_SCRIPT").expect("set by the test that started us");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::inherit());
    let child = lifeline::spawn(command, Vec::new()).expect("a shell starts");
    let _ = child.wait(None);
}

/// Starts the parent, waits until its child says it is there, kills the parent, and waits for the pipe's end. A child
/// that stays makes the test hang, and its runner says so.
fn outlives(script: &str) {
    let mut parent = Command::new(std::env::current_exe().expect("a test has a path"))
        .args([
            "--exact",
            "lifeline::doomed_parent",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("KILN_TEST_DOOMED", "1")
        .env("KILN_TEST_SCRIPT", script)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program starts again");
    let mut pipe = parent.stdout.take().expect("piped");
    let mut said = Vec::new();
    let mut buffer = [0; 256];
    while !String::from_utf8_lossy(&said).contains("child-is-there") {
        let count = pipe.read(&mut buffer).expect("a pipe");
        assert_ne!(count, 0, "the child never came: {}", String::from_utf8_lossy(&said));
        said.extend_from_slice(&buffer[..count]);
    }
    parent.kill().expect("our child");
    parent.wait().expect("our child");
    pipe.read_to_end(&mut said).expect("a pipe");
}

#[test]
fn a_child_dies_with_a_parent_killed_by_sigkill() {
    outlives("echo child-is-there; exec sleep 3000");
}

#[test]
fn a_grandchild_dies_with_a_grandparent_killed_by_sigkill() {
    outlives("sleep 3000 & sleep 3000 & echo child-is-there; wait");
}

#[test]
fn a_child_that_shields_itself_from_signals_dies_too() {
    outlives("trap '' HUP INT TERM QUIT; echo child-is-there; sleep 3000; sleep 3000");
}

#[test]
fn dropping_kills_the_whole_group() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "sleep 3000 & echo up; wait"]).stdout(OwnedFd::from(theirs));
    let child = lifeline::spawn(command, Vec::new()).unwrap();
    let mut said = [0; 3];
    ours.read_exact(&mut said).unwrap();
    drop(child);
    assert_eq!(ours.read(&mut said).unwrap(), 0, "nobody holds the other end any more");
}

#[test]
fn a_child_that_ends_takes_what_it_left_behind_along() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "sleep 3000 & exit 7"]);
    let child = lifeline::spawn(command, vec![theirs.into()]).unwrap();
    assert_eq!(child.wait(None).unwrap().unwrap().code(), Some(7));
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    assert_eq!(child.wait(None).unwrap().unwrap().code(), Some(7), "asked twice, told twice");
    child.kill();
}

#[test]
fn waiting_with_a_deadline_that_has_passed_returns_at_once() {
    let mut command = Command::new("/bin/cat");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let child = lifeline::spawn(command, Vec::new()).unwrap();
    assert_eq!(child.wait(Some(Instant::now())).unwrap(), None);
    let mut input = child.take_stdin().unwrap();
    input.write_all(b"x").unwrap();
    drop(input);
    assert!(child.wait(None).unwrap().unwrap().success());
}

#[test]
fn a_program_that_does_not_exist_is_an_error_and_leaves_nothing() {
    let error = lifeline::spawn(Command::new("/nonexistent"), Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}
