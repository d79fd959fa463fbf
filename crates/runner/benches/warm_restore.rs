//! What starting from a saved machine costs: `cargo bench -p kiln-runner --bench warm_restore`, with QEMU, a kernel and the
//! guest executable as the tests want them. `KILN_BENCH_RESTORES` says how often, `KILN_BENCH_CLONES` how many at once.
//!
//! One machine of 512 MiB boots, translated, and is saved. Then machines are restored one after the other: from the call
//! until the first byte that `echo` printed, and the processor time QEMU has used by then. Then many are started at once,
//! and what each has resident for itself alone is added up. Both once with a root in memory, where saved memory is mapped
//! privately, and once with a root disk over vhost-user, where it has to be copied for each machine.
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use kiln_image::cache::{GuestExecutable, ImageStore};
use kiln_image::kernel::{Host, Kernel, KernelCache, find};
use kiln_model::event::{Event, Happening};
use kiln_model::job::{AccelerationChoice, JobSpec, KeepDisks};
use kiln_model::plan::{Choices, plan};
use kiln_model::root::RootChoice;
use kiln_model::scenario::{MachineWish, Scenario};
use kiln_model::testing::guest_executable;
use kiln_runner::shell::{Shell, ShellEvent};
use kiln_runner::{Loaded, PoolAccess, StopToken, Stores, equip};

const SCENARIO: &str = r#"
name = "warm"
[guest]
include = ["base"]
[vm]
memory = "512M"
[[stages]]
name = "none"
run = "true"
"#;
/// One that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is promised on a quiet machine.
const MEDIAN: Duration = Duration::from_millis(180);
const SLOWEST: Duration = Duration::from_millis(500);
const CPU: Duration = Duration::from_millis(200);
const RESIDENT: u64 = 25 << 20;

fn number(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn job(folder: &Path, kernel: &Kernel, stores: &Stores, root: RootChoice) -> JobSpec {
    let machine =
        MachineWish { acceleration: Some(AccelerationChoice::Tcg), ..MachineWish::default() };
    let choices = Choices { machine, ..Choices::default() };
    let scenario = Scenario::parse(SCENARIO).unwrap();
    let loaded = Loaded {
        scenario: scenario.clone(),
        source: "warm".into(),
        text: SCENARIO.into(),
        folder: None,
    };
    let plan = plan(&scenario, &kernel.identity(), &choices).unwrap();
    let equipment = equip(&loaded, kernel, stores, root).unwrap();
    let run = "20261121-142530-7f3a".parse().unwrap();
    let mut places = equipment.places(run, folder.join("run"), None, Vec::new());
    places.warm = Some(folder.join("warm"));
    let mut spec = plan.job_spec(&places).unwrap();
    spec.stages.clear();
    spec.keep_disks = KeepDisks::Never;
    spec
}

/// One machine, and how it came.
struct Started {
    shell: Shell,
    pid: u32,
    restored: bool,
    wall: Duration,
    cpu: Duration,
}

/// Starts a machine and waits for the first byte that a command prints.
fn start(spec: &JobSpec, number: usize) -> Result<Started, String> {
    let mut spec = spec.clone();
    spec.folder = spec.folder.join(number.to_string());
    fs::create_dir_all(&spec.folder).unwrap();
    let (mut pid, mut restored) = (0, false);
    let began = Instant::now();
    let mut sink = |event: Event| match event.event {
        Happening::VmStarted { pid: of, .. } => pid = of,
        Happening::VmReady { restored: is, .. } => restored = is,
        Happening::Note { text, .. } => println!("note: {text}"),
        _ => {}
    };
    let shell = Shell::open(&spec, &PoolAccess::inside(), &mut sink, &StopToken::new());
    let shell = shell.map_err(|error| error.to_string())?;
    let command = ["/bin/echo", "hello"].map(str::to_owned);
    let mut session = shell.start(&command, &[], None).map_err(|error| error.to_string())?;
    match session.next(PATIENCE).map_err(|error| error.to_string())? {
        Some(ShellEvent::Output(_)) => {}
        other => return Err(format!("{other:?} instead of a greeting")),
    }
    let wall = began.elapsed();
    Ok(Started { shell, pid, restored, wall, cpu: cpu_of(pid) })
}

/// Processor time of all threads of a process, to the nanosecond.
fn cpu_of(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let of = |path: std::path::PathBuf| -> Option<u64> {
        fs::read_to_string(path.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    Duration::from_nanos(threads.filter_map(|thread| of(thread.path())).sum())
}

/// What a process has resident that no other has.
fn own_memory(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let own = text.lines().filter(|line| line.starts_with("Private_"));
    own.filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>()
        << 10
}

fn available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn at(sorted: &[Duration], hundredths: usize) -> Duration {
    sorted[(sorted.len() * hundredths / 100).min(sorted.len() - 1)]
}

fn one_after_the_other(spec: &JobSpec, count: usize) -> (Duration, Duration, Duration, usize) {
    let (mut walls, mut cpus, mut lost) = (Vec::new(), Vec::new(), 0);
    for number in 0..count {
        match start(spec, number) {
            Ok(started) if started.restored => {
                walls.push(started.wall);
                cpus.push(started.cpu);
            }
            Ok(_) => lost += 1,
            Err(why) => {
                println!("restore {number}: {why}");
                lost += 1;
            }
        }
    }
    walls.sort();
    cpus.sort();
    println!(
        "  {count} restores, {lost} lost: wall median {:.0?}, 90 of 100 {:.0?}, 99 of 100 {:.0?}, slowest {:.0?}; \
         CPU median {:.0?}, slowest {:.0?}",
        at(&walls, 50),
        at(&walls, 90),
        at(&walls, 99),
        at(&walls, 100),
        at(&cpus, 50),
        at(&cpus, 100),
    );
    (at(&walls, 50), at(&walls, 99), at(&cpus, 50), lost)
}

fn at_once(spec: &JobSpec, count: usize) -> (u64, usize) {
    let before = available();
    let (together, all_there) = (Barrier::new(count), Barrier::new(count));
    let clones: Vec<Result<(Duration, u64, u64), String>> = thread::scope(|scope| {
        let clones: Vec<_> = (0..count)
            .map(|number| {
                let (together, all_there) = (&together, &all_there);
                scope.spawn(move || {
                    together.wait();
                    let started = start(spec, 1000 + number);
                    all_there.wait();
                    let left = available();
                    let told = started.map(|started| {
                        let own = own_memory(started.pid);
                        (started, own)
                    });
                    all_there.wait();
                    told.map(|(started, own)| {
                        started.shell.close();
                        (started.wall, own, left)
                    })
                })
            })
            .collect();
        clones.into_iter().map(|clone| clone.join().unwrap()).collect()
    });
    let answered: Vec<_> = clones.iter().filter_map(|clone| clone.as_ref().ok()).collect();
    let lost = count - answered.len();
    let mean = answered.iter().map(|(_, own, _)| own).sum::<u64>() / answered.len().max(1) as u64;
    let most = answered.iter().map(|(_, own, _)| *own).max().unwrap_or(0);
    let slowest = answered.iter().map(|(wall, _, _)| *wall).max().unwrap_or_default();
    let left = answered.iter().map(|(_, _, left)| *left).min().unwrap_or(before);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "  {count} at once, {lost} lost: the last answered after {slowest:.0?}; each has {:.1} MiB for itself, the \
         largest {:.1}; the host has {:.1} MiB less for each",
        mib(mean),
        mib(most),
        mib(before.saturating_sub(left)) / count as f64,
    );
    (most, lost)
}

fn main() -> ExitCode {
    let folder = tempfile::Builder::new().prefix("kiln-").tempdir_in("/tmp").unwrap();
    let image = kiln_model::testing::kernel();
    let kernel =
        find(image.to_str(), &Host::this(), &KernelCache::new("/dev/null/no-kernels")).unwrap();
    let stores = Stores {
        kernels: KernelCache::new(folder.path().join("kernels")),
        images: ImageStore::open(&folder.path().join("images")).unwrap(),
        guest: GuestExecutable::File(guest_executable()),
    };
    let restores = number("KILN_BENCH_RESTORES", 200).max(1);
    let clones = number("KILN_BENCH_CLONES", 16).max(1);
    let mut missed = false;
    for (name, root) in [
        ("saved memory mapped privately", RootChoice::Initramfs),
        ("saved memory copied, root over vhost-user", RootChoice::Disk),
    ] {
        println!("{name}");
        let spec = job(folder.path(), &kernel, &stores, root);
        let booted = start(&spec, 5000).unwrap();
        println!("  boot: wall {:.0?}, CPU {:.0?}", booted.wall, booted.cpu);
        assert!(!booted.restored, "there is nothing to restore yet");
        booted.shell.close();
        let (median, slowest, cpu, lost) = one_after_the_other(&spec, restores);
        let (own, silent) = at_once(&spec, clones);
        missed |= lost + silent > 0;
        if root == RootChoice::Initramfs {
            missed |= median > MEDIAN || slowest > SLOWEST || cpu > CPU || own > RESIDENT;
        }
    }
    println!(
        "promised of the first: median {MEDIAN:?} and {CPU:?} of CPU, 99 of 100 within {SLOWEST:?}, 25 MiB each, none lost"
    );
    if missed {
        println!("not kept");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
