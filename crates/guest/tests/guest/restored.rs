//! Machines that were restored from the same instant, and are machines of their own.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use kiln_block::ByteLen;
use kiln_model::event::Acceleration;
use kiln_vm::agent::{Agent, ExitStatus};
use kiln_vm::{DiskSpec, Durability, Emulator, Vm, VmSpec};

use crate::boot::{PROGRAMS, initramfs, kernel, run, soon};

/// 2026-01-01, and a day for each machine.
const NEW_YEAR: Duration = Duration::from_secs(1_767_225_600);
const DAY: Duration = Duration::from_secs(86_400);
const DISK: u64 = 8 << 20;

struct Machine {
    // Hung up before the machine's end is awaited.
    agent: Agent,
    _vm: Vm,
}

fn spec_for(machine: &str, folder: &Path, image: &Path) -> VmSpec {
    let disk = folder.join(format!("{machine}.disk"));
    File::create(&disk).expect("room for a disk").set_len(DISK).expect("a sparse file");
    VmSpec {
        emulator: Emulator::find(None).unwrap_or_else(|error| panic!("{error}")),
        acceleration: Acceleration::Tcg,
        kernel: kernel().image,
        initramfs: Some(image.to_owned()),
        parameters: Vec::new(),
        init_arguments: Vec::new(),
        memory: ByteLen::mib(256),
        cpus: 2,
        disks: vec![DiskSpec::File {
            serial: "data".into(),
            path: disk,
            durability: Durability::Discardable,
        }],
        console_log: folder.join(format!("{machine}.log")),
        console_limit: ByteLen::mib(4),
    }
}

/// Writes a page full of one letter to the middle of its disk, past the page cache.
fn write(machine: &Machine, letter: char) {
    let script = format!(
        "dd if=/dev/zero bs=4096 count=1 2>/dev/null | tr '\\0' {letter} | \
         dd of=/dev/vda bs=4096 seek=512 oflag=sync conv=notrunc 2>/dev/null"
    );
    assert_eq!(run(&machine.agent, &script).1, ExitStatus::Code(0));
}

fn disk_of(machine: &str, folder: &Path) -> Vec<u8> {
    fs::read(folder.join(format!("{machine}.disk"))).expect("its disk")
}

#[test]
fn two_machines_from_one_instant_have_names_numbers_clocks_and_disks_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let image = initramfs(&kernel(), folder, PROGRAMS);
    let vm = Vm::start_savable(&spec_for("saved", folder, &image)).unwrap();
    let mut agent = Agent::greet(vm.agent_stream().unwrap(), soon()).unwrap();
    agent.load_modules(&["virtio_blk".into()], soon()).unwrap();
    // A kernel may find disks a moment after it has their driver.
    while agent.rescan_disks(soon()).unwrap() < 1 {}
    // Its random numbers are seeded and in use before it is saved.
    run(&agent, "cat /proc/sys/kernel/random/uuid");
    agent.rest(soon()).unwrap();
    let memory = tempfile::tempfile().unwrap();
    let state = vm.save(&memory).unwrap();
    vm.resume().unwrap();
    agent.greet_again(soon()).unwrap();
    assert_eq!(run(&agent, "echo on").0, "on\n", "the saved machine goes on");
    let clones = [("one", 1), ("two", 2)].map(|(name, day)| {
        let spec = spec_for(name, folder, &image);
        let vm = Vm::restore(&spec, &memory, state.clone()).unwrap();
        let agent = Agent::greet(vm.agent_stream().unwrap(), soon()).unwrap();
        agent.renew(NEW_YEAR + DAY * day, name, true, soon()).unwrap();
        Machine { agent, _vm: vm }
    });
    let ask = |what: &str| [0, 1].map(|which: usize| run(&clones[which].agent, what).0);
    let names = ask("cat /proc/sys/kernel/hostname");
    assert_eq!(names, ["one\n", "two\n"]);
    let days = ask("date -u +%F");
    assert_eq!(days, ["2026-01-02\n", "2026-01-03\n"]);
    for what in [
        "cat /etc/machine-id",
        "cat /proc/sys/kernel/random/uuid",
        "cat /proc/sys/kernel/random/boot_id",
        "dd if=/dev/urandom bs=1024 count=1 2>/dev/null | tr -cd 0-9a-z",
    ] {
        let [one, two] = ask(what);
        assert!(one.len() > 32 && one != two, "{what} says {one:?} and {two:?}");
    }
    let addresses = ask("cat /sys/class/net/*/address");
    assert_eq!(addresses, ["00:00:00:00:00:00\n"; 2], "there is no network but their own");
    write(&clones[0], 'x');
    write(&clones[1], 'y');
    let count = "dd if=/dev/vda bs=4096 skip=512 count=1 2>/dev/null | tr -cd xy | cut -c1,4096";
    assert_eq!(ask(count), ["xx\n", "yy\n"], "each reads what it wrote");
    drop(clones);
    for (machine, byte) in [("one", b'x'), ("two", b'y'), ("saved", 0)] {
        let disk = disk_of(machine, folder);
        assert!(disk[512 * 4096..513 * 4096].iter().all(|found| *found == byte), "{machine}");
    }
    agent.power_off(soon()).unwrap();
    for machine in ["saved", "one", "two"] {
        let told = fs::read_to_string(folder.join(format!("{machine}.log"))).unwrap();
        assert!(!told.contains("kiln-guest:"), "the guest complained:\n{told}");
    }
}
