//! `kiln shell`, with a terminal and without.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

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

#[test]
fn a_terminal_has_its_size_its_interrupts_and_its_status_and_is_left_as_it_was() {
    let room = Room::new();
    let (ours, theirs) = terminal();
    resize(&ours, 33, 101);
    let before = tcgetattr(&theirs).unwrap();
    let mut command = room.command(&["shell", "simple-example"]);
    command.env("TERM", "xterm").stdin(theirs.try_clone().unwrap());
    command.stdout(theirs.try_clone().unwrap()).stderr(theirs.try_clone().unwrap());
    let mut shell = command.spawn().unwrap();
    let mut keys = File::from(ours.as_fd().try_clone_to_owned().unwrap());
    let mut screen = Screen {
        from: File::from(ours.as_fd().try_clone_to_owned().unwrap()),
        seen: String::new(),
    };
    let mut press = |text: &str| keys.write_all(text.as_bytes()).unwrap();

    // What is typed is echoed; the arithmetic makes sure that only an answer matches.
    press("stty size; echo at-$((40 + 2))\n");
    screen.until("33 101\r\nat-42");
    resize(&ours, 44, 122);
    kill_process(Pid::from_child(&shell), Signal::WINCH).unwrap();
    press("until [ \"$(stty size)\" = '44 122' ]; do :; done; echo at-$((40 + 3))\n");
    screen.until("at-43");
    press("echo at-$((40 + 4)); while :; do :; done\n");
    screen.until("at-44");
    press("\x03");
    press("echo at-$((40 + 5))\n");
    screen.until("at-45");
    press("exit 7\n");
    assert_eq!(shell.wait().unwrap().code(), Some(7), "{}", screen.seen);
    let after = tcgetattr(&theirs).unwrap();
    assert_eq!(before.local_modes, after.local_modes);
    assert_eq!(before.input_modes, after.input_modes);
    assert_eq!(before.output_modes, after.output_modes);
}
