//! `kiln shell`, with a terminal and without.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::room::Room;

#[test]
fn without_a_terminal_stdin_is_the_script_and_its_status_comes_back() {
    let room = Room::new();
    let mut shell = room
        .command(&["shell", "simple-example", "--env", "GREETING=hello there"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = shell.stdin.take().unwrap();
    stdin.write_all(b"echo $GREETING; cat /proc/1/comm; exit 3\n").unwrap();
    drop(stdin);
    let output = shell.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("hello there\n"), "{output:?}");
}

/// Both ends of a terminal.
fn terminal() -> (OwnedFd, File) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let theirs = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    (ours, theirs)
}

fn resize(ours: &OwnedFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(ours, size).unwrap();
}

/// What a person sees, until it holds what they wait for.
struct Screen {
    from: File,
    seen: String,
}

impl Screen {
    #[track_caller]
    fn until(&mut self, wanted: &str) {
        let mut buffer = [0; 4096];
        while !self.seen.contains(wanted) {
            // The other end is held open by this test: a program that ends without a word is seen by `ended`.
            let count = self.from.read(&mut buffer).unwrap_or(0);
            assert!(count > 0, "the terminal closed before {wanted:?}:\n{}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
            assert!(!self.seen.contains("error: "), "{}", self.seen);
        }
        let end = self.seen.find(wanted).unwrap() + wanted.len();
        self.seen.drain(..end);
    }
}

/// A shell on a terminal of its own.
struct Seat {
    _room: Room,
    ours: OwnedFd,
    theirs: File,
    before: Termios,
    shell: Child,
    keys: File,
    screen: Screen,
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Of a test that failed halfway, the machine goes with the shell.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

impl Seat {
    fn take() -> Seat {
        let room = Room::new();
        let (ours, theirs) = terminal();
        resize(&ours, 33, 101);
        let before = tcgetattr(&theirs).unwrap();
        let mut command = room.command(&["shell", "simple-example"]);
        command.env("TERM", "xterm").stdin(theirs.try_clone().unwrap());
        command.stdout(theirs.try_clone().unwrap()).stderr(theirs.try_clone().unwrap());
        let shell = command.spawn().unwrap();
        let keys = File::from(ours.try_clone().unwrap());
        let screen = Screen { from: File::from(ours.try_clone().unwrap()), seen: String::new() };
        Seat { _room: room, ours, theirs, before, shell, keys, screen }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for the end, and asserts that the terminal is as it was.
    #[track_caller]
    fn leaves(mut self, code: i32) {
        assert_eq!(self.shell.wait().unwrap().code(), Some(code), "{}", self.screen.seen);
        let after = tcgetattr(&self.theirs).unwrap();
        assert_eq!(self.before.local_modes, after.local_modes);
        assert_eq!(self.before.input_modes, after.input_modes);
        assert_eq!(self.before.output_modes, after.output_modes);
    }
}

#[test]
fn a_terminal_has_its_size_its_interrupts_and_its_status_and_is_left_as_it_was() {
    let mut seat = Seat::take();
    // What is typed is echoed; the arithmetic makes sure that only an answer matches.
    seat.press("stty size; echo at-$((40 + 2))\n");
    seat.screen.until("33 101\r\nat-42");
    resize(&seat.ours, 44, 122);
    kill_process(Pid::from_child(&seat.shell), Signal::WINCH).unwrap();
    seat.press("until [ \"$(stty size)\" = '44 122' ]; do :; done; echo at-$((40 + 3))\n");
    seat.screen.until("at-43");
    seat.press("echo at-$((40 + 4)); while :; do :; done\n");
    seat.screen.until("at-44");
    seat.press("\x03");
    seat.press("echo at-$((40 + 5))\n");
    seat.screen.until("at-45");
    seat.press("exit 7\n");
    seat.leaves(7);
}

#[test]
fn a_guest_that_hangs_can_be_left() {
    let mut seat = Seat::take();
    seat.press("trap '' INT; echo at-$((40 + 2)); while :; do :; done\n");
    seat.screen.until("at-42");
    seat.press("\x03");
    seat.press("\x1d\x1d\x1d");
    seat.leaves(130);
}
