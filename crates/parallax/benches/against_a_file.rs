//! What a pool's disk costs beside a raw file: `cargo bench -p kiln-parallax`.
//!
//! Both do the same, in turns, best of five; writes end with a flush. What counts is the CPU time of an operation: wall time also tells
//! how busy the machine is. Arguments that do not start with `-` choose rows by a part of their name;
//! `KILN_BENCH_DIR` says on which filesystem.
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]

use std::time::{Duration, Instant};

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, FileDevice};
use kiln_parallax::{DiskOptions, Pool, PoolOptions};

const DISK: u64 = 512 << 20;
const ROUNDS: usize = 5;

/// CPU and wall time.
#[derive(Clone, Copy)]
struct Cost {
    cpu: Duration,
    wall: Duration,
}

fn cpu_now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(now.tv_sec).unwrap(), u32::try_from(now.tv_nsec).unwrap())
}

fn cost(work: &mut dyn FnMut()) -> Cost {
    let (cpu, wall) = (cpu_now(), Instant::now());
    work();
    Cost { cpu: cpu_now() - cpu, wall: wall.elapsed() }
}

fn best(costs: &[Cost]) -> Cost {
    Cost {
        cpu: costs.iter().map(|cost| cost.cpu).min().unwrap(),
        wall: costs.iter().map(|cost| cost.wall).min().unwrap(),
    }
}

fn micros(time: Duration, ops: u32) -> f64 {
    time.as_secs_f64() * 1e6 / f64::from(ops)
}

/// Prints a row, if it was asked for.
fn row(name: &str, ops: u32, pool: &mut dyn FnMut(usize), file: &mut dyn FnMut(usize)) {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
        return;
    }
    let (mut pools, mut files) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        files.push(cost(&mut || file(round)));
        pools.push(cost(&mut || pool(round)));
    }
    let (pool, file) = (best(&pools), best(&files));
    println!(
        "{name:32} {:9.2} {:9.2} {:6.2} {:9.2} {:9.2} {:6.2}",
        micros(pool.cpu, ops),
        micros(file.cpu, ops),
        pool.cpu.as_secs_f64() / file.cpu.as_secs_f64(),
        micros(pool.wall, ops),
        micros(file.wall, ops),
        pool.wall.as_secs_f64() / file.wall.as_secs_f64(),
    );
}

fn at_random(dice: &mut Dice) -> ByteOffset {
    ByteOffset::new(dice.below(DISK / 4096) * 4096)
}

fn random(disk: &dyn BlockDevice, ops: u32, round: usize, write: bool, flush: bool) {
    let mut dice = Dice::seeded(round as u64 + 9);
    let mut buffer = vec![0x5a; 4096];
    for _ in 0..ops {
        let at = at_random(&mut dice);
        if write {
            disk.write_at(at, &buffer).unwrap();
        } else {
            disk.read_at(at, &mut buffer).unwrap();
        }
        if flush {
            disk.flush().unwrap();
        }
    }
    if write {
        disk.flush().unwrap();
    }
}

fn sequential(disk: &dyn BlockDevice, write: bool) {
    let mut buffer = vec![0xa5; 65536];
    for at in (0..DISK).step_by(65536) {
        if write {
            disk.write_at(ByteOffset::new(at), &buffer).unwrap();
        } else {
            disk.read_at(ByteOffset::new(at), &mut buffer).unwrap();
        }
    }
    if write {
        disk.flush().unwrap();
    }
}

fn main() {
    let folder = match std::env::var_os("KILN_BENCH_DIR") {
        Some(path) => tempfile::tempdir_in(path).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    let file = FileDevice::create(&folder.path().join("file"), ByteLen::new(DISK)).unwrap();
    let path = folder.path().join("pool");
    let pool = Pool::create_file(&path, ByteLen::gib(8), &PoolOptions::default()).unwrap();
    pool.create_disk("disk", ByteLen::new(DISK), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("disk").unwrap();
    println!("{:32} {:>9} {:>9} {:>6} {:>9} {:>9} {:>6}", "", "CPU µs", "", "", "wall µs", "", "");
    println!(
        "{:32} {:>9} {:>9} {:>6} {:>9} {:>9} {:>6}",
        "", "pool", "file", "ratio", "pool", "file", "ratio"
    );
    let pieces = u32::try_from(DISK / 65536).unwrap();
    sequential(&file, true);
    sequential(&disk, true);
    row("sequential write 64K", pieces, &mut |_| sequential(&disk, true), &mut |_| {
        sequential(&file, true);
    });
    row("sequential read 64K", pieces, &mut |_| sequential(&disk, false), &mut |_| {
        sequential(&file, false);
    });
    row("random read 4K", 50_000, &mut |n| random(&disk, 50_000, n, false, false), &mut |n| {
        random(&file, 50_000, n, false, false);
    });
    row("random write 4K", 20_000, &mut |n| random(&disk, 20_000, n, true, false), &mut |n| {
        random(&file, 20_000, n, true, false);
    });
    let again = &mut |n| random(&disk, 50_000, n, false, false);
    row("random read 4K, scattered", 50_000, again, &mut |n| {
        random(&file, 50_000, n, false, false);
    });
    pool.checkpoint().unwrap();
    file.flush().unwrap();
    row("write 4K and flush", 300, &mut |n| random(&disk, 300, n, true, true), &mut |n| {
        random(&file, 300, n, true, true);
    });
    row(
        "first write 4K after snapshot",
        20_000,
        &mut |n| {
            pool.snapshot("disk", &format!("round-{n}")).unwrap();
            random(&disk, 20_000, n, true, false);
        },
        &mut |n| random(&file, 20_000, n, true, false),
    );
    pool.checkpoint().unwrap();
    snapshots(&pool, &disk);
}

/// Snapshots and clones are durable when they return; the last column is the slowest of a hundred.
fn snapshots(pool: &Pool, disk: &dyn BlockDevice) {
    println!("{:32} {:>9} {:>9}", "", "median µs", "p99 µs");
    let mut made = 0_u32;
    for upto in [100, 1000, 3000] {
        let mut snaps = Vec::new();
        let mut clones = Vec::new();
        while made < upto {
            let name = format!("s{made}");
            disk.write_at(ByteOffset::new(u64::from(made) * 4096), &[1; 4096]).unwrap();
            snaps.push(cost(&mut || pool.snapshot("disk", &name).unwrap()).wall);
            if made.is_multiple_of(10) {
                let clone = format!("c{made}");
                let options = DiskOptions::default();
                let work = &mut || pool.clone_disk("disk", &name, &clone, &options).unwrap();
                clones.push(cost(work).wall);
            }
            made += 1;
        }
        for (what, mut times) in [("snapshot", snaps), ("clone", clones)] {
            times.sort_unstable();
            println!(
                "{:32} {:9.0} {:9.0}",
                format!("{what}, with {upto} snapshots"),
                micros(times[times.len() / 2], 1),
                micros(times[times.len() * 99 / 100], 1),
            );
        }
    }
}
