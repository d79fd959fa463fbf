//! A disk in a translated guest: a file and a pool's disk over vhost-user, and the same bytes over NBD from qemu-nbd and as
//! a qcow2 image that QEMU opens itself.
//!
//! The client is fio in the guest, and the disks take turns: each round measures every disk once, so that whatever
//! else the machine does meets all of them. The best of the rounds counts for speed, the least for processor time,
//! which is that of the machine and of the server together.
//!
//! `--quick` measures briefly, to see that everything works; `--rounds N` as often; `--only WORDS` just the workloads
//! whose names contain that. `--beside BUILD` adds a disk that another build of this program serves.

#![expect(clippy::print_stdout, reason = "figures are what a benchmark is for")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kiln_block::FileDevice;
use kiln_export::Export;
use kiln_export::vhost_user::{Options, Server};

const WORKLOADS: [(&str, &str); 4] = [
    ("4k random read, qd 1", "--rw=randread --iodepth=1"),
    ("4k random write, qd 1", "--rw=randwrite --iodepth=1"),
    ("4k random read, qd 32", "--rw=randread --iodepth=32"),
    ("4k random write, qd 32", "--rw=randwrite --iodepth=32"),
];
/// Peers, and the least of its speed that ours have to have.
const BARS: [(&str, f64); 2] = [("NBD", 1.5), ("qcow2", 1.0)];
const INIT: &str = r#"#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
for module in /m*.ko; do insmod $module; done
until [ -b /dev/vd$last ]; do sleep 0.1; done
cd /tmp
stty -echo </dev/console
echo READY
while read -r words; do /fio $words; echo DONE; done </dev/console
"#;

/// A process that ends with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Guest {
    qemu: Process,
    to: ChildStdin,
    from: ChildStdout,
}

/// A disk of the guest's.
struct Disk {
    name: &'static str,
    /// What QEMU is told.
    words: Vec<String>,
    /// What asked the server to serve it; ends first.
    _client: Option<Process>,
    server: Option<Process>,
    best: Figures,
}

#[derive(Clone, Copy)]
struct Figures {
    /// Operations per second.
    rate: f64,
    /// Processor microseconds of one.
    cost: f64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        Some(arguments[at + 1..].to_vec())
    };
    if let Some(places) = after("--serve") {
        serve(Path::new(&places[0]), Path::new(&places[1]));
    }
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let (rounds, seconds) = if quick { (1, 1) } else { (5, 2) };
    let rounds = after("--rounds").map_or(rounds, |rest| rest[0].parse().unwrap());
    let only = after("--only").map_or(String::new(), |rest| rest[0].clone());
    let folder = tempfile::Builder::new().prefix("kiln-guest").tempdir_in("/tmp").unwrap();
    images(folder.path());
    initramfs(folder.path());
    let this = std::env::current_exe().unwrap();
    let mut disks =
        vec![file(folder.path(), "file", &this), nbd(folder.path()), qcow2(folder.path())];
    disks.extend(pool(folder.path()));
    if let Some(build) = after("--beside") {
        disks.push(file(folder.path(), "beside", Path::new(&build[0])));
    }
    let mut guest = boot(folder.path(), &disks);
    let mut met = true;
    for (workload, words) in WORKLOADS.iter().filter(|(name, _)| name.contains(&only)) {
        for disk in &mut disks {
            disk.best = Figures::NONE;
        }
        for round in 0..rounds {
            for turn in 0..disks.len() {
                let index = (turn + round) % disks.len();
                let disk = &mut disks[index];
                let figures = guest.measure(index, words, seconds, disk.server.as_ref());
                disk.best.rate = disk.best.rate.max(figures.rate);
                disk.best.cost = disk.best.cost.min(figures.cost);
            }
        }
        println!("{workload}");
        for disk in &disks {
            let Figures { rate, cost } = disk.best;
            println!(
                "  {:6} {rate:8.0} per s, {cost:6.1} us of machine and server per operation",
                disk.name
            );
        }
        met &= compare(&disks);
    }
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ours against the others; `false` where a bar was missed.
fn compare(disks: &[Disk]) -> bool {
    let (mut met, all) = (true, disks);
    let others = |disk: &&Disk| BARS.iter().any(|(name, _)| *name == disk.name);
    for ours in all.iter().filter(|disk| !others(disk)) {
        for (name, bar) in BARS {
            let other = all.iter().find(|disk| disk.name == name).unwrap();
            let ratio = ours.best.rate / other.best.rate;
            let missed = ratio < bar;
            println!(
                "  {:6} has {ratio:.2} of the speed of {name} and {:.2} of its cost{}",
                ours.name,
                ours.best.cost / other.best.cost,
                if missed { format!(": MISSED, {bar} of speed") } else { String::new() }
            );
            met &= !missed;
        }
    }
    met
}

fn start(command: &mut Command, socket: &Path) -> Process {
    let child = command.stdin(Stdio::null()).spawn().expect("`script/bootstrap` installs it");
    let mut process = Process(child);
    while !socket.exists() {
        assert!(process.0.try_wait().unwrap().is_none(), "{command:?} has ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    process
}

fn vhost_user(name: &'static str, socket: &Path) -> Vec<String> {
    let chardev = format!("socket,id={name},path={}", socket.display());
    let device = format!("vhost-user-blk-pci,chardev={name},num-queues=1");
    vec!["-chardev".to_owned(), chardev, "-device".to_owned(), device]
}

fn virtio(name: &str, drive: String) -> Vec<String> {
    let device = format!("virtio-blk-pci,drive={name}");
    vec!["-drive".to_owned(), drive, "-device".to_owned(), device]
}

/// A raw file, served by a build of this program.
fn file(folder: &Path, name: &'static str, build: &Path) -> Disk {
    let (raw, socket) = (folder.join(format!("{name}.raw")), folder.join(format!("{name}.sock")));
    if !raw.exists() {
        put(&raw, &std::fs::read(folder.join("file.raw")).unwrap());
    }
    let server = start(Command::new(build).arg("--serve").args([&raw, &socket]), &socket);
    Disk::new(name, vhost_user(name, &socket), Some(server))
}

/// A throw-away clone of a pool's disk, served by the pool's owner; where `kiln` is known.
fn pool(folder: &Path) -> Option<Disk> {
    let kiln = std::env::var_os("KILN_BENCH_PROGRAM")?;
    let (pool, socket) = (folder.join("pool"), folder.join("pool-disk.sock"));
    let kiln = |words: &[&str]| {
        let mut command = Command::new(&kiln);
        command.arg("disk").args(words).arg("--pool").arg(&pool).stdout(Stdio::null());
        command
    };
    let raw = folder.join("file.raw").display().to_string();
    for words in [
        &["import", raw.as_str(), "base"][..],
        &["snap", "base@ready"],
        &["clone", "base@ready", "vm", "--throw-away"],
    ] {
        assert!(kiln(words).status().unwrap().success(), "{words:?}");
    }
    assert!(kiln(&["own", "--leave"]).status().unwrap().success());
    let beside = folder.join("pool.sock");
    let owner = start(&mut kiln(&["own", "--idle", "10m"]), &beside);
    let path = socket.display().to_string();
    let client = start(&mut kiln(&["serve", "vm", "--vhost-user", &path]), &socket);
    let words = vhost_user("pool", &socket);
    Some(Disk { _client: Some(client), ..Disk::new("pool", words, Some(owner)) })
}

fn nbd(folder: &Path) -> Disk {
    let socket = folder.join("n.sock");
    let words = ["-t", "-f", "qcow2", "-e", "4", "--cache=writeback", "-k"];
    let mut command = Command::new("qemu-nbd");
    let server = start(command.args(words).args([&socket, &folder.join("nbd.qcow2")]), &socket);
    let drive = format!("file=nbd+unix:///?socket={},format=raw,if=none,id=nbd", socket.display());
    Disk::new("NBD", virtio("nbd", drive), Some(server))
}

fn qcow2(folder: &Path) -> Disk {
    let image = folder.join("own.qcow2");
    let drive = format!("file={},format=qcow2,if=none,id=own", image.display());
    Disk::new("qcow2", virtio("own", drive), None)
}

/// Serves a file until it is killed.
fn serve(disk: &Path, socket: &Path) -> ! {
    let export = Export::new(Arc::new(FileDevice::open(disk, false).unwrap()));
    let _server = Server::start(socket, export, Options::default()).unwrap();
    loop {
        std::thread::park();
    }
}

/// The same bytes three times, each image as a guest would have written it.
fn images(folder: &Path) {
    let (raw, converted) = (folder.join("file.raw"), folder.join("converted"));
    let mut bytes = vec![0; 128 << 20];
    kiln_block::testing::Dice::seeded(1).fill(&mut bytes);
    put(&raw, &bytes);
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]).args([&raw, &converted]);
    assert!(convert.status().unwrap().success());
    let bytes = std::fs::read(&converted).unwrap();
    for image in ["nbd.qcow2", "own.qcow2"] {
        put(&folder.join(image), &bytes);
    }
    std::fs::remove_file(&converted).unwrap();
}

/// Block by block. What is written in one piece the page cache keeps in pieces of up to 2 MiB, and ext4 looks at every
/// block of a piece for each block that is written there later: 60 us, which is more than all else a write costs.
fn put(path: &Path, bytes: &[u8]) {
    let mut file = std::fs::File::create_new(path).unwrap();
    bytes.chunks(4096).for_each(|block| file.write_all(block).unwrap());
    // No image is written out while another is measured because it is older.
    file.sync_all().unwrap();
}

fn kernel() -> PathBuf {
    if let Some(image) = std::env::var_os("KILN_TEST_KERNEL") {
        return image.into();
    }
    let variable = |name| std::env::var(name).expect("`make bench` says where kiln is");
    let mut kiln = Command::new(variable("KILN_BENCH_PROGRAM"));
    let path = kiln.args(["kernel", "path", &variable("KILN_BENCH_KERNEL")]).output().unwrap();
    String::from_utf8(path.stdout).unwrap().trim().into()
}

/// busybox, fio, what fio links to, and the disk's driver.
fn initramfs(folder: &Path) {
    let root = folder.join("root");
    let put = |from: &Path, to: &str| {
        let to = root.join(to.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    };
    for place in ["proc", "sys", "dev", "tmp"] {
        std::fs::create_dir_all(root.join(place)).unwrap();
    }
    let fio = which("fio");
    let linked = Command::new("ldd").arg(&fio).output().unwrap();
    let linked = String::from_utf8(linked.stdout).unwrap();
    for library in linked.split_whitespace().filter(|word| word.starts_with('/')) {
        put(Path::new(library), library);
    }
    put(&fio, "fio");
    put(&which("busybox"), "bin/busybox");
    for name in ["sh", "mount", "insmod", "sleep", "stty", "["] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    let kernel = kernel();
    let release = kernel.file_name().unwrap().to_str().unwrap().trim_start_matches("vmlinuz-");
    let modules = kernel.ancestors().nth(2).unwrap().join("lib/modules").join(release);
    let driver = modules.join("kernel/drivers/block/virtio_blk.ko.xz");
    let unpacked = Command::new("xz").arg("-dc").arg(driver).output().unwrap();
    std::fs::write(root.join("m0.ko"), unpacked.stdout).unwrap();
    std::fs::write(root.join("init"), INIT).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(root.join("init"), mode).unwrap();
    let packed = Command::new("sh")
        .args(["-c", "find . | cpio -o -H newc --quiet >../initramfs"])
        .current_dir(&root)
        .status();
    assert!(packed.unwrap().success());
}

fn which(program: &str) -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(program));
    found.into_iter().find(|path| path.is_file()).unwrap_or_else(|| panic!("no {program} here"))
}

fn boot(folder: &Path, disks: &[Disk]) -> Guest {
    let last = char::from(b'a' + u8::try_from(disks.len() - 1).unwrap());
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-m", "768M", "-serial", "stdio"])
        .args(["-machine", "q35,accel=tcg,memory-backend=ram"])
        .args(["-object", "memory-backend-memfd,id=ram,size=768M,share=on"])
        .arg("-kernel")
        .arg(kernel())
        .arg("-initrd")
        .arg(folder.join("initramfs"))
        .arg("-append")
        .arg(format!(
            "console=ttyS0 quiet tsc=reliable no_timer_check random.trust_cpu=on last={last}"
        ))
        .args(disks.iter().flat_map(|disk| &disk.words))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = qemu.spawn().expect("`script/bootstrap` installs QEMU");
    let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut guest = Guest { qemu: Process(child), to, from };
    guest.until("READY");
    guest
}

impl Disk {
    fn new(name: &'static str, words: Vec<String>, server: Option<Process>) -> Disk {
        Disk { name, words, _client: None, server, best: Figures::NONE }
    }
}

impl Figures {
    const NONE: Figures = Figures { rate: 0.0, cost: f64::INFINITY };
}

impl Guest {
    fn until(&mut self, word: &str) -> String {
        let mut said = String::new();
        let mut buffer = [0; 4096];
        while !said.contains(word) {
            let len = self.from.read(&mut buffer).unwrap();
            assert!(len > 0, "the machine is gone: {said}");
            said.push_str(&String::from_utf8_lossy(&buffer[..len]));
        }
        said
    }

    /// One run of fio.
    fn measure(
        &mut self,
        disk: usize,
        words: &str,
        secs: u32,
        server: Option<&Process>,
    ) -> Figures {
        let pids = [Some(self.qemu.0.id()), server.map(|server| server.0.id())];
        let ticks = || pids.into_iter().flatten().map(cpu_ticks).sum::<f64>();
        let before = ticks();
        let device = format!("vd{}", char::from(b'a' + u8::try_from(disk).unwrap()));
        writeln!(
            self.to,
            "--name=bench --filename=/dev/{device} --direct=1 --ioengine=libaio --bs=4k --time_based \
             --runtime={secs} --norandommap --minimal {words}"
        )
        .unwrap();
        let said = self.until("DONE");
        let ticks = ticks() - before;
        let line = said.lines().find(|line| line.starts_with("3;")).expect("fio's figures");
        // fio's terse format: rate and run time of reads start at field 7, of writes at 48.
        let fields: Vec<&str> = line.split(';').collect();
        let number = |index: usize| fields[index].parse::<f64>().unwrap();
        let rate = number(7) + number(48);
        let operations = number(7) * number(8) / 1000.0 + number(48) * number(49) / 1000.0;
        // A tick is 10 ms, on every machine Linux runs on.
        Figures { rate, cost: ticks * 10_000.0 / operations }
    }
}

/// Processor time of a process and all its threads, user and system.
fn cpu_ticks(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
}
