//! Completion, asked as shells ask, and with a real bash on a real terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::kiln::{Ended, Kiln, ended};

/// How long names are looked for, however loaded the machine is.
const LONG: &str = "10m";

/// A pool with disks and snapshots, and some whose names a shell would stumble over.
fn pool() -> Kiln {
    let kiln = Kiln::new();
    for name in ["base", "basalt", "other", "x$(touch pwned)", "x y"] {
        kiln.run(&["disk", "create", name, "--size", "1M"]).exits(0);
    }
    for snapshot in ["monday", "tuesday"] {
        kiln.run(&["disk", "snap", "base", snapshot]).exits(0);
    }
    kiln
}

/// What zsh and its like would be told, the last word being typed.
fn told(kiln: &Kiln, shell: &str, words: &[&str]) -> Ended {
    let mut command = kiln.command(&["--"]);
    command.args(words).env("KILN_COMPLETE", shell).env("KILN_COMPLETE_PATIENCE", LONG);
    command.env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string()).env("_CLAP_IFS", "\n");
    ended(&mut command)
}

#[test]
fn scripts_exist_for_every_shell_and_ask_kiln() {
    let kiln = Kiln::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = kiln.run(&["completions", shell]).exits(0).stdout;
        assert!(script.contains("KILN_COMPLETE") && script.contains(shell), "{script}");
    }
}

#[test]
fn commands_flags_and_values_are_known() {
    let kiln = Kiln::new();
    assert!(told(&kiln, "fish", &["kiln", "repl"]).exits(0).stdout.starts_with("replay\t"));
    assert_eq!(
        told(&kiln, "zsh", &["kiln", "disk", "tree", "--to", "s"]).exits(0).stdout,
        "svg:A picture"
    );
    let flags = told(&kiln, "elvish", &["kiln", "disk", "tree", "--f"]).exits(0).stdout;
    assert_eq!(flags, "--format");
}

#[test]
fn names_are_offered_where_they_fit_and_only_harmless_ones() {
    let kiln = pool();
    let names = |words: &[&str]| told(&kiln, "elvish", words).exits(0).stdout;
    assert_eq!(names(&["kiln", "disk", "snaps", "ba"]), "basalt\nbase");
    assert_eq!(names(&["kiln", "disk", "rm", "other", "base@"]), "base@monday\nbase@tuesday");
    assert_eq!(names(&["kiln", "disk", "clone", "bas"]), "basalt@\nbase@");
    assert_eq!(names(&["kiln", "disk", "snaps", "x"]), "");
    assert_eq!(names(&["kiln", "disk", "--pool", "nowhere", "snaps", "ba"]), "");
    let there = kiln.home().join("data/disks.pool");
    let there = there.to_str().expect("a path in UTF-8");
    assert_eq!(names(&["kiln", "disk", "--pool", there, "snaps", "ot"]), "other");
}

#[test]
fn nobody_is_waited_for_and_nothing_is_left() {
    let kiln = pool();
    let pool = kiln.home().join("data/disks.pool");
    let before = std::fs::read_dir(kiln.home().join("data")).expect("a folder").count();
    let file = File::open(&pool).expect("it was made");
    rustix::fs::flock(&file, FlockOperation::LockExclusive).expect("nobody has it");
    let names = told(&kiln, "elvish", &["kiln", "disk", "snaps", "ba"]).exits(0);
    assert_eq!((names.stdout.as_str(), names.stderr.as_str()), ("basalt\nbase", ""));
    assert_eq!(std::fs::read_dir(kiln.home().join("data")).expect("a folder").count(), before);
    // And what cannot be answered is not answered, without a word.
    let mut command = kiln.command(&["--", "kiln", "disk", "snaps", "ba"]);
    command.env("KILN_COMPLETE", "elvish").env("_CLAP_COMPLETE_INDEX", "3");
    command.env_remove("HOME").env_remove("KILN_HOME");
    let nothing = ended(&mut command).exits(0);
    assert_eq!((nothing.stdout.as_str(), nothing.stderr.as_str()), ("", ""));
    std::fs::write(&pool, vec![7; 1 << 20]).expect("a file");
    let nothing = told(&kiln, "elvish", &["kiln", "disk", "snaps", "ba"]).exits(0);
    assert_eq!((nothing.stdout.as_str(), nothing.stderr.as_str()), ("", ""));
}

/// A bash that believes somebody sits in front of it.
struct Bash {
    child: Child,
    terminal: File,
    seen: String,
}

impl Bash {
    fn start(kiln: &Kiln) -> Bash {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let terminal = terminal.expect("a terminal");
        grantpt(&terminal).expect("it is ours");
        unlockpt(&terminal).expect("it is ours");
        let name = ptsname(&terminal, Vec::new()).expect("it has a name");
        let end =
            rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
        let end = File::from(end.expect("its other end"));
        let both = |end: &File| Stdio::from(end.try_clone().expect("a descriptor"));
        let own = Path::new(env!("CARGO_BIN_EXE_kiln")).parent().expect("a folder");
        let path = format!("{}:{}", own.display(), std::env::var("PATH").unwrap_or_default());
        let child = Command::new("bash")
            .args(["--norc", "--noprofile", "--noediting", "-i"])
            .args(["-o", "emacs"])
            .current_dir(kiln.folder())
            .env_clear()
            .env("PATH", path)
            .env("HOME", kiln.folder())
            .env("KILN_HOME", kiln.home())
            .env("KILN_COMPLETE_PATIENCE", LONG)
            .env("INPUTRC", "/dev/null")
            .env("HISTFILE", "")
            .env("TERM", "dumb")
            .env("PS1", "> ")
            .stdin(both(&end))
            .stdout(both(&end))
            .stderr(both(&end))
            .spawn()
            .expect("bash starts");
        let mut bash = Bash { child, terminal: File::from(terminal), seen: String::new() };
        // From here on `kiln` shows what it was called with; completion asks the program all the same.
        bash.keys("eval \"$(command kiln completions bash)\"; kiln() { printf '<%s>' \"$@\"; echo; }; echo rea''dy\n");
        bash.until("ready\r\n");
        bash
    }

    fn keys(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).expect("bash reads");
    }

    /// Reads until this is seen, and forgets everything up to it.
    fn until(&mut self, text: &str) {
        while !self.seen.contains(text) {
            let mut wait = [PollFd::new(&self.terminal, PollFlags::IN)];
            let patience = rustix::time::Timespec { tv_sec: 120, tv_nsec: 0 };
            let ready = poll(&mut wait, Some(&patience)).expect("it can be waited for");
            assert!(ready > 0, "no {text:?} in {:?}", self.seen);
            let mut bytes = [0; 4096];
            let len = self.terminal.read(&mut bytes).expect("bash is there");
            self.seen.push_str(&String::from_utf8_lossy(&bytes[..len]));
        }
        let at = self.seen.find(text).unwrap_or(0) + text.len();
        self.seen.drain(..at);
    }
}

impl Drop for Bash {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn bash_completes_names_though_it_takes_them_apart_at_the_sign() {
    let kiln = pool();
    std::fs::create_dir(kiln.folder().join("a folder")).expect("a folder");
    let mut bash = Bash::start(&kiln);
    for (keys, words) in [
        ("kiln disk snaps oth\tx", "<disk><snaps><other><x>"),
        ("kiln disk cl\tbase\t\x15kiln disk cl\tbase@mo\tnew", "<disk><clone><base@monday><new>"),
        ("kiln disk rollback base@t\t", "<disk><rollback><base@tuesday>"),
        ("kiln disk diff base@m\tbase@tu\t", "<disk><diff><base@monday><base@tuesday>"),
        ("kiln disk rm 'base@m\tother", "<disk><rm><base@monday><other>"),
        ("kiln disk tree --format=j\t", "<disk><tree><--format=json>"),
        ("echo x; kiln disk sta\tot\t", "<disk><stat><other>"),
        ("kiln disk snaps x\t", "<disk><snaps><x>"),
        ("kiln publish a\\ fo\t", "<publish><a folder/>"),
    ] {
        bash.keys(keys);
        bash.keys("\n");
        bash.until(&format!("{words}\r\n"));
    }
    assert!(!kiln.folder().join("pwned").exists());
}
