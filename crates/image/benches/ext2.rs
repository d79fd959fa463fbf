//! How long a root disk takes: planned, and written, beside a plain `cat` of the same files into one
//! and `mke2fs -d`, in turns, while the files are in the page cache.
//!
//! The tree is `KILN_BENCH_TREE`, else a copy of some 5,000 files of `/usr`; `KILN_BENCH_ROUNDS` says how often.
//! Processor time is user and system, the mean of the faster half of the rounds; that of other programs is counted
//! in hundredths of a second.

#![expect(clippy::print_stdout, reason = "figures are what a benchmark is for")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kiln_image::ext2::{Options, Plan, Summary, Tree};
use rustix::time::{ClockId, clock_gettime};

const FILES: usize = 5000;
const BYTES: u64 = 230 << 20;
/// A tree with many entries, for planning alone.
const LARGE: &str = "/usr";
/// Larger files would leave no room for many.
const LARGEST: u64 = 6 << 20;

/// Wall and processor time.
type Took = (Duration, Duration);

/// The system's memory, counted.
struct Counting;

/// How many bytes are allocated, and how many were at most.
static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is left to the system's allocator; counting touches no memory of others.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MOST.fetch_max(
            HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size(),
            Ordering::Relaxed,
        );
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        MOST.fetch_max(HELD.fetch_add(len, Ordering::Relaxed) + len, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(at, layout, len) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What one way took, over all rounds.
#[derive(Default)]
struct Cost {
    rounds: Vec<Took>,
}

impl Cost {
    fn wall(&self) -> Duration {
        self.sorted().get(self.rounds.len() / 2).map_or(Duration::ZERO, |(wall, _)| *wall)
    }

    /// Of one round, among the faster half of them: a slow one pays for what other programs did to the caches.
    fn cpu(&self) -> Duration {
        let half = self.rounds.len().div_ceil(2);
        let sum: Duration = self.sorted()[..half].iter().map(|(_, cpu)| *cpu).sum();
        sum / u32::try_from(half).unwrap_or(u32::MAX).max(1)
    }

    fn best(&self) -> Duration {
        self.sorted().first().map_or(Duration::ZERO, |(wall, _)| *wall)
    }

    fn sorted(&self) -> Vec<Took> {
        let mut rounds = self.rounds.clone();
        rounds.sort();
        rounds
    }

    fn show(&self, name: &str) {
        println!(
            "{name:<24} wall median {:>9.3?} best {:>9.3?}  cpu {:>9.3?}",
            self.wall(),
            self.best(),
            self.cpu()
        );
    }
}

fn main() -> ExitCode {
    // On the file system of the build, which is where images are, too: /tmp may be memory.
    let target = std::env::current_exe().expect("a program knows where it is");
    let folder = tempfile::tempdir_in(target.parent().expect("it lies in a folder"))
        .expect("the build folder can be written");
    let source = std::env::var_os("KILN_BENCH_TREE").map_or_else(
        || {
            let copy = folder.path().join("tree");
            copy_some(Path::new("/usr"), &copy);
            copy
        },
        PathBuf::from,
    );
    let rounds = std::env::var("KILN_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok());
    let rounds: usize = rounds.unwrap_or(12);
    let list = folder.path().join("list");
    let files = regular_files(&source);
    let mut names = Vec::new();
    for file in &files {
        names.extend_from_slice(file.as_os_str().as_bytes());
        names.push(0);
    }
    fs::write(&list, names).expect("the list can be written");

    let small = Memory::of(&source);
    small.show("tree");
    // Nothing is read of it but what a plan needs.
    let large = Memory::of(Path::new(LARGE));
    large.show(LARGE);
    let summary = small.summary;

    let out = folder.path().join("out");
    let larger = (summary.size.get() / 1024 * 5 / 4 + (64 << 10)).to_string();
    let ways: [(&str, &dyn Fn() -> Took); 5] = [
        ("plan", &|| measure(|| drop(plan(&source)))),
        ("plan and write", &|| {
            let file = File::create(&out).expect("the image can be made");
            measure(|| {
                plan(&source).write(&file).expect("nothing changes");
            })
        }),
        ("limit: cat into one", &|| {
            let file = File::create(&out).expect("the copy can be made");
            let list = File::open(&list).expect("it was just written");
            let mut command = Command::new("xargs");
            // As few programs as the kernel allows.
            command.args(["-0", "-s", "1900000", "cat"]).stdin(list).stdout(file);
            measure_child(&mut command)
        }),
        ("mke2fs -d", &|| {
            let mut command = Command::new("mke2fs");
            command.args(["-q", "-t", "ext2", "-b", "4096", "-d"]);
            command.args([&source, &out]).arg(&larger).stdout(Stdio::null());
            measure_child(&mut command)
        }),
        ("plan of /usr", &|| measure(|| drop(plan(Path::new(LARGE))))),
    ];
    let mut costs = [(); 5].map(|()| Cost::default());
    // The first round fills caches. Each way is taken twice in a row, and the second time counts: a virtual
    // machine may have given memory back to its host that the first one then fetches page by page.
    for round in 0..=rounds {
        for (cost, (_, way)) in costs.iter_mut().zip(&ways) {
            way();
            drop(fs::remove_file(&out));
            let took = way();
            drop(fs::remove_file(&out));
            if round > 0 {
                cost.rounds.push(took);
            }
        }
    }
    for ((name, _), cost) in ways.iter().zip(&costs) {
        cost.show(name);
    }
    let [planned, written, cat, mke2fs, planned_large] = &costs;

    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    let to_cat = (ratio(written.wall(), cat.wall()), ratio(written.cpu(), cat.cpu()));
    let to_mke2fs = (ratio(written.wall(), mke2fs.wall()), ratio(written.cpu(), mke2fs.cpu()));
    println!("write / cat              wall {:.2}  cpu {:.2}", to_cat.0, to_cat.1);
    println!("write / mke2fs -d        wall {:.2}  cpu {:.2}", to_mke2fs.0, to_mke2fs.1);
    let per_100_000 = planned_large.cpu().as_secs_f64() * 100_000.0 / large.entries_f64();
    println!("plan of 100,000 entries  cpu {per_100_000:.2} s, from {LARGE}");
    let per_5_500 = planned.cpu().as_secs_f64() * 5_500.0 / small.entries_f64();
    println!("plan of 5,500 entries    cpu {per_5_500:.3} s");
    let bars = [
        ("writing takes at most 1.15 times the processor time of cat", to_cat.1 <= 1.15),
        ("writing takes at most 1.15 times as long as cat", to_cat.0 <= 1.15),
        ("writing takes at most 0.5 times the processor time of mke2fs -d", to_mke2fs.1 <= 0.5),
        ("writing takes at most 0.5 times as long as mke2fs -d", to_mke2fs.0 <= 0.5),
        ("planning 5,500 entries takes at most 0.1 s of processor time", per_5_500 <= 0.1),
        ("planning 100,000 entries takes at most 1 s of processor time", per_100_000 <= 1.0),
        ("a plan takes less than 200 bytes an entry beside metadata", small.most < 200),
        ("one of /usr, too", large.most < 200),
    ];
    for (bar, reached) in bars {
        println!("{} {bar}", if reached { "ok  " } else { "MISS" });
    }
    if bars.iter().all(|(_, reached)| *reached) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a plan of a tree takes.
struct Memory {
    summary: Summary,
    /// Beside metadata, an entry: when it is made, and at most until then.
    held: u64,
    most: u64,
}

impl Memory {
    fn of(source: &Path) -> Memory {
        let before = HELD.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        let plan = plan(source);
        let summary = plan.summary();
        let beside = |bytes: usize| {
            let bytes = (bytes - before) as u64;
            bytes.saturating_sub(summary.metadata.get()) / summary.entries
        };
        let (held, most) = (HELD.load(Ordering::Relaxed), MOST.load(Ordering::Relaxed));
        Memory { summary, held: beside(held), most: beside(most) }
    }

    fn entries_f64(&self) -> f64 {
        f64::from(u32::try_from(self.summary.entries).unwrap_or(u32::MAX))
    }

    fn show(&self, name: &str) {
        let Summary { entries, size, metadata, .. } = self.summary;
        println!("{name}: {entries} entries, disk of {} bytes", size.get());
        println!(
            "    metadata {} bytes; beside it a plan holds {} bytes an entry, at most {} while it is made",
            metadata.get(),
            self.held,
            self.most
        );
    }
}

fn plan(source: &Path) -> Plan {
    let mut tree = Tree::new();
    tree.add_directory(source).expect("the tree can be read");
    Plan::new(tree, &Options::default()).expect("the tree fits")
}

/// All regular files below a folder, in the order of their names.
fn regular_files(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(folder) = ahead.pop() {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => ahead.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files.sort();
    files
}

/// Copies folders, evenly picked and each with all of its files, until there is enough.
fn copy_some(from: &Path, to: &Path) {
    let mut folders: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    let files = regular_files(from);
    let stride = (files.len() / FILES).max(1);
    for file in files {
        let folder = file.parent().expect("it has a folder").to_owned();
        folders.entry(folder).or_default().push(file);
    }
    let (mut count, mut bytes) = (0, 0);
    for file in folders.values().step_by(stride).flatten() {
        let Ok(relative) = file.strip_prefix(from) else { continue };
        let len = file.metadata().map_or(0, |meta| meta.len());
        if count == FILES || len > LARGEST || bytes + len > BYTES {
            continue;
        }
        let copy = to.join(relative);
        fs::create_dir_all(copy.parent().expect("it has a folder")).expect("a folder can be made");
        if fs::copy(file, &copy).is_ok() {
            (count, bytes) = (count + 1, bytes + len);
        }
    }
}

fn measure(act: impl FnOnce()) -> Took {
    let (wall, cpu) = (Instant::now(), processor_time());
    act();
    (wall.elapsed(), processor_time().saturating_sub(cpu))
}

fn measure_child(command: &mut Command) -> Took {
    let (wall, cpu) = (Instant::now(), children_time());
    let status = command.status().expect("coreutils and e2fsprogs are there");
    assert!(status.success(), "{command:?}: {status}");
    (wall.elapsed(), children_time().saturating_sub(cpu))
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("processor time is positive")
}

/// Of children that were waited for: the 16th and 17th field, in hundredths of a second.
fn children_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("/proc is there");
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(13).take(2);
    Duration::from_millis(ticks.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10)
}
