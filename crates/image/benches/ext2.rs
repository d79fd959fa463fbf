//! How long a root disk takes: planned, and written, beside a plain `cat` of the same files into one
//! and `mke2fs -d`, in turns, while the files are in the page cache.
//!
//! The tree is `KILN_BENCH_TREE`, else a copy of some 5,000 files of `/usr`; `KILN_BENCH_ROUNDS` says how often.
//! Processor time is user and system; that of other programs is counted in hundredths of a second, so it is
//! summed over all rounds.

#![expect(clippy::print_stdout, reason = "figures are what a benchmark is for")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kiln_image::ext2::{Options, Plan, Tree};
use rustix::time::{ClockId, clock_gettime};

const FILES: usize = 5000;
const BYTES: u64 = 230 << 20;
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
    walls: Vec<Duration>,
    cpu: Duration,
}

impl Cost {
    fn wall(&self) -> Duration {
        let mut walls = self.walls.clone();
        walls.sort();
        walls[walls.len() / 2]
    }

    /// Of one round.
    fn cpu(&self) -> Duration {
        self.cpu / u32::try_from(self.walls.len()).unwrap_or(u32::MAX).max(1)
    }

    fn best(&self) -> Duration {
        self.walls.iter().copied().min().unwrap_or_default()
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

    let held = HELD.load(Ordering::Relaxed);
    MOST.store(held, Ordering::Relaxed);
    let first = plan(&source);
    let (most, now) = (MOST.load(Ordering::Relaxed) - held, HELD.load(Ordering::Relaxed) - held);
    let summary = first.summary();
    drop(first);
    let entries = u32::try_from(summary.entries).unwrap_or(u32::MAX);
    let metadata = usize::try_from(summary.metadata.get()).unwrap_or(usize::MAX);
    let beside = |bytes: usize| bytes.saturating_sub(metadata) / summary.entries.max(1) as usize;
    println!("tree: {entries} entries, disk of {} bytes", summary.size.get());
    println!(
        "metadata: {metadata} bytes; a plan holds {} bytes an entry beside it, and",
        beside(now)
    );
    println!("while it is made {} at most", beside(most));

    let out = folder.path().join("out");
    let larger = (summary.size.get() / 1024 * 5 / 4 + (64 << 10)).to_string();
    let ways: [(&str, &dyn Fn() -> Took); 4] = [
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
    ];
    let mut costs = [(); 4].map(|()| Cost::default());
    // The first round fills caches. Each way is taken twice in a row, and the second time counts: a virtual
    // machine may have given memory back to its host that the first one then fetches page by page.
    for round in 0..=rounds {
        for (cost, (_, way)) in costs.iter_mut().zip(&ways) {
            way();
            drop(fs::remove_file(&out));
            let (wall, cpu) = way();
            drop(fs::remove_file(&out));
            if round > 0 {
                cost.walls.push(wall);
                cost.cpu += cpu;
            }
        }
    }
    for ((name, _), cost) in ways.iter().zip(&costs) {
        cost.show(name);
    }
    let [planned, written, cat, mke2fs] = &costs;

    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    let to_cat = (ratio(written.wall(), cat.wall()), ratio(written.cpu(), cat.cpu()));
    let to_mke2fs = (ratio(written.wall(), mke2fs.wall()), ratio(written.cpu(), mke2fs.cpu()));
    println!("write / cat              wall {:.2}  cpu {:.2}", to_cat.0, to_cat.1);
    println!("write / mke2fs -d        wall {:.2}  cpu {:.2}", to_mke2fs.0, to_mke2fs.1);
    // 0.1 s for 5,500 entries, 1 s for 100,000.
    let plan_bar = Duration::from_millis(50) + Duration::from_micros(10) * entries;
    let bars = [
        ("writing takes at most 1.15 times the processor time of cat", to_cat.1 <= 1.15),
        ("writing takes at most 1.15 times as long as cat", to_cat.0 <= 1.15),
        ("writing takes at most 0.5 times the processor time of mke2fs -d", to_mke2fs.1 <= 0.5),
        ("writing takes at most 0.5 times as long as mke2fs -d", to_mke2fs.0 <= 0.5),
        ("planning takes at most 50 ms and 10 us an entry", planned.cpu() <= plan_bar),
        ("a plan holds less than 200 bytes an entry beside metadata", beside(now) < 200),
        ("while it is made, too", beside(most) < 200),
    ];
    for (bar, reached) in bars {
        println!("{} {bar}", if reached { "ok  " } else { "MISS" });
    }
    if bars.iter().all(|(_, reached)| *reached) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
