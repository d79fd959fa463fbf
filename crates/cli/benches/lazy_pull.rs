//! How long it takes from an image in a registry to the first listing of its mounted file system, over a line of
//! 100 Mbit/s, and how much of the image has come by then. Takes root.
//!
//! The image is an ext4 file system of 1 GiB filled from /usr, as one layer (lz4, blocks of 4 KiB).
#![expect(clippy::print_stdout, reason = "figures for people")]
#![expect(clippy::unwrap_used, reason = "a benchmark ends where something is not as it must be")]

mod content;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use kiln_registry::testing::{Proxy, Server};

/// 100 Mbit/s.
const RATE: u64 = 12_500_000;
/// What the file system is filled with.
const CONTENT: u64 = 850 << 20;
/// Rounds, of which the median counts.
const ROUNDS: usize = 5;
/// What it has to reach, without a delay of the line.
const MOST_TIME: Duration = Duration::from_secs(1);
const MOST_SHARE: f64 = 0.02;

struct Bench {
    folder: tempfile::TempDir,
    program: PathBuf,
    server: Server,
    size: u64,
}

/// One round's figures.
#[derive(Clone, Copy)]
struct Round {
    time: Duration,
    bytes: u64,
    requests: usize,
}

impl Bench {
    fn prepare() -> Bench {
        let folder = tempfile::Builder::new().prefix("kiln-").tempdir_in("/tmp").unwrap();
        let program = std::env::var_os("KILN_BENCH_PROGRAM");
        let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_kiln").into()).into();
        let mut bench = Bench { folder, program, server: Server::start(), size: 0 };
        let tree = bench.path("tree");
        content::fill(&tree, CONTENT);
        let image = bench.path("disk.img");
        fs::File::create(&image).unwrap().set_len(1 << 30).unwrap();
        let mut mkfs = Command::new("/sbin/mke2fs");
        mkfs.args(["-q", "-t", "ext4", "-m", "0", "-N", "200000", "-d"]).arg(&tree).arg(&image);
        assert!(mkfs.status().unwrap().success());
        fs::remove_dir_all(&tree).unwrap();
        let convert = ["layer", "convert", "--to", "overlaybd", "--tar", "--output", "base.obd"];
        bench.kiln(&[&convert[..], &["disk.img"]].concat());
        fs::remove_file(&image).unwrap();
        bench.kiln(&["layer", "push", "base.obd", &bench.image(bench.server.address())]);
        bench.size = fs::metadata(bench.path("base.obd")).unwrap().len();
        fs::create_dir(bench.path("mnt")).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn image(&self, address: &str) -> String {
        format!("{address}/bench/usr:1")
    }

    fn kiln(&self, arguments: &[&str]) {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(self.folder.path());
        command.env("KILN_HOME", self.path("home")).env("XDG_RUNTIME_DIR", self.folder.path());
        command.env("HOME", self.folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
        assert!(command.stderr(Stdio::null()).status().unwrap().success(), "{arguments:?}");
    }

    /// Mounts and lists, over a line with that delay of each answer.
    fn round(&self, delay: Duration) -> Round {
        let proxy = Proxy::throttled(self.server.address(), RATE, delay);
        let begun = Instant::now();
        self.kiln(&["layer", "mount", "--at", "mnt", &self.image(proxy.address())]);
        let entries = fs::read_dir(self.path("mnt")).unwrap();
        // Looked at one by one, as `ls -l` does.
        let inodes = entries.map(|entry| entry.unwrap().metadata().unwrap().ino());
        let inodes: Vec<u64> = inodes.collect();
        let time = begun.elapsed();
        let (bytes, requests) = (proxy.blob_bytes(), proxy.seen().len());
        assert!(inodes.len() > 1, "there is nothing in it");
        self.kiln(&["layer", "umount", "mnt"]);
        Round { time, bytes, requests }
    }

    /// The median of several rounds, each after `before`.
    fn rounds(&self, name: &str, delay: Duration, before: impl Fn(&Bench)) -> Round {
        let mut rounds: Vec<Round> = (0..ROUNDS)
            .map(|_| {
                before(self);
                self.round(delay)
            })
            .collect();
        rounds.sort_by_key(|round| round.time);
        let median = rounds[ROUNDS / 2];
        println!(
            "{name:<34} {:>6.0} ms (from {:.0} to {:.0}), {:>5} KiB in {:>3} requests, {:.2} % of {} MiB",
            millis(median.time),
            millis(rounds[0].time),
            millis(rounds[ROUNDS - 1].time),
            median.bytes >> 10,
            median.requests,
            self.share(median) * 100.0,
            self.size >> 20,
        );
        median
    }

    fn share(&self, round: Round) -> f64 {
        round.bytes as f64 / self.size as f64
    }

    /// Removes something of the cache.
    fn remove(&self, name: &str) {
        let path = self.path("home/cache/layers").join(name);
        if path.exists() {
            fs::remove_dir_all(path).unwrap();
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn main() -> ExitCode {
    let bench = Bench::prepare();
    println!("time to the first listing, at 100 Mbit/s, median of {ROUNDS}:");
    let cold = |bench: &Bench| {
        bench.remove("blobs");
        bench.remove("traces");
    };
    let first = bench.rounds("first mount", Duration::ZERO, cold);
    bench.rounds("first mount, answers 10 ms late", Duration::from_millis(10), cold);
    let traced = |bench: &Bench| bench.remove("blobs");
    bench.rounds("with a trace, answers 10 ms late", Duration::from_millis(10), traced);
    bench.rounds("all in the cache", Duration::ZERO, |_| {});
    let share = bench.share(first);
    let is_good = first.time < MOST_TIME && share < MOST_SHARE;
    let verdict = if is_good { "reached" } else { "MISSED" };
    println!(
        "bar: first mount under {MOST_TIME:?} and {} % of the bytes: {verdict}",
        MOST_SHARE * 100.0
    );
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
