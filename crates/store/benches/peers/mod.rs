//! Servers under test, and fio as their client.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A server: a process, and how fio reaches it.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) uri: String,
    pub(crate) pid: u32,
    /// Of a process that is ours to end; a pool's owner ends by itself.
    child: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Server {
    /// One that somebody else has started.
    pub(crate) fn running(name: &'static str, pid: u32, uri: &str) -> Server {
        Server { name, uri: uri.to_owned(), pid, child: None }
    }

    /// Starts one that listens on a socket in a folder; nothing if its program is not installed.
    pub(crate) fn start(
        name: &'static str,
        folder: &Path,
        program: &str,
        arguments: impl Fn(&Path) -> Vec<String>,
    ) -> Option<Server> {
        let socket = free(folder, name);
        let mut command = Command::new(program);
        command.args(arguments(&socket));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                println!("{name} is left out: {error}");
                return None;
            }
        };
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "{name} ended at once");
            std::thread::sleep(Duration::from_millis(10));
        }
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        Some(Server { name, uri, pid: child.id(), child: Some(child) })
    }
}

/// A path for a socket that no server has had.
fn free(folder: &Path, name: &str) -> PathBuf {
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    (0..).map(|n| folder.join(format!("{name}{n}"))).find(|path| !path.exists()).unwrap()
}

/// `qemu-nbd` with an image.
pub(crate) fn qemu(
    name: &'static str,
    folder: &Path,
    format: &str,
    image: &Path,
) -> Option<Server> {
    Server::start(name, folder, "qemu-nbd", |socket| {
        let (socket, image) = (socket.display(), image.display());
        format!("-t -f {format} -e 16 --cache=writeback -k {socket} {image}")
            .split(' ')
            .map(str::to_owned)
            .collect()
    })
}

/// Runs a program that must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "{program} {}", arguments.join(" "));
}

/// What a run of fio came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Operations per second.
    pub(crate) rate: f64,
    /// Microseconds of the server's processor time for each.
    pub(crate) cost: f64,
    /// Bytes the server wrote for each, by its own count of what it passed to the kernel.
    pub(crate) written: f64,
}

impl Run {
    /// The better of both, in each respect.
    pub(crate) fn best(self, other: Run) -> Run {
        Run {
            rate: self.rate.max(other.rate),
            cost: self.cost.min(other.cost),
            written: self.written.min(other.written),
        }
    }
}

/// One run against a server.
pub(crate) fn fio(server: &Server, arguments: &[&str]) -> Run {
    let before = (cpu_micros(server.pid), written(server.pid));
    let output = Command::new("fio")
        .args(["--name=bench", "--ioengine=nbd", "--minimal"])
        .arg(format!("--uri={}", server.uri))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("fio runs: `script/bootstrap` installs it");
    let line = String::from_utf8(output.stdout).unwrap();
    let fields: Vec<&str> = line.trim().split(';').collect();
    assert!(output.status.success() && fields.len() > 50, "fio failed: {line}");
    let after = (cpu_micros(server.pid), written(server.pid));
    // fio's terse format: bytes in KiB, rate and run time of reads start at field 5, of writes at 46.
    let number = |index: usize| fields[index].parse::<f64>().unwrap();
    let rate = number(7) + number(48);
    let operations = (number(5) + number(46)) / 4.0;
    Run {
        rate,
        cost: (after.0 - before.0) / operations,
        written: (after.1 - before.1) / operations,
    }
}

/// Processor time of a process and all its threads, user and system.
fn cpu_micros(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    // A tick is 10 ms, on every machine Linux runs on.
    ticks * 10_000.0
}

fn field(file: &str, name: &str) -> f64 {
    let text = std::fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn written(pid: u32) -> f64 {
    field(&format!("/proc/{pid}/io"), "wchar:")
}

/// The most memory a process ever had, in MiB.
pub(crate) fn peak_memory(pid: u32) -> f64 {
    field(&format!("/proc/{pid}/status"), "VmHWM:") / 1024.0
}
