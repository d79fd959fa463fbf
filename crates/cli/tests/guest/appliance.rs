//! An appliance of `kiln supermin` boots: its initramfs finds the root disk by what the kernel is told, and leads to
//! that disk's own `/init`.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use kiln_block::ByteLen;
use kiln_model::event::Acceleration;
use kiln_model::testing;
use kiln_vm::agent::{Agent, PullLimits};
use kiln_vm::{DiskSpec, Durability, Emulator, Vm, VmSpec};

use crate::room::{PATIENCE, Room};

/// What a file system is known by, as `root=UUID=` writes it.
fn uuid(image: &Path) -> String {
    let mut bytes = [0; 16];
    fs::File::open(image).unwrap().read_exact_at(&mut bytes, 1024 + 0x68).unwrap();
    let text: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |from: usize, to: usize| text[from..to].concat();
    [part(0, 4), part(4, 6), part(6, 8), part(8, 10), part(10, 16)].join("-")
}

#[test]
fn an_appliance_boots_from_the_disk_with_the_uuid_to_its_own_init() {
    let room = Room::new();
    let base = room.path().join("base");
    fs::create_dir_all(base.join("etc")).unwrap();
    // Without a list of drivers beside it, it is Kiln's agent, whom the test can ask.
    fs::copy(testing::guest_executable(), base.join("init")).unwrap();
    fs::set_permissions(base.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(base.join("etc/origin"), "the archive\n").unwrap();
    fs::create_dir(room.path().join("supermin.d")).unwrap();
    let tar = Command::new("tar")
        .args(["-C", "base", "-cf", "supermin.d/base.tar", "etc", "init"])
        .current_dir(room.path())
        .status();
    assert!(tar.unwrap().success());
    room.write("supermin.d/hostfiles", "/etc/pass?d\n");
    let arguments =
        ["supermin", "--build", "-f", "ext2", "--copy-kernel", "--size", "256M", "supermin.d"];
    let mut command = room.command(&arguments);
    command.args(["--if-newer", "-o", "appliance.d"]).env("SUPERMIN_KERNEL", testing::kernel());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let part = |name: &str| room.path().join("appliance.d").join(name);
    assert_eq!(fs::metadata(part("root")).unwrap().len(), 256 << 20);
    let console = room.path().join("console.log");
    let vm = Vm::start(&VmSpec {
        emulator: Emulator::find(None).unwrap_or_else(|error| panic!("{error}")),
        acceleration: Acceleration::Tcg,
        kernel: part("kernel"),
        initramfs: Some(part("initrd")),
        parameters: vec![format!("root=UUID={}", uuid(&part("root")))],
        init_arguments: Vec::new(),
        memory: ByteLen::mib(256),
        cpus: 1,
        disks: vec![DiskSpec::File {
            serial: "appliance".into(),
            path: part("root"),
            durability: Durability::Discardable,
        }],
        console_log: console.clone(),
        console_limit: ByteLen::mib(4),
    })
    .unwrap();
    let soon = Instant::now() + PATIENCE;
    let told = || fs::read_to_string(&console).unwrap_or_default();
    let agent = Agent::greet(vm.agent_stream().unwrap(), soon)
        .unwrap_or_else(|error| panic!("{error}\n{}", told()));
    let found = room.path().join("found");
    fs::create_dir(&found).unwrap();
    let patterns = ["/etc/origin", "/etc/passwd", "/proc/mounts"].map(str::to_owned);
    let limits = PullLimits { entries: 10, bytes: 1 << 20 };
    let report = agent.pull(&patterns, &found, limits, soon).unwrap();
    assert_eq!(report.troubles, Vec::<String>::new());
    let read = |name: &str| fs::read_to_string(found.join(name)).unwrap();
    assert_eq!(read("etc/origin"), "the archive\n");
    assert_eq!(read("etc/passwd"), fs::read_to_string("/etc/passwd").unwrap());
    let mounts = read("proc/mounts");
    assert!(mounts.lines().any(|line| line.starts_with("/dev/vda / ext")), "{mounts}");
    agent.power_off(soon).unwrap();
    vm.wait(Some(soon)).unwrap_or_else(|| panic!("still there\n{}", told()));
    assert!(!told().contains("cannot"), "somebody complained:\n{}", told());
}
