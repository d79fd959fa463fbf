//! How long an image takes: the content of `simple-example`, built while everything it needs is in the
//! page cache, and found again. The limit is a plain copy of the same files into one. Then a root disk of 5,500
//! entries: resolved and planned, and found again.
//!
//! Processor time is this process's, user and system. Needs a kernel: `KILN_BENCH_KERNEL` or
//! `KILN_TEST_KERNEL` names one by release or path.

#![expect(clippy::print_stdout, reason = "figures are what a benchmark is for")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kiln_block::ByteLen;
use kiln_image::cache::{Form, GuestExecutable, ImageRequest, ImageStore};
use kiln_image::inventory::{Content, Node};
use kiln_image::kernel::{self, Host, KernelCache};
use kiln_image::manifest::{ManifestSource, Part};
use rustix::time::{ClockId, clock_gettime};

const BUILDS: usize = 20;
const HITS: usize = 50;
const BUILD_CPU_BAR: Duration = Duration::from_millis(100);
const HIT_WALL_BAR: Duration = Duration::from_millis(20);
const ROOT_HIT_WALL_BAR: Duration = Duration::from_millis(10);

#[derive(Clone, Copy)]
struct Cost {
    wall: Duration,
    cpu: Duration,
}

fn main() -> ExitCode {
    let wanted = ["KILN_BENCH_KERNEL", "KILN_TEST_KERNEL"].map(|name| std::env::var(name).ok());
    let wanted = wanted.into_iter().flatten().next().expect("no kernel: run `make kernel`");
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let fetched = variable("KILN_HOME")
        .map(|home| home.join("cache"))
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("kiln")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/kiln")))
        .unwrap_or_default();
    let kernel = kernel::find(Some(&wanted), &Host::this(), &KernelCache::new(fetched))
        .unwrap_or_else(|error| panic!("{error}"));

    // On the file system of the build, which is where caches are, too: /tmp may be memory.
    let target = std::env::current_exe().expect("a program knows where it is");
    let folder = tempfile::tempdir_in(target.parent().expect("it lies in a folder"))
        .expect("the build folder can be written");
    let request = ImageRequest::new(
        ManifestSource::shipped("simple-example").expect("it ships"),
        kernel,
        KernelCache::new(folder.path().join("kernels")),
        GuestExecutable::File(target),
    );

    let build = |name: &str| {
        let store = ImageStore::open(&folder.path().join(name)).expect("a store can be made");
        measure(|| store.get_or_build(&request).unwrap_or_else(|error| panic!("{error}")))
    };
    let (first, _) = build("first");
    let (second, _) = build("second");
    assert!(!first.cached && !second.cached);
    let same = std::fs::read(&first.path).ok() == std::fs::read(&second.path).ok();
    let inventory = request.inventory().expect("it was just resolved");
    println!("content: {} entries, {} bytes", inventory.len(), first.bytes);

    let sources: Vec<&Path> = inventory
        .entries()
        .filter_map(|(_, entry)| match &entry.node {
            Node::File(Content::Host { path, .. }) => Some(path.as_path()),
            _ => None,
        })
        .collect();
    let (mut builds, mut limits) = (Vec::new(), Vec::new());
    for round in 0..BUILDS {
        let (image, cost) = build(&format!("round-{round}"));
        builds.push(cost);
        drop(image);
        std::fs::remove_dir_all(folder.path().join(format!("round-{round}"))).expect("it is ours");
        limits.push(measure(|| concatenate(&sources, &folder.path().join("limit"))).1);
    }
    let store = ImageStore::open(&folder.path().join("first")).expect("it is there");
    let hits: Vec<Cost> = (0..HITS)
        .map(|_| {
            let (image, cost) = measure(|| store.get_or_build(&request).expect("it was built"));
            assert!(image.cached);
            cost
        })
        .collect();

    let (root_builds, root_hits) = root_disk(&request, folder.path());

    let (build, limit, hit) = (median(&builds), median(&limits), median(&hits));
    let show = |name: &str, cost: Cost| {
        println!("{name:<28} wall {:>9.3?}  cpu {:>9.3?}", cost.wall, cost.cpu);
    };
    show("warm build", build);
    show("limit: copy the same files", limit);
    show("cache hit", hit);
    show("root disk, resolved, planned", median(&root_builds));
    let root_hit = faster_half(&root_hits);
    show("root disk, cache hit", median(&root_hits));
    show("    the faster half", root_hit);
    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    println!("build / limit                cpu  {:.2}", ratio(build.cpu, limit.cpu));
    println!("hit / build                  wall {:.3}", ratio(hit.wall, build.wall));
    let bars = [
        ("two builds are byte-identical", same),
        ("warm build takes at most 100 ms of processor time", build.cpu <= BUILD_CPU_BAR),
        ("cache hit takes at most 20 ms", hit.wall <= HIT_WALL_BAR),
        ("a root disk is found in at most 10 ms", root_hit.wall <= ROOT_HIT_WALL_BAR),
    ];
    for (bar, reached) in bars {
        println!("{} {bar}", if reached { "ok  " } else { "MISS" });
    }
    if bars.iter().all(|(_, reached)| *reached) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a root disk of 5,500 entries costs to make and to find.
fn root_disk(like: &ImageRequest, folder: &Path) -> (Vec<Cost>, Vec<Cost>) {
    let tree = folder.join("tree");
    for number in 0..500 {
        let inside = tree.join(number.to_string());
        std::fs::create_dir_all(&inside).expect("a folder can be made");
        for file in 0..10 {
            std::fs::write(inside.join(file.to_string()), [b'x'; 5000]).expect("a file can be");
        }
    }
    let manifest = ManifestSource {
        name: "tree.toml".to_owned(),
        text: format!("trees = [{{ path = \"/srv\", source = {tree:?} }}]"),
        folder: Some(folder.to_owned()),
        part: Part::Whole,
    };
    let request = ImageRequest { manifest, ..like.clone() };
    let request = request.as_form(Form::Root { free: ByteLen::new(0) });
    let get = |name: &str| {
        let store = ImageStore::open(&folder.join(name)).expect("a store can be made");
        measure(|| store.get_or_build(&request).unwrap_or_else(|error| panic!("{error}")))
    };
    let builds = (0..BUILDS).map(|round| get(&format!("root-{round}")).1).collect();
    let hits = (0..HITS).map(|_| get("root-0")).map(|(image, cost)| {
        assert!(image.cached && image.disk.is_some());
        cost
    });
    (builds, hits.collect())
}

fn concatenate(sources: &[&Path], to: &Path) {
    let mut out = File::create(to).expect("the limit's file can be made");
    let mut buffer = vec![0; 128 << 10];
    for source in sources {
        let mut file = File::open(source).expect("a source can be opened");
        loop {
            let count = file.read(&mut buffer).expect("a source can be read");
            if count == 0 {
                break;
            }
            out.write_all(&buffer[..count]).expect("the limit's file can be written");
        }
    }
    out.sync_data().expect("the limit's file can be synced");
}

fn measure<T>(act: impl FnOnce() -> T) -> (T, Cost) {
    let (wall, cpu) = (Instant::now(), processor_time());
    let result = act();
    (result, Cost { wall: wall.elapsed(), cpu: processor_time().saturating_sub(cpu) })
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("processor time is positive")
}

/// Of one round, among the faster half of them: a slow one tells what else the machine does.
fn faster_half(costs: &[Cost]) -> Cost {
    let mean = |of: fn(&Cost) -> Duration| {
        let mut all: Vec<Duration> = costs.iter().map(of).collect();
        all.sort();
        all.truncate(all.len().div_ceil(2));
        all.iter().sum::<Duration>() / u32::try_from(all.len()).unwrap_or(u32::MAX).max(1)
    };
    Cost { wall: mean(|cost| cost.wall), cpu: mean(|cost| cost.cpu) }
}

fn median(costs: &[Cost]) -> Cost {
    let middle = |of: fn(&Cost) -> Duration| {
        let mut all: Vec<Duration> = costs.iter().map(of).collect();
        all.sort();
        all[all.len() / 2]
    };
    Cost { wall: middle(|cost| cost.wall), cpu: middle(|cost| cost.cpu) }
}
