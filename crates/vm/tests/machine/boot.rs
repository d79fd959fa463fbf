//! Machines that really boot, by translation, with the kernel the tests are given and an init of a page of C.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::guest::Guest;
use kiln_model::splat::{Splat, SplatKind};
use kiln_vm::lifeline::{self, Tethered};
use kiln_vm::{DiskSpec, Emulator, Ended, How, Next, Vm, VmError, VmEvent, VmSpec, VmState};
use rustix::process::{Pid, PidfdFlags, Signal};

/// Far more than any step takes: it only keeps a broken test from hanging for ever.
const PATIENCE: Duration = Duration::from_secs(180);

fn soon() -> Option<Instant> {
    Some(Instant::now() + PATIENCE)
}

/// Everything a machine told until its end.
#[derive(Debug, Default)]
struct Told {
    lines: Vec<String>,
    splats: Vec<Splat>,
    ended: Option<Ended>,
}

/// Listens until `done` or the end.
fn listen(vm: &Vm, told: &mut Told, done: impl Fn(&Told) -> bool) {
    let deadline = soon();
    while !done(told) {
        match vm.events().next(deadline) {
            Next::Event(VmEvent::Console(line)) => told.lines.push(line.text),
            Next::Event(VmEvent::Splat(splat)) => told.splats.push(splat),
            Next::Event(VmEvent::Ended(ended)) => told.ended = Some(ended),
            Next::Event(_) => {}
            Next::Over => return,
            Next::Timeout => panic!("nothing more came; so far: {told:#?}"),
        }
    }
}

fn to_the_end(vm: &Vm) -> Told {
    let mut told = Told::default();
    listen(vm, &mut told, |_| false);
    told
}

fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// Disks served by QEMU's own daemon; it ends with this.
fn serve_disks(folder: &Path, sockets: &[&str]) -> (Tethered, Vec<DiskSpec>) {
    let mut command = Command::new("qemu-storage-daemon");
    let mut disks = Vec::new();
    for (number, name) in sockets.iter().enumerate() {
        let image = folder.join(format!("{number}.raw"));
        let file = std::fs::File::create(&image).expect("room for a disk");
        file.set_len(1 << 20).expect("a sparse file");
        let image = image.display();
        command.arg("--blockdev").arg(format!("file,node-name=d{number},filename={image}"));
        let socket = folder.join(name);
        let escaped = socket.display().to_string().replace(',', ",,");
        command.arg("--export").arg(format!(
            "vhost-user-blk,id=e{number},node-name=d{number},writable=on,num-queues=2,\
             addr.type=unix,addr.path={escaped}"
        ));
        disks.push(DiskSpec::Served { socket });
    }
    command.stdin(Stdio::null());
    let daemon = lifeline::spawn(command, Vec::new()).expect("qemu-storage-daemon starts");
    (daemon, disks)
}

#[test]
fn a_bzimage_boots_talks_through_the_agents_port_knows_its_disks_and_switches_itself_off() {
    let guest = Guest::new(&["disks", "echo", "off"]);
    let mut spec = guest.spec();
    // A machine whose disks are not served yet waits for them.
    let (_daemon, disks) = serve_disks(guest.folder(), &["a,1.sock", "b.sock"]);
    spec.disks = disks;
    let vm = Vm::start(&spec).unwrap();
    let mut agent = vm.agent_stream().unwrap();
    assert!(vm.agent_stream().is_none(), "there is one agent");
    agent.set_read_timeout(Some(PATIENCE)).unwrap();
    agent.write_all(b"hello, guest").unwrap();
    let mut answer = [0; 12];
    agent.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello, guest");
    assert!(vm.cpu_time().unwrap() > Duration::ZERO);
    agent.write_all(b"q").unwrap();
    let told = to_the_end(&vm);
    assert_eq!(told.ended.as_ref().unwrap().how, How::PoweredOff, "{told:#?}");
    let found = told.lines.iter().filter(|line| *line == "DISK vhost_user_blk").count();
    assert_eq!(found, 2, "{:#?}", told.lines);
    assert_eq!(told.splats, []);
    agent.shutdown(Shutdown::Both).ok();
    assert!(is_gone(vm.pid()));
}

#[test]
fn a_panic_is_told_whole_before_the_end_and_recorded() {
    let guest = Guest::new(&["ready", "crash"]);
    let mut spec = guest.spec();
    spec.kernel = guest.vmlinux();
    let vm = Vm::start(&spec).unwrap();
    let told = to_the_end(&vm);
    assert_eq!(told.ended.as_ref().unwrap().how, How::Reset, "{told:#?}");
    assert_eq!(told.splats.len(), 1, "{told:#?}");
    assert_eq!(told.splats[0].kind, SplatKind::Panic);
    assert_eq!(told.splats[0].signature, "panic: sysrq triggered crash");
    let last = told.splats[0].excerpt.lines().last().unwrap();
    assert!(last.starts_with("Kernel Offset:"), "the report's last line came through: {last}");
    let recorded = std::fs::read_to_string(&spec.console_log).unwrap();
    // What the guest's programs said last may still have been on its way when the kernel panicked.
    assert!(recorded.contains("sysrq: Trigger a crash"), "{recorded}");
    assert!(recorded.contains("Kernel Offset:"), "{recorded}");
}

#[test]
fn a_hanging_machine_is_questioned_then_killed_and_nothing_is_left_of_it() {
    let guest = Guest::new(&["ready", "hang"]);
    let vm = Vm::start(&guest.spec()).unwrap();
    let mut told = Told::default();
    listen(&vm, &mut told, |told| told.lines.iter().any(|line| line == "INIT-READY"));
    let said = vm.interrogate(PATIENCE);
    for cpu in ["CPU#0", "CPU#1"] {
        assert!(said.registers.contains(cpu), "{}", said.registers);
    }
    assert!(said.registers.contains("RIP="), "{}", said.registers);
    assert!(said.kernel_answered);
    listen(&vm, &mut told, |told| told.lines.iter().any(|line| line.starts_with("task:init")));
    vm.kill();
    let ended = vm.wait(soon()).unwrap();
    assert_eq!(ended.how, How::Killed);
    assert!(is_gone(vm.pid()));
    let recorded = std::fs::read_to_string(&guest.spec().console_log).unwrap();
    assert!(recorded.contains("Show Blocked State"), "{recorded}");
}

/// Not a test: the owner of a machine that another test kills.
#[test]
#[ignore = "plays the owner that is killed"]
fn doomed_owner() {
    let Some(folder) = std::env::var_os("KILN_TEST_DOOMED") else {
        return;
    };
    let guest = Guest::at(Path::new(&folder), &["ready", "hang"]);
    let vm = Vm::start(&guest.spec()).expect("a machine starts");
    println!("\nQEMU-IS {}", vm.pid());
    let _ = to_the_end(&vm);
}

#[test]
fn no_qemu_outlives_an_owner_killed_by_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "boot::doomed_owner", "--ignored", "--nocapture", "--test-threads=1"])
        .env("KILN_TEST_DOOMED", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut pipe = owner.stdout.take().unwrap();
    let pid = loop {
        let mut buffer = [0; 256];
        let count = pipe.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "the owner said only {said:?}");
        said.push_str(&String::from_utf8_lossy(&buffer[..count]));
        if let Some((_, rest)) = said.split_once("QEMU-IS ")
            && let Some((pid, _)) = rest.split_once('\n')
        {
            break pid.parse::<i32>().unwrap();
        }
    };
    let pid = Pid::from_raw(pid).unwrap();
    let qemu = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    let mut ended = [rustix::event::PollFd::new(&qemu, rustix::event::PollFlags::IN)];
    let patience = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut ended, Some(&patience)), Ok(1), "QEMU {pid:?} lives on");
}

#[test]
fn a_qemu_that_refuses_its_command_line_is_an_error_with_its_words() {
    let guest = Guest::new(&[]);
    let spec = VmSpec { kernel: "/nonexistent/vmlinuz".into(), ..guest.spec() };
    let error = Vm::start(&spec).unwrap_err();
    assert!(matches!(error, VmError::Stillborn { .. }), "{error:?}");
    assert!(error.to_string().contains("/nonexistent/vmlinuz"), "{error}");
}

#[test]
fn a_qemu_killed_by_somebody_else_has_failed_and_one_asked_to_end_has_not() {
    let guest = Guest::new(&["hang"]);
    for (signal, how) in [(Signal::KILL, How::Failed), (Signal::TERM, How::Asked)] {
        let vm = Vm::start(&guest.spec()).unwrap();
        let pid = Pid::from_raw(i32::try_from(vm.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        assert_eq!(vm.wait(soon()).unwrap().how, how);
        assert!(matches!(vm.state(), VmState::Ended(_)));
        assert_eq!(vm.cpu_time(), None);
        assert!(vm.registers().is_err());
    }
}

#[test]
fn a_guest_that_floods_its_console_is_recorded_within_the_bound() {
    let guest = Guest::new(&["flood", "off"]);
    let mut spec = guest.spec();
    spec.console_limit = kiln_block::ByteLen::kib(64);
    let vm = Vm::start(&spec).unwrap();
    let ended = vm.wait(soon()).unwrap();
    assert_eq!(ended.how, How::PoweredOff);
    let recorded = std::fs::read(&spec.console_log).unwrap();
    assert!(recorded.len() < (64 << 10) + 100, "{}", recorded.len());
    let recorded = String::from_utf8_lossy(&recorded);
    assert!(recorded.contains("bytes of console output left out here"), "{recorded}");
    let told = to_the_end(&vm);
    assert!(told.lines.len() <= 4096, "{} lines waited", told.lines.len());
}

#[test]
fn an_emulator_behind_a_wrapper_script_is_killed_with_it() {
    let guest = Guest::new(&["hang"]);
    let qemu = Emulator::find(None).unwrap();
    let wrapper = guest.folder().join("wrapper");
    let script = format!("#!/bin/sh\n{} \"$@\"\nexit $?\n", qemu.path().display());
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755)).unwrap();
    let spec = VmSpec { emulator: Emulator::find(Some(&wrapper)).unwrap(), ..guest.spec() };
    let vm = Vm::start(&spec).unwrap();
    let group = vm.pid();
    drop(vm);
    let group = Pid::from_raw(i32::try_from(group).unwrap()).unwrap();
    // A killed grandchild takes a moment to die, and is a zombie until init buries it in its own time.
    let deadline = soon();
    while rustix::process::test_kill_process_group(group).is_ok() && !only_zombies(group) {
        assert!(deadline.is_some_and(|at| Instant::now() < at), "someone of the group is left");
        std::thread::yield_now();
    }
}

fn only_zombies(group: Pid) -> bool {
    let group = group.as_raw_nonzero().get().to_string();
    std::fs::read_dir("/proc").expect("a host with /proc").flatten().all(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let fields: Vec<&str> = match stat.rsplit_once(')') {
            Some((_, rest)) => rest.split_ascii_whitespace().collect(),
            None => return true,
        };
        fields.get(2) != Some(&group.as_str()) || matches!(fields.first(), Some(&"Z" | &"X"))
    })
}
