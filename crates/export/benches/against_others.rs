//! A raw file served by Kiln, by qemu-nbd and by nbdkit: operations per second, and the server's processor
//! time for each.
//!
//! The client is fio on a unix socket, the same for all, and the servers take turns: each round measures
//! every server once, so that whatever else the machine does meets all of them. The best of the rounds
//! counts for speed, the least for processor time. The file is written whole before, and is in the page
//! cache. `--quick` measures briefly, to see that everything works.

#![expect(clippy::print_stdout, reason = "figures are what a benchmark is for")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, FileDevice};
use kiln_export::nbd::{Address, Server};
use kiln_export::{Export, Exports};

/// What fio is asked to do: name, its arguments.
const WORKLOADS: [(&str, &[&str]); 6] = [
    ("4k random read, qd 1", &["--rw=randread", "--bs=4k", "--iodepth=1"]),
    ("4k random write, qd 1", &["--rw=randwrite", "--bs=4k", "--iodepth=1"]),
    ("4k random read, qd 32", &["--rw=randread", "--bs=4k", "--iodepth=32"]),
    ("4k random write, qd 32", &["--rw=randwrite", "--bs=4k", "--iodepth=32"]),
    ("64k sequential read, qd 32", &["--rw=read", "--bs=64k", "--iodepth=32"]),
    ("64k sequential write, qd 32", &["--rw=write", "--bs=64k", "--iodepth=32"]),
];
const SIZE: ByteLen = ByteLen::mib(256);

/// A server under test: a process, and the socket it listens on.
struct Peer {
    name: &'static str,
    child: Child,
    socket: std::path::PathBuf,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--serve") {
        serve(Path::new(&arguments[at + 1]), Path::new(&arguments[at + 2]));
    }
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let (rounds, seconds) = if quick { (1, 1) } else { (5, 2) };

    // The sockets need a short path, the disk a real file system: /tmp may be memory.
    let sockets = tempfile::Builder::new().prefix("kiln-nbd").tempdir_in("/tmp").unwrap();
    let program = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    let image = folder.path().join("disk.raw");
    fill(&image);

    let mut peers = Vec::new();
    let mut start = |name: &'static str, program: &str, arguments: &[&str]| {
        let socket = sockets.path().join(name);
        let words = arguments.iter().map(|word| match *word {
            "SOCKET" => socket.clone().into_os_string(),
            "IMAGE" => image.clone().into_os_string(),
            "FILE=IMAGE" => format!("file={}", image.display()).into(),
            word => word.into(),
        });
        let child = Command::new(program)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match child {
            Ok(child) => {
                let mut peer = Peer { name, child, socket };
                while std::os::unix::net::UnixStream::connect(&peer.socket).is_err() {
                    assert!(peer.child.try_wait().unwrap().is_none(), "{name} ended at once");
                    std::thread::sleep(Duration::from_millis(10));
                }
                peers.push(peer);
            }
            Err(error) => println!("{name} is left out: {error}"),
        }
    };
    start("kiln", program.to_str().unwrap(), &["--serve", "IMAGE", "SOCKET"]);
    let qemu = ["-t", "-f", "raw", "-e", "16", "--cache=writeback", "-k", "SOCKET", "IMAGE"];
    start("qemu-nbd", "qemu-nbd", &qemu);
    start("nbdkit", "nbdkit", &["-f", "-U", "SOCKET", "file", "FILE=IMAGE"]);

    let mut met = true;
    for (workload, arguments) in WORKLOADS {
        // Per server: operations per second and processor microseconds per operation, best of each.
        let mut best = vec![(0.0_f64, f64::INFINITY); peers.len()];
        for round in 0..rounds {
            for turn in 0..peers.len() {
                let index = (turn + round) % peers.len();
                let (rate, cost) = measure(&peers[index], arguments, seconds);
                best[index] = (best[index].0.max(rate), best[index].1.min(cost));
            }
        }
        println!("{workload}");
        let (own_rate, own_cost) = best[0];
        for (peer, (rate, cost)) in peers.iter().zip(&best) {
            println!(
                "  {:9} {rate:9.0} per s, {cost:6.1} us of server per operation; \
                 Kiln has {:.2} of its speed and {:.2} of its cost",
                peer.name,
                own_rate / rate,
                own_cost / cost
            );
        }
        met &= judge(workload, own_rate, own_cost, &peers, &best);
    }
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the bars for small requests are reached; says which are not.
fn judge(workload: &str, rate: f64, cost: f64, peers: &[Peer], best: &[(f64, f64)]) -> bool {
    if !workload.starts_with("4k") {
        return true;
    }
    let mut met = true;
    for (peer, (their_rate, their_cost)) in peers.iter().zip(best) {
        let (least_speed, most_cost) = match peer.name {
            "qemu-nbd" => (if workload.ends_with("32") { 2.0 } else { 1.2 }, 0.6),
            "nbdkit" => (0.0, 1.2),
            _ => continue,
        };
        if rate < their_rate * least_speed || cost > their_cost * most_cost {
            println!("  MISSED against {}: {least_speed} of speed, {most_cost} of cost", peer.name);
            met = false;
        }
    }
    met
}

/// Serves a file until it is killed.
fn serve(image: &Path, socket: &Path) -> ! {
    let disk = FileDevice::open(image, false).unwrap();
    let exports = Exports::one("", Export::new(Arc::new(disk))).unwrap();
    let _server = Server::start(&Address::Unix(socket.to_owned()), exports).unwrap();
    loop {
        std::thread::park();
    }
}

fn fill(path: &Path) {
    let disk = FileDevice::create(path, SIZE).unwrap();
    // In pages: what is written in larger pieces is cached in larger ones, and ext4 then walks a whole one
    // for every small write. That would be measured instead of the servers.
    let mut bytes = vec![0; 4096];
    let mut dice = Dice::seeded(1);
    for at in (0..SIZE.get()).step_by(4096) {
        dice.fill(&mut bytes);
        disk.write_at(ByteOffset::new(at), &bytes).unwrap();
    }
    disk.flush().unwrap();
}

/// One run of fio: operations per second, and the server's microseconds per operation.
fn measure(peer: &Peer, arguments: &[&str], seconds: u32) -> (f64, f64) {
    let before = cpu_ticks(peer.child.id());
    let output = Command::new("fio")
        .args(["--name=bench", "--ioengine=nbd", "--time_based", "--minimal", "--norandommap"])
        .arg(format!("--uri=nbd+unix:///?socket={}", peer.socket.display()))
        .arg(format!("--size={}", SIZE.get()))
        .arg(format!("--runtime={seconds}"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("fio runs: `script/bootstrap` installs it");
    let line = String::from_utf8(output.stdout).unwrap();
    let fields: Vec<&str> = line.trim().split(';').collect();
    assert!(output.status.success() && fields.len() > 50, "fio failed: {line}");
    let ticks = cpu_ticks(peer.child.id()) - before;
    // fio's terse format: bytes in KiB, rate and run time of reads start at field 5, of writes at 46.
    let number = |index: usize| fields[index].parse::<f64>().unwrap();
    let rate = number(7) + number(48);
    let operations = number(7) * number(8) / 1000.0 + number(48) * number(49) / 1000.0;
    // A tick is 10 ms, on every machine Linux runs on.
    (rate, ticks * 10_000.0 / operations)
}

/// Processor time of a process and all its threads, user and system.
fn cpu_ticks(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
}
