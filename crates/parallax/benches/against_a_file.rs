//! What a pool's disk costs beside a raw file: `cargo bench -p kiln-parallax --bench against_a_file`.
//!
//! Both do the same, in turns, best of five; writes end with a flush. What counts is the CPU time of an operation: wall time also tells
//! how busy the machine is. Arguments that do not start with `-` choose rows by a part of their name;
//! `KILN_BENCH_DIR` says on which filesystem.
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]

mod measure;

use kiln_block::{BlockDevice, ByteLen, FileDevice};
use kiln_parallax::{DiskOptions, Pool, PoolOptions};

use measure::{Act, best, bytes_written, cost, folder, micros, random, sequential, wanted};

const DISK: ByteLen = ByteLen::mib(512);
const ROUNDS: usize = 5;

/// Prints a row, if it was asked for: the second against the first.
fn row(name: &str, ops: u32, pool: &mut dyn FnMut(u64), file: &mut dyn FnMut(u64)) {
    if !wanted(name) {
        return;
    }
    let (mut pools, mut files) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS as u64 {
        files.push(cost(&mut || file(round)));
        pools.push(cost(&mut || pool(round)));
    }
    let (pool, file) = (best(&pools), best(&files));
    println!(
        "{name:40} {:9.2} {:9.2} {:6.2} {:9.2} {:9.2} {:6.2}",
        micros(pool.cpu, ops),
        micros(file.cpu, ops),
        pool.cpu.as_secs_f64() / file.cpu.as_secs_f64(),
        micros(pool.wall, ops),
        micros(file.wall, ops),
        pool.wall.as_secs_f64() / file.wall.as_secs_f64(),
    );
}

fn heading(a: &str, b: &str) {
    println!(
        "\n{:40} {:>9} {:>9} {:>6} {:>9} {:>9} {:>6}",
        "", "CPU µs", "", "", "wall µs", "", ""
    );
    println!("{:40} {a:>9} {b:>9} {:>6} {a:>9} {b:>9} {:>6}", "", "ratio", "ratio");
}

fn main() {
    let folder = folder();
    let file = FileDevice::create(&folder.path().join("file"), DISK).unwrap();
    let path = folder.path().join("pool");
    let pool = Pool::create_file(&path, ByteLen::gib(8), &PoolOptions::default()).unwrap();
    pool.create_disk("disk", DISK, &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("disk").unwrap();
    heading("pool", "file");
    let pieces = u32::try_from(DISK.get() / 65536).unwrap();
    for _ in 0..2 {
        sequential(&file, Act::Write);
        sequential(&disk, Act::Write);
    }
    row("sequential read 64K", pieces, &mut |_| sequential(&disk, Act::Read), &mut |_| {
        sequential(&file, Act::Read);
    });
    row("sequential write 64K", pieces, &mut |_| sequential(&disk, Act::Write), &mut |_| {
        sequential(&file, Act::Write);
    });
    for (name, act, ops) in [
        ("random read 4K", Act::Read, 50_000),
        ("random write 4K", Act::Write, 20_000),
        ("random read 4K, scattered", Act::Read, 50_000),
    ] {
        row(name, ops, &mut |n| random(&disk, ops, n, act), &mut |n| random(&file, ops, n, act));
    }
    pool.checkpoint().unwrap();
    file.flush().unwrap();
    let act = Act::WriteAndFlush;
    row("write 4K and flush", 300, &mut |n| random(&disk, 300, n, act), &mut |n| {
        random(&file, 300, n, act);
    });
    drop((disk, pool));
    after_a_snapshot(&folder.path().join("snapshots"));
}

/// The first write after a snapshot beside the same disk without one, and what each writes to the pool, with the
/// checkpoint that puts it in its place.
fn after_a_snapshot(path: &std::path::Path) {
    const WRITES: u32 = 20_000;
    let name = "first write 4K after a snapshot";
    if !wanted(name) {
        return;
    }
    let pool = Pool::create_file(path, ByteLen::gib(8), &PoolOptions::default()).unwrap();
    for name in ["plain", "kept"] {
        pool.create_disk(name, DISK, &DiskOptions::default()).unwrap();
        sequential(&pool.open_disk(name).unwrap(), Act::Write);
    }
    let (plain, kept) = (pool.open_disk("plain").unwrap(), pool.open_disk("kept").unwrap());
    pool.checkpoint().unwrap();
    heading("after", "without");
    row(
        name,
        WRITES,
        &mut |n| {
            pool.snapshot("kept", &format!("round-{n}")).unwrap();
            random(&kept, WRITES, n, Act::Write);
        },
        &mut |n| random(&plain, WRITES, n, Act::Write),
    );
    pool.snapshot("kept", "last").unwrap();
    pool.checkpoint().unwrap();
    let before = bytes_written();
    random(&kept, WRITES, 99, Act::Write);
    let flushed = bytes_written() - before;
    pool.checkpoint().unwrap();
    let all = bytes_written() - before;
    let data = f64::from(WRITES) * 4096.0;
    let journal = flushed as f64 - data;
    println!(
        "bytes written to the pool, of the data's: {:.3}, with the journal {:.3}",
        (all as f64 - journal) / data,
        all as f64 / data,
    );
}
