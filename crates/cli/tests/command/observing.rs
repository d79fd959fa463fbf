//! What can be seen of a pool: `kiln disk tree`, `top` and `metrics`, while it is served and while it is not.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::kiln::Kiln;

fn pool() -> Kiln {
    let kiln = Kiln::new();
    for line in [
        "create base --size 8M",
        "snap base monday",
        "snap base tuesday",
        "clone base@monday vm-1",
        "create \"<b>\\ --size 1M",
    ] {
        let mut words = vec!["disk"];
        words.extend(line.split(' '));
        kiln.run(&words).exits(0);
    }
    kiln
}

/// A command that goes on until it is told to end.
struct Running {
    child: Child,
}

impl Running {
    fn end(mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), signal).expect("it can be told");
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `kiln disk serve base`, with metrics beside; answers once 64K were written to it.
fn served(kiln: &Kiln) -> Running {
    let mut command = kiln.command(&["disk", "serve", "base", "--nbd", "unix:nbd"]);
    command.args(["--metrics", "unix:metrics"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("kiln starts");
    let mut uri = String::new();
    let stdout = child.stdout.take().expect("a pipe");
    BufReader::new(stdout).read_line(&mut uri).expect("stdout can be read");
    let running = Running { child };
    let io = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write 0 64k", "-c", "flush", uri.trim()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(io.expect("qemu-io is installed (package qemu-utils)").success(), "{uri}");
    running
}

fn scraped(kiln: &Kiln) -> String {
    let mut stream = UnixStream::connect(kiln.folder().join("metrics")).expect("it listens");
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

#[test]
fn a_tree_is_drawn_in_every_way_that_is_asked_for() {
    let kiln = Kiln::new();
    kiln.run(&["disk", "tree"]).exits(0).complains(&["no disks yet"]);
    assert_eq!(kiln.run(&["disk", "tree", "--format", "json"]).exits(0).stdout, "[]\n");
    let kiln = pool();
    let text = kiln.run(&["disk", "tree"]).exits(0).stdout;
    let shown: Vec<&str> = text.lines().map(|line| line.split("  ").next().unwrap_or("")).collect();
    let tree = ["─ \"<b>\\", "┌ base@monday", "├── vm-1", "├ base@tuesday", "└ base"];
    assert_eq!(shown, tree, "{text}");
    for arguments in [["--format", "json"], ["--to", "json"]] {
        let mut words = vec!["disk", "tree"];
        words.extend(arguments);
        let json = kiln.run(&words).exits(0).json();
        let vm = json.as_array().and_then(|all| all.iter().find(|node| node["name"] == "vm-1"));
        assert_eq!(vm.map(|vm| &vm["origin"]), Some(&"base@monday".into()), "{json}");
    }
    let dot = kiln.run(&["disk", "tree", "--to", "dot", "--format", "json"]).exits(0).stdout;
    assert!(
        dot.starts_with("digraph disks {\n") && dot.contains("label=\"\\\"<b>\\\\\\n1M"),
        "{dot}"
    );
    let svg = kiln.run(&["disk", "tree", "--to", "svg"]).exits(0).stdout;
    assert!(svg.starts_with("<svg ") && svg.contains("&quot;&lt;b&gt;\\"), "{svg}");
}

#[test]
fn what_is_served_is_counted_and_told_to_prometheus_and_to_people() {
    let kiln = pool();
    let alone = kiln.run(&["disk", "metrics"]).exits(0).stdout;
    assert!(alone.contains("\nkiln_pool_size_bytes ") && !alone.contains("disk=\""), "{alone}");
    let served = served(&kiln);
    let written = "\nkiln_disk_bytes_total{disk=\"base\",operation=\"write\"} 65536\n";
    let told = scraped(&kiln);
    assert!(
        told.contains(written) && told.contains("Content-Type: text/plain; version=0.0.4"),
        "{told}"
    );
    assert!(told.contains("\nkiln_disk_size_bytes{disk=\"base\"} 8388608\n"), "{told}");
    let printed = kiln.run(&["disk", "metrics"]).exits(0).stdout;
    assert!(printed.contains(written), "{printed}");
    let json = kiln.run(&["disk", "metrics", "--format", "json"]).exits(0).json();
    assert_eq!(json["disks"][0]["write"]["bytes"], 65536, "{json}");
    let once = kiln.run(&["disk", "top", "--every", "0.1"]).exits(0).stdout;
    assert!(once.starts_with("space ") && once.contains("\nbase "), "{once}");
    let none = kiln.run(&["disk", "top", "--once", "--every", "0.1", "other"]).exits(0).stdout;
    assert!(!none.contains("\nbase "), "{none}");
    let refused = ["disk", "metrics", "--listen", "0.0.0.0:0"];
    kiln.run(&refused).exits(2).complains(&["loopback"]);
    assert_eq!(served.end(Signal::TERM), Some(0));
    assert!(!kiln.folder().join("metrics").exists(), "the socket goes with the command");
}

#[test]
fn a_stream_of_samples_ends_with_its_reader() {
    let kiln = pool();
    let _served = served(&kiln);
    let mut command = kiln.command(&["disk", "top", "--format", "json", "--every", "0.1"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("kiln starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    for _ in 0..2 {
        let line = lines.next().expect("one line for each sample").expect("text");
        let sample: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(sample["disks"][0]["name"], "base", "{sample}");
        assert!(sample["seconds"].as_f64().is_some_and(|seconds| seconds >= 0.1), "{sample}");
    }
    drop(lines);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn on_a_terminal_the_figures_are_drawn_over_and_nothing_is_left_switched_on() {
    use rustix::fs::{Mode, OFlags};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let kiln = pool();
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = openpt(flags).expect("a terminal");
    grantpt(&terminal).expect("it is ours");
    unlockpt(&terminal).expect("it is ours");
    let name = ptsname(&terminal, Vec::new()).expect("it has a name");
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let end = File::from(rustix::fs::open(name, flags, Mode::empty()).expect("its other end"));
    let mut command = kiln.command(&["disk", "top", "--every", "0.1"]);
    command.env("TERM", "xterm").stdout(end).stderr(Stdio::null());
    let running = Running { child: command.spawn().expect("kiln starts") };
    // The descriptor that became the command's stdout is not kept open here.
    drop(command);
    let mut terminal = File::from(terminal);
    let mut seen = String::new();
    let mut bytes = [0; 4096];
    // Drawn three times: twice over what was there.
    while seen.matches("DISK ").count() < 3 {
        let len = terminal.read(&mut bytes).expect("it draws");
        seen.push_str(&String::from_utf8_lossy(&bytes[..len]));
    }
    assert_eq!(running.end(Signal::INT), Some(0));
    // Reading fails once nobody holds the other end.
    while let Ok(len @ 1..) = terminal.read(&mut bytes) {
        seen.push_str(&String::from_utf8_lossy(&bytes[..len]));
    }
    assert!(
        seen.contains("nobody is served with a disk yet") && seen.contains("\x1b[4A\r"),
        "{seen:?}"
    );
    assert!(!seen.contains("\x1b[?") && seen.ends_with("\x1b[J"), "{seen:?}");
}
