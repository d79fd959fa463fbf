//! What it costs to bring a disk in and out, beside `cp --sparse=always` of the same file and `qemu-img convert`, which
//! is asked to read and write qcow2: `cargo bench -p kiln-store --bench import`.
//!
//! An image of 4 GiB, half of it holes and some of it zeros that take space. All do it in turns, best of five. `cp` and
//! `qemu-img` leave what they wrote to the page cache, an import does not: a second row of `cp` syncs. CPU is this
//! process's or the child's. `KILN_BENCH_DIR` says on which filesystem, `KILN_BENCH_MIB` how large the image is.
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiln_block::ByteLen;
use kiln_block::testing::Dice;
use kiln_parallax::{Pool, PoolOptions};
use kiln_store::{Compression, Format, Reply, Request, Stop, operate};

const ROUNDS: usize = 5;
const MIB: u64 = 1 << 20;

/// CPU time of this process, and of the children that ended.
fn cpu_now() -> (Duration, Duration) {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks = |field: usize| fields[field].parse::<u64>().unwrap();
    let time = |ticks: u64| Duration::from_millis(ticks * 10);
    (time(ticks(11) + ticks(12)), time(ticks(13) + ticks(14)))
}

fn measured(work: &mut dyn FnMut()) -> (f64, f64) {
    let (before, start) = (cpu_now(), Instant::now());
    work();
    let (wall, after) = (start.elapsed(), cpu_now());
    (wall.as_secs_f64(), (after.0 - before.0 + after.1 - before.1).as_secs_f64())
}

/// Half holes; of the rest, a sixteenth zeros that take space.
fn make_image(path: &Path, size: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let mut dice = Dice::seeded(1);
    let mut bytes = vec![0; 1 << 20];
    for at in (0..size).step_by(bytes.len()).filter(|at| (at / (32 * MIB)).is_multiple_of(2)) {
        match dice.below(16) {
            0 => bytes.fill(0),
            _ => dice.fill(&mut bytes),
        }
        file.write_all_at(&bytes, at).unwrap();
    }
    file.sync_all().unwrap();
}

fn run(program: &str, arguments: &[&Path]) {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{program}");
}

fn ask(pool: &Pool, request: Request, file: Option<File>) -> Reply {
    let files = file.map(Into::into).into_iter().collect();
    operate(pool, request, files, &mut |_| {}, &Stop::new()).unwrap()
}

fn import(pool: &Pool, path: &Path) {
    let request = Request::Import {
        name: "disk".into(),
        format: None,
        file: "image".into(),
        backing: Vec::new(),
        snapshot: None,
    };
    ask(pool, request, Some(File::open(path).unwrap()));
}

fn export(pool: &Pool, path: &Path, format: Format, compress: Option<Compression>) {
    let request =
        Request::Export { name: "disk".into(), format, file: "out".into(), compress, pipe: false };
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
    ask(pool, request, Some(file.unwrap()));
}

struct Row<'a> {
    name: &'static str,
    prepare: Box<dyn FnMut() + 'a>,
    work: Box<dyn FnMut() + 'a>,
    costs: Vec<(f64, f64)>,
}

fn main() {
    let folder = match std::env::var_os("KILN_BENCH_DIR") {
        Some(path) => tempfile::tempdir_in(PathBuf::from(path)).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    let at = |name: &str| folder.path().join(name);
    let size = std::env::var("KILN_BENCH_MIB").map_or(4096, |text| text.parse().unwrap()) * MIB;
    let (image, copy, out) = (at("image"), at("copy"), at("out"));
    make_image(&image, size);
    run(
        "qemu-img",
        &[
            "convert".as_ref(),
            "-f".as_ref(),
            "raw".as_ref(),
            "-O".as_ref(),
            "qcow2".as_ref(),
            &image,
            &at("image.qcow2"),
        ],
    );
    let pool = RefCell::new(None);
    // Each starts with an empty pool and no copy: no space that is known already, nothing left for the kernel to write.
    let remove = || {
        for path in [&copy, &out, &at("pool")] {
            let _ = std::fs::remove_file(path);
        }
        let made = Pool::create_file(&at("pool"), ByteLen::new(size * 3), &PoolOptions::default());
        *pool.borrow_mut() = Some(made.unwrap());
        rustix::fs::sync();
    };
    let with = |work: &dyn Fn(&Pool)| work(pool.borrow().as_ref().unwrap());
    let fill = || {
        remove();
        with(&|pool| import(pool, &image));
    };
    let qcow2 = at("image.qcow2");
    let row = |name, prepare: Box<dyn FnMut()>, work: Box<dyn FnMut()>| Row {
        name,
        prepare,
        work,
        costs: Vec::new(),
    };
    let cp = || run("cp", &["--sparse=always".as_ref(), &image, &copy]);
    let convert = |from: &str, to: &str, source: &Path| {
        let words: [&Path; 7] = [
            "convert".as_ref(),
            "-f".as_ref(),
            from.as_ref(),
            "-O".as_ref(),
            to.as_ref(),
            source,
            &out,
        ];
        run("qemu-img", &words);
    };
    let mut rows = vec![
        row("cp --sparse=always", Box::new(remove), Box::new(cp)),
        row(
            "cp --sparse=always, and sync",
            Box::new(remove),
            Box::new(|| {
                cp();
                File::open(&copy).unwrap().sync_data().unwrap();
            }),
        ),
        row("import of raw", Box::new(remove), Box::new(|| with(&|pool| import(pool, &image)))),
        row(
            "qemu-img convert qcow2 to raw",
            Box::new(remove),
            Box::new(|| {
                convert("qcow2", "raw", &qcow2);
            }),
        ),
        row("import of qcow2", Box::new(remove), Box::new(|| with(&|pool| import(pool, &qcow2)))),
        row(
            "export to raw",
            Box::new(fill),
            Box::new(|| with(&|pool| export(pool, &out, Format::Raw, None))),
        ),
        row(
            "qemu-img convert raw to qcow2",
            Box::new(remove),
            Box::new(|| {
                convert("raw", "qcow2", &image);
            }),
        ),
        row(
            "export to qcow2",
            Box::new(fill),
            Box::new(|| {
                with(&|pool| export(pool, &out, Format::Qcow2, None));
            }),
        ),
        row(
            "export to qcow2, zstd",
            Box::new(fill),
            Box::new(|| {
                with(&|pool| export(pool, &out, Format::Qcow2, Some(Compression::Zstd)));
            }),
        ),
    ];
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    rows.retain(|row| {
        asked.is_empty() || asked.iter().any(|part| row.name.contains(part.as_str()))
    });
    for _ in 0..ROUNDS {
        for row in &mut rows {
            (row.prepare)();
            row.costs.push(measured(&mut row.work));
        }
    }
    println!("{:32} {:>8} {:>8} {:>10}", "", "wall s", "CPU s", "to cp");
    let best = |row: &Row<'_>, of: fn(&(f64, f64)) -> f64| {
        row.costs.iter().map(of).fold(f64::INFINITY, f64::min)
    };
    let first = rows.first().map_or(1.0, |row| best(row, |cost| cost.0));
    for row in &rows {
        let (wall, cpu) = (best(row, |cost| cost.0), best(row, |cost| cost.1));
        // How fast, as a share of the first row.
        println!("{:32} {wall:8.2} {cpu:8.2} {:10.2}", row.name, first / wall);
    }
}
