//! A disk in a translated guest: over vhost-user, over NBD from qemu-nbd, and as a qcow2 image that QEMU opens itself.
//!
//! The client is fio in the guest, and the disks take turns: each round measures every disk once, so that whatever
//! else the machine does meets all of them. The best of the rounds counts for speed, the least for processor time,
//! which is that of the machine and of the server together. `--quick` measures briefly, to see that everything works.

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
/// The disks in the guest's order: name, and the least of its speed that ours has to have.
const DISKS: [(&str, f64); 3] = [("vhost-user", 0.0), ("NBD", 1.5), ("qcow2", 1.0)];
const INIT: &str = r#"#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
for module in /m*.ko; do insmod $module; done
until [ -b /dev/vdc ]; do sleep 0.1; done
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

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--serve") {
        serve(Path::new(&arguments[at + 1]), Path::new(&arguments[at + 2]));
    }
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let (rounds, seconds) = if quick { (1, 1) } else { (5, 2) };
    let folder = tempfile::Builder::new().prefix("kiln-guest").tempdir_in("/tmp").unwrap();
    let at = |name: &str| folder.path().join(name);
    disks(folder.path());
    initramfs(folder.path());
    let program = std::env::current_exe().unwrap();
    let server = start(Command::new(program).arg("--serve").args([at("disk.raw"), at("v.sock")]));
    let nbd = ["-t", "-f", "qcow2", "-e", "4", "--cache=writeback", "-k"];
    let nbd = start(Command::new("qemu-nbd").args(nbd).args([at("n.sock"), at("nbd.qcow2")]));
    for socket in ["v.sock", "n.sock"] {
        while !at(socket).exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let mut guest = boot(folder.path());
    let servers = [Some(server.0.id()), Some(nbd.0.id()), None];
    let mut met = true;
    for (workload, words) in WORKLOADS {
        let mut best = [(0.0_f64, f64::INFINITY); 3];
        for round in 0..rounds {
            for turn in 0..3 {
                let index = (turn + round) % 3;
                let (rate, cost) = guest.measure(index, words, seconds, servers[index]);
                best[index] = (best[index].0.max(rate), best[index].1.min(cost));
            }
        }
        println!("{workload}");
        for ((name, least), (rate, cost)) in DISKS.iter().zip(&best) {
            let ratio = best[0].0 / rate;
            println!(
                "  {name:10} {rate:8.0} per s, {cost:6.1} us of machine and server per operation; \
                 vhost-user has {ratio:.2} of its speed and {:.2} of its cost",
                best[0].1 / cost
            );
            if ratio < *least {
                println!("  MISSED against {name}: {least} of speed");
                met = false;
            }
        }
    }
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn start(command: &mut Command) -> Process {
    Process(command.stdin(Stdio::null()).spawn().expect("`script/bootstrap` installs it"))
}

/// Serves a file until it is killed.
fn serve(disk: &Path, socket: &Path) -> ! {
    let export = Export::new(Arc::new(FileDevice::open(disk, false).unwrap()));
    let _server = Server::start(socket, export, Options::default()).unwrap();
    loop {
        std::thread::park();
    }
}

/// The same bytes three times.
fn disks(folder: &Path) {
    let raw = folder.join("disk.raw");
    let mut bytes = vec![0; 128 << 20];
    kiln_block::testing::Dice::seeded(1).fill(&mut bytes);
    std::fs::write(&raw, bytes).unwrap();
    for image in ["nbd.qcow2", "own.qcow2"] {
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", "qcow2"]).args([&raw, &folder.join(image)]);
        assert!(convert.status().unwrap().success());
    }
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

fn boot(folder: &Path) -> Guest {
    let at = |name: &str| folder.join(name).display().to_string();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-m", "768M", "-serial", "stdio"])
        .args(["-machine", "q35,accel=tcg,memory-backend=ram"])
        .args(["-object", "memory-backend-memfd,id=ram,size=768M,share=on"])
        .arg("-kernel")
        .arg(kernel())
        .args(["-initrd", &at("initramfs")])
        .args(["-append", "console=ttyS0 quiet tsc=reliable no_timer_check random.trust_cpu=on"])
        .args(["-chardev", &format!("socket,id=v,path={}", at("v.sock"))])
        .args(["-device", "vhost-user-blk-pci,chardev=v,num-queues=1"]);
    let nbd = format!("file=nbd+unix:///?socket={},format=raw,if=none,id=n", at("n.sock"));
    let own = format!("file={},format=qcow2,if=none,id=q", at("own.qcow2"));
    qemu.args(["-drive", &nbd, "-device", "virtio-blk-pci,drive=n"])
        .args(["-drive", &own, "-device", "virtio-blk-pci,drive=q"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = qemu.spawn().expect("`script/bootstrap` installs QEMU");
    let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut guest = Guest { qemu: Process(child), to, from };
    guest.until("READY");
    guest
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

    /// One run of fio: operations per second, and processor microseconds for each.
    fn measure(&mut self, disk: usize, words: &str, secs: u32, server: Option<u32>) -> (f64, f64) {
        let pids = [Some(self.qemu.0.id()), server];
        let ticks = || pids.into_iter().flatten().map(cpu_ticks).sum::<f64>();
        let before = ticks();
        let device = ["vda", "vdb", "vdc"][disk];
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
        (rate, ticks * 10_000.0 / operations)
    }
}

/// Processor time of a process and all its threads, user and system.
fn cpu_ticks(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
}
