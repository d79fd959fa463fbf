//! A pool's disk served by its owner, beside the peers: `cargo bench -p kiln-store --bench against_peers`.
//!
//! The client is fio on a unix socket, the same for all, and the servers take turns: each round measures every one
//! once, so that whatever else the machine does meets all of them. The best of the rounds counts for speed, the least
//! for processor time. Disks are written whole before, and are in the page cache. Flushes are durable.
//! `KILN_BENCH_DIR` says on which filesystem; `--quick` measures briefly, to see that everything works. Arguments that
//! do not start with `-` choose parts by a piece of their name.
#![expect(clippy::print_stdout, reason = "figures are what a benchmark is for")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

mod peers;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, FileDevice};
use kiln_store::{
    Frontend, Layers, Lease, Opened, Owner, Reply, Request, Serve, Start, Store, tell_readiness,
};

use peers::{Run, Server, fio, peak_memory, qemu, run};

const SIZE: ByteLen = ByteLen::mib(512);

/// What fio does for a time: name, its arguments.
const RANDOM: [(&str, &[&str]); 4] = [
    ("4k random read, qd 1", &["--rw=randread", "--iodepth=1"]),
    ("4k random read, qd 32", &["--rw=randread", "--iodepth=32"]),
    ("4k random write, qd 1", &["--rw=randwrite", "--iodepth=1"]),
    ("4k random write, qd 32", &["--rw=randwrite", "--iodepth=32"]),
];
/// Each block once, and durable at the end.
const FIRST: [(&str, &[&str]); 2] = [
    ("first 4k write, qd 1", &["--rw=randwrite", "--iodepth=1", "--io_size=8m"]),
    ("first 4k write, qd 32", &["--rw=randwrite", "--iodepth=32", "--io_size=32m"]),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--pool") {
        return own(Path::new(&arguments[at + 1]));
    }
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let chosen: Vec<&String> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|part| name.contains(*part));
    let bench = Bench::new(if quick { (1, 1) } else { (5, 2) });
    let mut met = true;
    if RANDOM.iter().any(|(name, _)| wanted(name)) {
        met &= bench.random(&wanted);
    }
    if wanted("flush") {
        bench.flushes();
    }
    if wanted("first") {
        met &= bench.first_writes();
    }
    met &= bench.memory();
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The owner of a pool, in a process of its own as ever.
fn own(pool: &Path) -> ExitCode {
    match Owner::open(pool, &Layers::default()) {
        Ok(Opened::Owner(owner)) => {
            tell_readiness(None);
            owner.run(Duration::from_secs(2)).unwrap();
        }
        Ok(Opened::Already) => tell_readiness(None),
        Err(error) => tell_readiness(Some(&error)),
    }
    ExitCode::SUCCESS
}

struct Bench {
    rounds: usize,
    seconds: u32,
    /// Sockets need a short path, disks a real file system: /tmp may be memory.
    sockets: tempfile::TempDir,
    folder: tempfile::TempDir,
    image: PathBuf,
    store: Store,
    /// What keeps the disk served.
    _lease: Lease,
    pool: Server,
}

impl Bench {
    fn new((rounds, seconds): (usize, u32)) -> Bench {
        let sockets = tempfile::Builder::new().prefix("kiln").tempdir_in("/tmp").unwrap();
        let program = std::env::current_exe().unwrap();
        let own = || program.parent().unwrap().to_owned();
        let folder = std::env::var_os("KILN_BENCH_DIR").map_or_else(own, PathBuf::from);
        let folder = tempfile::tempdir_in(folder).unwrap();
        let image = folder.path().join("disk.raw");
        fill(&image);
        let path = folder.path().join("disks.pool");
        Store::make(&path).unwrap();
        let store = Store::owner(&path, &Start::new([program.into_os_string()])).unwrap();
        let import = Request::Import {
            name: "disk".into(),
            format: None,
            file: "image".into(),
            backing: Vec::new(),
            snapshot: None,
        };
        let file = std::fs::File::open(&image).unwrap();
        let stop = kiln_store::Stop::new();
        store.ask_with(import, vec![file.into()], &mut |_| {}, &stop).unwrap();
        let address = format!("unix:{}", sockets.path().join("pool").display());
        let frontend = Frontend::Nbd { address, tls: None };
        let lease = store.serve(&Serve::new(["disk"], frontend)).unwrap();
        let Reply::Metrics { pool, .. } = store.ask(Request::Metrics).unwrap() else {
            panic!("no metrics")
        };
        let pool = Server::running("kiln pool", pool.pid, &lease.served()[0].uri);
        Bench { rounds, seconds, sockets, folder, image, store, _lease: lease, pool }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of the same bytes, of a server's own.
    fn raw(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        if !path.exists() {
            fill(&path);
        }
        path
    }

    /// An image of the same bytes in QEMU's format, made anew.
    fn qcow2(&self, name: &str, options: &str) -> PathBuf {
        let (path, converted) = (self.path(name), self.path("converted"));
        let (from, to) = (self.image.display().to_string(), converted.display().to_string());
        run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-o", options, &from, &to]);
        // In pages too, see `fill`.
        let bytes = std::fs::read(&converted).unwrap();
        let mut image = std::fs::File::create(&path).unwrap();
        bytes.chunks(4096).for_each(|page| image.write_all(page).unwrap());
        image.sync_all().unwrap();
        std::fs::remove_file(&converted).unwrap();
        path
    }

    /// An image without anything of its own, so many images above the one with the bytes.
    fn chain(&self, base: &Path, depth: u32) -> PathBuf {
        let mut below = base.to_owned();
        for n in 0..depth {
            let path = self.path(&format!("chain-{depth}-{n}"));
            let (back, own) = (below.display().to_string(), path.display().to_string());
            run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &back, "-F", "qcow2", &own]);
            below = path;
        }
        below
    }

    fn random(&self, wanted: &dyn Fn(&str) -> bool) -> bool {
        let sockets = self.sockets.path();
        let raw = qemu("qemu-nbd raw", sockets, "raw", &self.raw("qemu.raw"));
        let plain = self.qcow2("plain.qcow2", "preallocation=off");
        let subclusters = self.qcow2("subclusters.qcow2", "extended_l2=on");
        let file = self.raw("nbdkit.raw");
        let nbdkit_file = Server::start("nbdkit file", sockets, "nbdkit", |socket| {
            let file = format!("file={}", file.display());
            ["-f", "-U", &socket.display().to_string(), "file", &file].map(str::to_owned).into()
        });
        let memory = Server::start("nbdkit memory", sockets, "nbdkit", |socket| {
            let size = SIZE.get().to_string();
            ["-f", "-U", &socket.display().to_string(), "memory", &size].map(str::to_owned).into()
        });
        if let Some(memory) = &memory {
            run("nbdcopy", &[&self.image.display().to_string(), &memory.uri]);
        }
        let base = self.qcow2("base.qcow2", "preallocation=off");
        let chains =
            [("qcow2 chain of 1", 1), ("qcow2 chain of 10", 10), ("qcow2 chain of 50", 50)];
        let chains: Vec<Option<Server>> = chains
            .iter()
            .map(|(name, depth)| qemu(name, sockets, "qcow2", &self.chain(&base, *depth)))
            .collect();
        let writable = [
            raw,
            nbdkit_file,
            memory,
            qemu("qemu-nbd qcow2", sockets, "qcow2", &plain),
            qemu("qcow2 extended_l2", sockets, "qcow2", &subclusters),
        ];
        let writable: Vec<Server> = writable.into_iter().flatten().collect();
        // A write to a chain's top would make it another image: those are read alone.
        let chains: Vec<Server> = chains.into_iter().flatten().collect();
        let mut met = true;
        for (name, arguments) in RANDOM.iter().filter(|(name, _)| wanted(name)) {
            let mut servers: Vec<&Server> = vec![&self.pool];
            servers.extend(&writable);
            if name.contains("read") {
                servers.extend(&chains);
            }
            let (size, runtime) = (format!("--size={SIZE}"), format!("--runtime={}", self.seconds));
            let mut words = vec!["--bs=4k", "--time_based", "--norandommap", &size, &runtime];
            words.extend(*arguments);
            let best = self.in_turns(&servers, &words);
            println!("\n{name}");
            heading();
            for (server, run) in servers.iter().zip(&best) {
                row(server.name, run, &best[0]);
            }
            met &= judge(name, &servers, &best);
        }
        met
    }

    /// Each round, every server once, beginning with another one each time.
    fn in_turns(&self, servers: &[&Server], arguments: &[&str]) -> Vec<Run> {
        let mut best: Vec<Option<Run>> = vec![None; servers.len()];
        for round in 0..self.rounds {
            for turn in 0..servers.len() {
                let at = (turn + round) % servers.len();
                let run = fio(servers[at], arguments);
                best[at] = Some(best[at].map_or(run, |best| best.best(run)));
            }
        }
        best.into_iter().flatten().collect()
    }

    fn flushes(&self) {
        let sockets = self.sockets.path();
        let raw = qemu("qemu-nbd raw", sockets, "raw", &self.raw("qemu.raw"));
        let file = self.raw("nbdkit.raw");
        let nbdkit = Server::start("nbdkit file", sockets, "nbdkit", |socket| {
            let file = format!("file={}", file.display());
            ["-f", "-U", &socket.display().to_string(), "file", &file].map(str::to_owned).into()
        });
        let plain = self.qcow2("flushed.qcow2", "preallocation=off");
        let qcow2 = qemu("qemu-nbd qcow2", sockets, "qcow2", &plain);
        let others: Vec<Server> = [raw, nbdkit, qcow2].into_iter().flatten().collect();
        let mut servers: Vec<&Server> = vec![&self.pool];
        servers.extend(&others);
        let (size, runtime) = (format!("--size={SIZE}"), format!("--runtime={}", self.seconds));
        let words = ["--bs=4k", "--rw=randwrite", "--fsync=1", "--time_based", "--norandommap"];
        let words: Vec<&str> = words.into_iter().chain([size.as_str(), &runtime]).collect();
        let best = self.in_turns(&servers, &words);
        println!("\n4k random write and flush, qd 1");
        heading();
        for (server, run) in servers.iter().zip(&best) {
            row(server.name, run, &best[0]);
        }
    }

    /// What a snapshot makes of the next writes, against the same ones without it.
    fn first_writes(&self) -> bool {
        let mut met = true;
        println!("\nfirst writes after a snapshot, against the same writes without one");
        println!(
            "{:26} {:>9} {:>9} {:>6} {:>9} {:>9}",
            "", "per s", "without", "ratio", "CPU us", "bytes x"
        );
        for (name, arguments) in FIRST {
            let size = format!("--size={SIZE}");
            let mut words = vec!["--bs=4k", "--end_fsync=1", &size];
            words.extend(arguments);
            // Where they go is drawn anew each time, or the second run would write what the first did.
            let (mut without, mut with) = (None::<Run>, None::<Run>);
            let (mut theirs, mut their_with) = (None::<Run>, None::<Run>);
            let best = |best: &mut Option<Run>, run: Run| {
                *best = Some(best.map_or(run, |best| best.best(run)));
            };
            for round in 0..self.rounds {
                let seed = format!("--randseed={}", 1000 + round);
                let words: Vec<&str> = words.iter().copied().chain([seed.as_str()]).collect();
                best(&mut without, fio(&self.pool, &words));
                let snapshot = format!("{}-{round}", name.len());
                let request = Request::Snap { disk: "disk".into(), snapshot };
                self.store.ask(request).unwrap();
                best(&mut with, fio(&self.pool, &words));

                let image = self.qcow2("snapshot.qcow2", "preallocation=off");
                let sockets = self.sockets.path();
                let Some(server) = qemu("qcow2 internal", sockets, "qcow2", &image) else {
                    continue;
                };
                best(&mut theirs, fio(&server, &words));
                drop(server);
                run("qemu-img", &["snapshot", "-c", "s", &image.display().to_string()]);
                let Some(server) = qemu("qcow2 internal", sockets, "qcow2", &image) else {
                    continue;
                };
                best(&mut their_with, fio(&server, &words));
            }
            for (who, pair) in
                [("kiln pool", (without, with)), ("qcow2 internal", (theirs, their_with))]
            {
                let (Some(without), Some(with)) = pair else { continue };
                let ratio = with.rate / without.rate;
                println!(
                    "{:26} {:9.0} {:9.0} {ratio:6.2} {:9.1} {:9.2}",
                    format!("{who}, {}", &name["first 4k write, ".len()..]),
                    with.rate,
                    without.rate,
                    with.cost,
                    with.written / 4096.0
                );
                if who == "kiln pool"
                    && (ratio < 0.8 || with.written > 4096.0 * 1.3 + journal(&without))
                {
                    println!("  MISSED: 0.8 of the rate, 1.3 x the bytes and the log's");
                    met = false;
                }
            }
        }
        met
    }

    fn memory(&self) -> bool {
        let peak = peak_memory(self.pool.pid);
        println!("\nmemory of the owner at most: {peak:.0} MiB");
        if peak > 64.0 {
            println!("  MISSED: 64 MiB");
        }
        peak <= 64.0
    }
}

/// Bytes of the log for each write: what goes beyond the data where no snapshot asks for anything.
fn journal(without: &Run) -> f64 {
    (without.written - 4096.0).max(0.0)
}

fn heading() {
    println!("{:22} {:>9} {:>7} {:>9} {:>7}", "", "per s", "Kiln x", "CPU us", "Kiln x");
}

fn row(name: &str, run: &Run, own: &Run) {
    let (rate, cost) = (own.rate / run.rate, own.cost / run.cost);
    println!("{name:22} {:9.0} {rate:7.2} {:9.1} {cost:7.2}", run.rate, run.cost);
}

/// Whether the bars are reached; says which are not.
fn judge(workload: &str, servers: &[&Server], best: &[Run]) -> bool {
    let mut met = true;
    for (server, run) in servers.iter().zip(best) {
        let (least_speed, most_cost) = match server.name {
            "qemu-nbd raw" => (if workload.ends_with("32") { 2.0 } else { 1.2 }, 0.6),
            "nbdkit file" => (0.0, 1.2),
            _ => continue,
        };
        if best[0].rate < run.rate * least_speed || best[0].cost > run.cost * most_cost {
            println!(
                "  MISSED against {}: {least_speed} of speed, {most_cost} of cost",
                server.name
            );
            met = false;
        }
    }
    met
}

fn fill(path: &Path) {
    let disk = FileDevice::create(path, SIZE).unwrap();
    // In pages: what is written in larger pieces is cached in larger ones, and ext4 then walks a whole one for every
    // small write. That would be measured instead of the servers.
    let mut bytes = vec![0; 4096];
    let mut dice = Dice::seeded(1);
    for at in (0..SIZE.get()).step_by(4096) {
        dice.fill(&mut bytes);
        disk.write_at(ByteOffset::new(at), &bytes).unwrap();
    }
    disk.flush().unwrap();
}
