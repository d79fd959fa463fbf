//! The real thing: a kernel, this executable as its init, and the host's client at the other end of a
//! virtio-serial port.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_block::ByteLen;
use kiln_image::cache::{GuestExecutable, ImageRequest, ImageStore};
use kiln_image::ext2::{Options, Plan, Time, Tree};
use kiln_image::kernel::{self, Host, Kernel, KernelCache};
use kiln_image::manifest::{ManifestSource, Part};
use kiln_model::event::Acceleration;
use kiln_model::protocol::{Exec, Pty};
use kiln_model::testing::guest_executable;
use kiln_vm::agent::{Agent, AgentError, ExitStatus, PullLimits};
use kiln_vm::{DiskSpec, Durability, Emulator, How, Vm, VmSpec};

/// The programs every scenario has.
pub(crate) const PROGRAMS: &str = "include = [\"base\"]";

/// Long enough for the slowest machine; reached only by a test that fails.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(300)
}

#[test]
fn a_kernel_boots_and_its_guest_does_what_the_host_asks() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel();
    let initramfs = initramfs(&kernel, folder.path(), PROGRAMS);
    let disk = folder.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(8 << 20).unwrap();
    let console = folder.path().join("console.log");
    let vm = Vm::start(&VmSpec {
        emulator: Emulator::find(None).unwrap_or_else(|error| panic!("{error}")),
        acceleration: Acceleration::Tcg,
        kernel: kernel.image,
        initramfs: Some(initramfs),
        parameters: vec!["kiln.hostname=kiln-test".into()],
        init_arguments: Vec::new(),
        memory: ByteLen::mib(512),
        cpus: 2,
        disks: vec![DiskSpec::File {
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
    // A kernel may find disks a moment after it has their driver.
    while agent.rescan_disks(soon()).unwrap() < 1 {}
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
    let beat = std::iter::repeat_with(|| {
        agent.ping(soon()).unwrap();
        agent.heartbeat()
    });
    let beat = beat.flatten().next().unwrap();
    assert!(beat.memory_total > 0, "{beat:?}");
}

fn shell(script: &str) -> Exec {
    let argv = ["/bin/sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec();
    Exec { argv, kill_leftovers: true, ..Exec::default() }
}

pub(crate) fn run(agent: &Agent, script: &str) -> (String, ExitStatus) {
    outcome(agent, shell(script))
}

fn outcome(agent: &Agent, exec: Exec) -> (String, ExitStatus) {
    let mut output = Vec::new();
    let mut session = agent.exec(exec, soon()).unwrap();
    let status = session.wait(soon(), |_, bytes| output.extend_from_slice(bytes)).unwrap();
    (String::from_utf8_lossy(&output).into_owned(), status)
}

pub(crate) fn kernel() -> Kernel {
    let image = kiln_model::testing::kernel();
    kernel::find(image.to_str(), &Host::this(), &KernelCache::new("/dev/null/no-kernels"))
        .unwrap_or_else(|error| panic!("{error}"))
}

/// What a manifest says, and our executable as init.
fn request(kernel: &Kernel, folder: &Path, manifest: &str) -> ImageRequest {
    let manifest = ManifestSource {
        name: "guest.toml".to_owned(),
        text: manifest.to_owned(),
        folder: Some(folder.to_owned()),
        part: Part::Whole,
    };
    let kernels = KernelCache::new(folder.join("kernels"));
    let executable = GuestExecutable::File(guest_executable());
    ImageRequest::new(manifest, kernel.clone(), kernels, executable)
}

pub(crate) fn initramfs(kernel: &Kernel, folder: &Path, manifest: &str) -> PathBuf {
    let store = ImageStore::open(&folder.join("images")).unwrap();
    let request = request(kernel, folder, manifest);
    store.get_or_build(&request).unwrap_or_else(|error| panic!("{error}")).path
}

/// The way to a root disk.
const DRIVERS: &str = "virtio_blk,ext4,overlay";

fn drivers() -> String {
    let names: Vec<String> = DRIVERS.split(',').map(|name| format!("{name:?}")).collect();
    format!("modules = [{}]", names.join(", "))
}

#[test]
fn a_guest_lives_on_a_root_disk_that_is_never_written() {
    lives_on_a_root_disk(&drivers(), &[&format!("kiln.modules={DRIVERS}"), "kiln.root=root"]);
}

/// There is no kernel to be had that has all of these drivers built in, so a script does what such a kernel does: it mounts
/// the disk read-only, leaves the initramfs and runs the `/init` of the disk.
#[test]
fn a_guest_whose_kernel_mounted_the_root_disk_by_itself_lives_on_it_too() {
    let manifest = format!(
        r##"
include = ["base"]
binaries = ["switch_root"]
{}
[[files]]
path = "/as-the-kernel-does"
mode = "0755"
text = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
ln -s /init /modprobe
for driver in virtio_pci virtio_blk ext4 overlay; do /modprobe $driver; done
until test -b /dev/vda; do sleep 0.1; done
mkdir /disk
mount -t ext4 -o ro /dev/vda /disk
umount /sys /proc
exec switch_root /disk /init
"""
"##,
        drivers()
    );
    lives_on_a_root_disk(&manifest, &["rdinit=/as-the-kernel-does", "kiln.root=root"]);
}

/// A machine with this initramfs comes to a root disk that shows what is written to it and is not changed.
fn lives_on_a_root_disk(initrd: &str, parameters: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel();
    let tiny = initramfs(&kernel, folder.path(), initrd);
    let inventory = request(&kernel, folder.path(), PROGRAMS).inventory().unwrap();
    let mut tree = Tree::new();
    tree.add_inventory(&inventory, Time::default()).unwrap();
    let root = folder.path().join("root.img");
    let plan = Plan::new(tree, &Options::default()).unwrap();
    plan.write(&fs::File::create(&root).unwrap()).unwrap();
    let before = fs::read(&root).unwrap();
    let console = folder.path().join("console.log");
    let vm = Vm::start(&VmSpec {
        emulator: Emulator::find(None).unwrap_or_else(|error| panic!("{error}")),
        acceleration: Acceleration::Tcg,
        kernel: kernel.image,
        initramfs: Some(tiny),
        parameters: parameters.iter().map(|word| (*word).to_owned()).collect(),
        init_arguments: Vec::new(),
        memory: ByteLen::mib(256),
        cpus: 1,
        disks: vec![DiskSpec::File {
            serial: "root".into(),
            path: root.clone(),
            durability: Durability::Discardable,
        }],
        console_log: console.clone(),
        console_limit: ByteLen::mib(4),
    })
    .unwrap();
    let told = || fs::read_to_string(&console).unwrap_or_default();
    let agent = Agent::greet(vm.agent_stream().unwrap(), soon())
        .unwrap_or_else(|error| panic!("{error}\n{}", told()));
    let mounts = run(&agent, "cat /proc/mounts").0;
    let roots: Vec<&str> = mounts.lines().filter(|line| line.contains(" / ")).collect();
    assert_eq!(roots.last().map(|line| &line[..10]), Some("overlay / "), "{mounts}");
    for target in ["/proc", "/sys", "/dev", "/dev/pts", "/run", "/tmp", "/sys/fs/cgroup"] {
        assert!(mounts.contains(&format!(" {target} ")), "{target} is missing in\n{mounts}");
    }
    let script = "echo changed > /etc/passwd && cat /etc/passwd && rm /etc/hosts && \
                  echo new > /new && sync && cat /new && readlink /sbin/modprobe";
    assert_eq!(run(&agent, script).0, "changed\nnew\n/init\n");
    assert_eq!(run(&agent, "/sbin/modprobe -q nonsense; echo $?").0, "1\n");
    agent.power_off(soon()).unwrap();
    let ended = vm.wait(Some(soon())).unwrap_or_else(|| panic!("still there\n{}", told()));
    assert!(matches!(ended.how, How::PoweredOff), "{ended:?}\n{}", told());
    assert!(!told().contains("kiln-guest:"), "the guest complained:\n{}", told());
    assert!(fs::read(&root).unwrap() == before, "the root disk was written to");
}
