//! The real thing: a kernel, this executable as its init, and the host's client at the other end of a
//! virtio-serial port.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails by panicking, like the test")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kiln_block::ByteLen;
use kiln_model::event::Acceleration;
use kiln_model::protocol::{Exec, Pty};
use kiln_vm::agent::{Agent, AgentError, ExitStatus, PullLimits};
use kiln_vm::{DiskSpec, Durability, Emulator, How, Vm, VmSpec};

/// Long enough for the slowest machine; reached only by a test that fails.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(300)
}

/// In the order in which they can be loaded. Those built into the kernel have no file.
const MODULES: [(&str, &[&str]); 7] = [
    ("virtio_ring", &[]),
    ("virtio", &["virtio_ring"]),
    ("virtio_pci_modern_dev", &[]),
    ("virtio_pci_legacy_dev", &[]),
    ("virtio_pci", &["virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio", "virtio_ring"]),
    ("virtio_console", &["virtio", "virtio_ring"]),
    ("virtio_blk", &["virtio", "virtio_ring"]),
];

/// What the programs of this test are.
const PROGRAMS: [&str; 10] =
    ["sh", "cat", "stty", "sleep", "setsid", "test", "uname", "grep", "dd", "sync"];

#[test]
fn a_kernel_boots_and_its_guest_does_what_the_host_asks() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel();
    fs::write(folder.path().join("initramfs"), initramfs(&kernel)).unwrap();
    let disk = folder.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(8 << 20).unwrap();
    let console = folder.path().join("console.log");
    let vm = Vm::start(&VmSpec {
        emulator: Emulator::find(None).unwrap_or_else(|error| panic!("{error}")),
        acceleration: Acceleration::Tcg,
        kernel,
        initramfs: Some(folder.path().join("initramfs")),
        parameters: vec!["kiln.hostname=kiln-test".into()],
        init_arguments: Vec::new(),
        memory: ByteLen::mib(256),
        cpus: 2,
        disks: vec![DiskSpec {
            serial: "data0".into(),
            path: disk,
            durability: Durability::Discardable,
        }],
        console_log: console.clone(),
        console_limit: ByteLen::mib(4),
    })
    .unwrap();
    let told = || fs::read_to_string(&console).unwrap_or_default();
    let agent = Agent::greet(vm.agent_stream().unwrap(), soon())
        .unwrap_or_else(|error| panic!("{error}\n{}", told()));

    is_at_home(&agent);
    runs_programs(&agent);
    finds_its_disk(&agent);
    moves_files(&agent);
    leaves_nothing_running(&agent);

    agent.power_off(soon()).unwrap();
    let ended = vm.wait(Some(soon())).unwrap_or_else(|| panic!("still there\n{}", told()));
    assert!(matches!(ended.how, How::PoweredOff), "{ended:?}\n{}", told());
    assert!(!told().contains("kiln-guest:"), "the guest complained:\n{}", told());
}

fn is_at_home(agent: &Agent) {
    let release = String::from_utf8(agent.welcome().release.clone()).unwrap();
    let shell = "cat /proc/1/comm /proc/sys/kernel/hostname /sys/class/net/lo/flags; uname -r; \
                 echo $PATH";
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(run(agent, shell).0, format!("init\nkiln-test\n0x9\n{release}\n{path}\n"));
    let mounted = run(agent, "cat /proc/mounts").0;
    for target in
        ["/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/tmp", "/sys/fs/cgroup"]
    {
        assert!(mounted.contains(&format!(" {target} ")), "{target} is missing in\n{mounted}");
    }
}

fn runs_programs(agent: &Agent) {
    assert_eq!(run(agent, "exit 3").1, ExitStatus::Code(3));
    assert_eq!(run(agent, "kill -9 $$").1, ExitStatus::Signal(9));
    let mut exec = shell("stty size; test -t 0 && test -t 2; echo $?; test -c /dev/tty");
    exec.pty = Some(Pty { rows: 40, cols: 132 });
    assert_eq!(outcome(agent, exec), ("40 132\r\n0\r\n".to_owned(), ExitStatus::Code(0)));
    let flood = run(agent, "dd if=/dev/zero bs=65536 count=64 2>/dev/null").0;
    assert_eq!(flood.len(), 4 << 20);
}

fn finds_its_disk(agent: &Agent) {
    let error = agent.load_modules(&["no_such_module".into()], soon()).unwrap_err();
    assert!(matches!(&error, AgentError::Guest { text, .. } if text.contains("no_such_module")));
    agent.load_modules(&["virtio_blk".into()], soon()).unwrap();
    assert_eq!(agent.load_modules(&["virtio-blk".into()], soon()).unwrap(), 0, "loaded twice");
    assert_eq!(agent.rescan_disks(soon()).unwrap(), 1);
    let script = "test -b /dev/disk/by-id/virtio-data0 && cat /sys/block/vda/size; \
                  /sbin/modprobe -q virtio_blk; echo $?; /sbin/modprobe -q nonsense; echo $?";
    assert_eq!(run(agent, script).0, "16384\n0\n1\n");
}

fn moves_files(agent: &Agent) {
    let here = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0_u32..300_000).flat_map(u32::to_le_bytes).collect();
    let path = Path::new("/tmp/a/b");
    agent.push(path, 0o600, &mut content.as_slice(), soon()).unwrap();
    assert_eq!(agent.stat(path, soon()).unwrap().unwrap().mode, 0o600);
    let limits = PullLimits { entries: 10, bytes: 10 << 20 };
    let patterns = ["/tmp/*".to_owned(), "/proc/version".to_owned()];
    let report = agent.pull(&patterns, here.path(), limits, soon()).unwrap();
    assert_eq!(report.troubles, Vec::<String>::new());
    assert!(fs::read(here.path().join("tmp/a/b")).unwrap() == content);
    assert!(fs::read_to_string(here.path().join("proc/version")).unwrap().starts_with("Linux"));
}

fn leaves_nothing_running(agent: &Agent) {
    // In a session of its own: only a control group catches it.
    let (pid, status) = run(agent, "setsid sleep 1000 & sleep 0.2; echo $!");
    assert_eq!(status, ExitStatus::Code(0));
    let alive = format!("test -e /proc/{}", pid.trim());
    // Buried in the next moments, at the latest.
    while run(agent, &alive).1 == ExitStatus::Code(0) {}
    agent.sync(soon()).unwrap();
    agent.seed_entropy(b"some bytes", soon()).unwrap();
    agent.set_clock(Duration::from_secs(2_000_000_000), soon()).unwrap();
    assert!(agent.heartbeat().is_some_and(|beat| beat.memory_total > 0));
}

fn shell(script: &str) -> Exec {
    let argv = ["/bin/sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec();
    Exec { argv, kill_leftovers: true, ..Exec::default() }
}

fn run(agent: &Agent, script: &str) -> (String, ExitStatus) {
    outcome(agent, shell(script))
}

fn outcome(agent: &Agent, exec: Exec) -> (String, ExitStatus) {
    let mut output = Vec::new();
    let mut session = agent.exec(exec, soon()).unwrap();
    let status = session.wait(soon(), |_, bytes| output.extend_from_slice(bytes)).unwrap();
    (String::from_utf8_lossy(&output).into_owned(), status)
}

/// The bzImage to test with.
fn kernel() -> PathBuf {
    match std::env::var_os("KILN_TEST_KERNEL").map(PathBuf::from) {
        Some(path) if path.is_file() => path,
        Some(path) => panic!("KILN_TEST_KERNEL names {}, which is no file", path.display()),
        None => panic!("KILN_TEST_KERNEL is not set: run `make kernel`, then `make test`"),
    }
}

/// The static executable; the one this test was built with wants libraries.
fn guest() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_kiln-guest")).parent().unwrap().parent().unwrap();
    let built = built.join("x86_64-unknown-linux-gnu/guest/kiln-guest");
    let path = std::env::var_os("KILN_GUEST").map_or(built, PathBuf::from);
    assert!(path.is_file(), "no {}: run `make guest`, then `make test`", path.display());
    path
}

fn initramfs(kernel: &Path) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.file("init", &guest());
    archive.node("dev/console", 5, 1);
    for program in PROGRAMS {
        let found = ["/bin", "/usr/bin"].map(|folder| Path::new(folder).join(program));
        let found = found.iter().find(|path| path.is_file());
        let found = found.unwrap_or_else(|| panic!("this machine has no {program}"));
        archive.file(&format!("bin/{program}"), found);
        for library in libraries(found) {
            archive.file(library.to_str().unwrap().trim_start_matches('/'), &library);
        }
    }
    let release = kernel.file_name().unwrap().to_str().unwrap().strip_prefix("vmlinuz-").unwrap();
    let modules = kernel.parent().unwrap().parent().unwrap().join("lib/modules").join(release);
    let files: Vec<Option<PathBuf>> =
        MODULES.iter().map(|(name, _)| module(&modules.join("kernel/drivers"), name)).collect();
    let within = |name: &str| {
        let at = MODULES.iter().position(|(this, _)| *this == name).unwrap();
        files[at].as_ref().map(|file| file.strip_prefix(&modules).unwrap().display().to_string())
    };
    let target = format!("usr/lib/modules/{release}");
    let mut dep = String::new();
    for ((name, needs), file) in MODULES.iter().zip(&files) {
        let (Some(file), Some(path)) = (file, within(name)) else { continue };
        archive.file(&format!("{target}/{path}"), file);
        let needs: Vec<String> = needs.iter().filter_map(|name| within(name)).collect();
        dep += &format!("{path}: {}\n", needs.join(" "));
    }
    archive.entry(&format!("{target}/modules.dep"), 0o100_644, (0, 0), dep.as_bytes());
    archive.finish()
}

fn module(folder: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(folder).unwrap().flatten().find_map(|entry| {
        let path = entry.path();
        let file = entry.file_name().into_string().unwrap();
        match path.is_dir() {
            true => module(&path, name),
            false => {
                (file.split(".ko").next() == Some(name) && file.contains(".ko")).then_some(path)
            }
        }
    })
}

/// The libraries a program is linked with, and their loader.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words = text.split_whitespace().filter(|word| word.starts_with('/'));
    words.map(PathBuf::from).collect()
}

/// An initramfs in the making.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    fn file(&mut self, name: &str, from: &Path) {
        let data = fs::read(from).unwrap();
        let mode = 0o100_000 | (fs::metadata(from).unwrap().permissions().mode() & 0o777);
        self.entry(name, mode, (0, 0), &data);
    }

    fn node(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, 0o020_600, (major, minor), &[]);
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        if let Some((folder, _)) = name.rsplit_once('/')
            && !self.names.contains(folder)
        {
            self.entry(folder, 0o040_755, (0, 0), &[]);
        }
        if !self.names.insert(name.to_owned()) {
            return;
        }
        let length = u32::try_from(data.len()).unwrap();
        let name_length = u32::try_from(name.len() + 1).unwrap();
        let fields = [0, mode, 0, 0, 1, 0, length, 0, 0, device.0, device.1, name_length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}
