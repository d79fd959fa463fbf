//! What goes wrong in guests, on a real kernel: each fault ends as the documentation says and leaves no QEMU.

use std::path::Path;
use std::time::Duration;

use kiln_model::event::{Happening, NoteLevel};
use kiln_model::job::{JobSpec, KeepDisks};
use kiln_runner::StopToken;
use kiln_runner::job::PoolAccess;
use kiln_runner::shell::{Shell, ShellEvent};

use crate::support::{Room, Told};

/// The least a script needs.
const GUEST: &str = "[guest]\nbinaries = [\"sh\", \"cat\", \"blockdev\", \"chrt\", \"dd\", \"echo\", \"ls\", \"setsid\", \"sleep\", \"true\", \"uname\"]\n\
                     [vm]\nmemory = \"256M\"\n";

fn no_machine_is_left(told: &Told) {
    for event in &told.events {
        if let Happening::VmStarted { pid, .. } = event {
            let gone = !Path::new(&format!("/proc/{pid}")).exists();
            assert!(gone, "QEMU {pid} is still there:\n{}", told.transcript());
        }
    }
}

#[test]
fn a_panic_a_hang_and_a_timeout_each_cost_one_stage() {
    let scenario = format!(
        r#"
name = "five"
{GUEST}
hang_timeout = "8s"
[[stages]]
name = "passes"
run = "uname -r"
[[stages]]
name = "panics"
run = "echo c >/proc/sysrq-trigger"
[[stages]]
name = "hangs"
# A real-time loop on the only processor, without the share that other programs are usually left.
run = '''
echo -1 >/proc/sys/kernel/sched_rt_runtime_us
for share in /sys/kernel/debug/sched/fair_server/*/runtime; do echo 0 >$share; done
echo going down
sleep 1
exec chrt -f 99 sh -c 'while :; do :; done'
'''
[[stages]]
name = "slow"
timeout = "3s"
run = "while :; do echo alive; sleep 0.2; done"
[[stages]]
name = "passes-too"
run = "true"
"#
    );
    let room = Room::new();
    let told = room.run(&scenario);
    told.expect(&[
        "passes: passed",
        "panics: crashed (panic: sysrq triggered crash)",
        "hangs: timed-out (hang)",
        "slow: timed-out (deadline)",
        "passes-too: passed",
    ]);
    no_machine_is_left(&told);
    let kept = |path: &str| {
        let told_so = told.events.iter().any(
            |event| matches!(event, Happening::ArtifactSaved { path: saved, .. } if saved == path),
        );
        assert!(told_so, "{path} was not saved:\n{}", told.transcript());
        std::fs::read_to_string(told.folder.join(path)).unwrap()
    };
    assert!(kept("stages/panics/dmesg.txt").contains("sysrq triggered crash"));
    assert!(kept("machines/2/registers.txt").contains("RIP="));
    assert!(
        std::fs::read_to_string(told.folder.join("machines/1/console.log"))
            .unwrap()
            .contains("panic")
    );
}

#[test]
fn a_kernel_that_panics_at_boot_ends_the_job_after_two_machines() {
    let scenario = format!(
        "name = \"noinit\"\n{GUEST}\nkernel_parameters = [\"rdinit=/nowhere\", \"root=/dev/nowhere\"]\n\
         [[stages]]\nname = \"a\"\nrun = \"true\"\n[[stages]]\nname = \"b\"\nrun = \"true\"\n\
         [[stages]]\nname = \"c\"\nrun = \"true\"\n"
    );
    let told = Room::new().run(&scenario);
    let outcomes = told.outcomes();
    assert!(outcomes[0].starts_with("a: crashed (panic: "), "{}", told.transcript());
    assert!(outcomes[1].starts_with("b: crashed (panic: "), "{}", told.transcript());
    assert_eq!(outcomes[2], "c: not-run (2 machines in a row did not boot)");
    no_machine_is_left(&told);
}

#[test]
fn a_kernel_without_the_agents_channel_is_broken_and_the_cure_is_said() {
    let scenario = format!(
        "name = \"deaf\"\n{GUEST}\nkernel_parameters = [\"module_blacklist=virtio_console\", \"initcall_blacklist=virtio_console_init\"]\nboot_timeout = \"20s\"\n\
         [[stages]]\nname = \"a\"\nrun = \"true\"\n"
    );
    let told = Room::new().run(&scenario);
    assert!(told.outcomes()[0].starts_with("a: broken ("), "{}", told.transcript());
    assert!(told.transcript().contains("virtio_console"), "{}", told.transcript());
    no_machine_is_left(&told);
}

#[test]
fn floods_are_bounded_and_leftovers_do_not_reach_the_next_stage() {
    let scenario = format!(
        r##"
name = "unruly"
{GUEST}
[[disks]]
size = "16M"
serial = "d"
[[stages]]
name = "floods"
run = "dd if=/dev/zero bs=1M count=40 2>/dev/null; echo"
timeout = "5m"
[[stages]]
name = "forks"
run = "setsid sleep 1000 & sleep 999 & echo left two behind"
[[stages]]
name = "looks"
run = "for file in /proc/[0-9]*/comm; do read name <$file && echo saw $name; done; exit 0"
artifacts = ["/etc/passw?", "/proc/version"]
[[stages]]
name = "fails"
run = "printf kept | dd of=/dev/disk/by-id/virtio-d conv=notrunc; exit 3"
[[stages]]
name = "speaks"
run = "#!/opt/tongues\nanything"
"##
    );
    let room = Room::new();
    let mut spec = room.job(&room.load(&scenario));
    spec.keep_disks = KeepDisks::Failed;
    let told = room.execute(&spec, &StopToken::new());
    told.expect(&[
        "floods: passed",
        "forks: passed",
        "looks: passed",
        "fails: failed (exit status 3)",
        "speaks: broken (cannot start the stage: its interpreter /opt/tongues is not in the guest; \
         add it to `binaries` in [guest])",
    ]);
    assert!(told.terminal().len() < 18 << 20);
    let said = |needle: &str| {
        told.events.iter().any(|event| {
            matches!(event, Happening::Note { level: NoteLevel::Warning, text } if text.contains(needle))
        })
    };
    assert!(said("output of floods dropped: "));
    assert!(!told.terminal().contains("saw sleep"), "a stage met another's leftovers");
    no_machine_is_left(&told);
    // The disk as the stage left it, cloned for a person.
    let kept = told.events.iter().find_map(|event| match event {
        Happening::DiskKept { stage, serial, snapshot } => {
            Some((stage.to_string(), serial.clone(), snapshot.clone()))
        }
        _ => None,
    });
    let (stage, serial, snapshot) = kept.expect("a disk was kept");
    assert_eq!((stage.as_str(), serial.as_str()), ("fails", "d"));
    spec.disks[0].base = Some(snapshot);
    spec.disks[0].size = 32 << 20;
    let disk = "/dev/disk/by-id/virtio-d";
    let (said, status) = in_a_shell(
        &spec,
        &format!("[ $(blockdev --getsize64 {disk}) = 33554432 ] && dd if={disk} bs=4 count=1"),
    );
    assert!(said.contains("kept") && status == 0, "{said}");
}

#[test]
fn a_run_that_is_told_to_end_at_once_leaves_no_machine() {
    let room = Room::new();
    let scenario = format!(
        "name = \"stop\"\n{GUEST}\n[[stages]]\nname = \"a\"\nrun = \"echo here; sleep 1000\"\n"
    );
    let stop = StopToken::new();
    let asked = stop.clone();
    let spec = room.job(&room.load(&scenario));
    let mut events = Vec::new();
    let mut sink = |event: kiln_model::event::Event| {
        if matches!(&event.event, Happening::Output { text, .. } if text.contains("here")) {
            asked.kill();
        }
        events.push(event.event);
    };
    kiln_runner::job::execute(&spec, &PoolAccess::inside(), &mut sink, &stop);
    let told = Told { events, folder: spec.folder };
    told.expect(&["a: not-run (interrupted)"]);
    no_machine_is_left(&told);
}

/// What commands print in the machine of a job, and their exit status.
fn in_a_shell(spec: &JobSpec, commands: &str) -> (String, i32) {
    let mut sink = |_: kiln_model::event::Event| {};
    let shell = Shell::open(spec, &PoolAccess::inside(), &mut sink, &StopToken::new()).unwrap();
    let command = ["sh", "-c", commands].map(str::to_owned);
    let mut session = shell.start(&command, &[], None).unwrap();
    let mut seen = Vec::new();
    let status = loop {
        match session.next(Duration::from_secs(60)).unwrap().expect("the shell fell silent") {
            ShellEvent::Output(bytes) => seen.extend(bytes),
            ShellEvent::Exited(status) => break status,
            ShellEvent::Killed(signal) => panic!("killed by {signal}"),
        }
    };
    assert_eq!(shell.close(), "powered off");
    (String::from_utf8_lossy(&seen).into_owned(), status)
}

#[test]
fn a_shell_has_input_output_and_an_exit_status() {
    let room = Room::new();
    let scenario = format!("name = \"sh\"\n{GUEST}\n[[stages]]\nname = \"a\"\nrun = \"true\"\n");
    let spec = room.job(&room.load(&scenario));
    let mut events = Vec::new();
    let mut sink = |event: kiln_model::event::Event| events.push(event.event);
    let shell = Shell::open(&spec, &PoolAccess::inside(), &mut sink, &StopToken::new()).unwrap();
    let mut session =
        shell.start(&[], &[("GREETING".into(), "hello".into())], Some((30, 100))).unwrap();
    let input = session.input();
    input.resize(40, 120).unwrap();
    input.write(b"echo $GREETING-$((20 + 3)); exit 7\n").unwrap();
    let mut seen = Vec::new();
    let status = loop {
        match session.next(Duration::from_secs(60)).unwrap().expect("the shell fell silent") {
            ShellEvent::Output(bytes) => seen.extend(bytes),
            ShellEvent::Exited(status) => break status,
            ShellEvent::Killed(signal) => panic!("killed by {signal}"),
        }
    };
    assert_eq!(status, 7);
    let seen = String::from_utf8_lossy(&seen);
    assert!(seen.contains("hello-23"), "{seen}");
    assert_eq!(shell.close(), "powered off");
}

#[test]
fn a_stage_that_passed_without_a_file_that_changed_on_this_host_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data");
    std::fs::write(&file, vec![b'x'; 100_000]).unwrap();
    let scenario = format!(
        r#"
name = "changed"
[guest]
binaries = ["sh", "cat", "true"]
files = [{{ path = "/etc/data", source = "{}" }}]
[vm]
memory = "256M"
root = "disk"
[[stages]]
name = "reads"
run = "cat /etc/data >/dev/null || true"
[[stages]]
name = "does-not"
run = "true"
"#,
        file.display()
    );
    let room = Room::new();
    let spec = room.job(&room.load(&scenario));
    std::fs::write(&file, vec![b'y'; 200_000]).unwrap();
    let told = room.execute(&spec, &StopToken::new());
    let outcomes = told.outcomes();
    let why = "reads: broken (passed, but the root disk could not be read: ";
    assert!(outcomes[0].starts_with(why), "{}", told.transcript());
    assert_eq!(outcomes[1], "does-not: passed", "{}", told.transcript());
    no_machine_is_left(&told);
}
