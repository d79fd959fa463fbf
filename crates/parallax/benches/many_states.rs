//! What it costs to have many snapshots and clones: `cargo bench -p kiln-parallax --bench many_states`.
//!
//! Snapshots and clones are durable when they return. `KILN_BENCH_STATES` says how many snapshots the pool gets instead of 100,000.
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]

mod measure;

use std::path::Path;
use std::time::Duration;

use kiln_block::{BlockDevice, ByteLen, ByteOffset};
use kiln_parallax::{DiskOptions, Pool, PoolOptions};

use measure::{
    Act, Cost, best, cost, folder, micros, percentile, random, resident, sequential, wanted,
};

fn states() -> u64 {
    let asked = std::env::var("KILN_BENCH_STATES").ok();
    asked.map_or(100_000, |number| number.parse().unwrap())
}

fn main() {
    let folder = folder();
    if wanted("latency") {
        latency(&folder.path().join("latency"));
    }
    if wanted("reads") {
        reads(&folder.path().join("reads"));
    }
}

/// A snapshot after each write, and now and then a clone, on a disk of 100 GiB.
fn latency(path: &Path) {
    let options = PoolOptions::default();
    let pool = Pool::create_file(path, ByteLen::gib(32), &options).unwrap();
    pool.create_disk("disk", ByteLen::gib(100), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("disk").unwrap();
    let total = states();
    let mut dice = kiln_block::testing::Dice::seeded(1);
    println!("{:44} {:>9} {:>9} {:>9}", "disk of 100 GiB, µs", "median", "p99", "slowest");
    let (mut snaps, mut clones) = (Vec::<Duration>::new(), Vec::new());
    for made in 0..total {
        let name = format!("s{made}");
        let at = ByteOffset::new(dice.below(disk.size().get() / 4096) * 4096);
        disk.write_at(at, &[1; 4096]).unwrap();
        snaps.push(cost(&mut || pool.snapshot("disk", &name).unwrap()).wall);
        if made.is_multiple_of(10) {
            let (clone, options) = (format!("c{made}"), DiskOptions::default());
            let work = &mut || pool.clone_disk("disk", &name, &clone, &options).unwrap();
            clones.push(cost(work).wall);
        }
        let now = made + 1;
        if [100, 1000, 10_000, 100_000].contains(&now) || now == total {
            for (what, times) in [("snapshot", &mut snaps), ("clone", &mut clones)] {
                println!(
                    "{:44} {:9.0} {:9.0} {:9.0}",
                    format!("{what}, the last of {now} snapshots"),
                    percentile(times, 50),
                    percentile(times, 99),
                    percentile(times, 100),
                );
                times.clear();
            }
        }
    }
    // What 1,000 pairs cost that do nothing else with the same pool: the machine's own sync.
    let mut syncs = Vec::new();
    for n in 0..1000 {
        disk.write_at(ByteOffset::new(n * 4096), &[1; 4096]).unwrap();
        syncs.push(cost(&mut || disk.flush().unwrap()).wall);
    }
    println!(
        "{:44} {:9.0} {:9.0} {:9.0}",
        "beside it: a flush of one block",
        percentile(&mut syncs, 50),
        percentile(&mut syncs, 99),
        percentile(&mut syncs, 100),
    );
    pool.checkpoint().unwrap();
    drop((disk, pool));
    let before = resident();
    let mut pool = None;
    let opened = cost(&mut || pool = Some(Pool::open_file(path, &options).unwrap()));
    println!(
        "opening it: {:.0} ms, {} KiB of memory",
        opened.wall.as_secs_f64() * 1e3,
        resident().get().saturating_sub(before.get()) / 1024,
    );
    let pool = pool.unwrap();
    let mut deletes = Vec::new();
    for n in 0..200.min(total / 2) {
        let name = format!("s{}", n * 2 + 1);
        deletes.push(cost(&mut || pool.delete_snapshot("disk", &name).unwrap()).wall);
    }
    println!(
        "{:44} {:9.0} {:9.0} {:9.0}",
        format!("delete one of {total} snapshots"),
        percentile(&mut deletes, 50),
        percentile(&mut deletes, 99),
        percentile(&mut deletes, 100),
    );
}

/// The same random reads of disks that differ in how many snapshots or ancestors they have.
fn reads(path: &Path) {
    const DISK: ByteLen = ByteLen::mib(64);
    const READS: u32 = 50_000;
    let pool = Pool::create_file(path, ByteLen::gib(16), &PoolOptions::default()).unwrap();
    let options = DiskOptions::default();
    let mut disks: Vec<(String, String)> = Vec::new();
    for snapshots in [0_u64, 1, 100, 10_000] {
        let name = format!("with-{snapshots}");
        pool.create_disk(&name, DISK, &options).unwrap();
        let disk = pool.open_disk(&name).unwrap();
        sequential(&disk, Act::Write);
        for n in 0..snapshots {
            disk.write_at(ByteOffset::new(n * 4096 % DISK.get()), &[2; 4096]).unwrap();
            pool.snapshot(&name, &n.to_string()).unwrap();
        }
        disks.push((name, format!("{snapshots} snapshots")));
    }
    for depth in [1_u64, 10, 1000] {
        let mut name = format!("deep-{depth}-0");
        pool.create_disk(&name, DISK, &options).unwrap();
        sequential(&pool.open_disk(&name).unwrap(), Act::Write);
        for n in 0..depth {
            let next = format!("deep-{depth}-{}", n + 1);
            pool.snapshot(&name, "s").unwrap();
            pool.clone_disk(&name, "s", &next, &options).unwrap();
            let disk = pool.open_disk(&next).unwrap();
            disk.write_at(ByteOffset::new(n * 4096), &[3; 4096]).unwrap();
            name = next;
        }
        disks.push((name, format!("{depth} ancestors")));
    }
    pool.checkpoint().unwrap();
    let open: Vec<_> = disks.iter().map(|(name, _)| pool.open_disk(name).unwrap()).collect();
    let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); disks.len()];
    for round in 0..11 {
        for (disk, costs) in open.iter().zip(&mut costs) {
            costs.push(cost(&mut || random(disk, READS, round, Act::Read)));
        }
    }
    println!("\n{:44} {:>9} {:>9}", "4 KiB at random, CPU µs", "", "ratio");
    let base = best(&costs[0]).cpu;
    for ((_, what), costs) in disks.iter().zip(&costs) {
        let cpu = best(costs).cpu;
        let ratio = cpu.as_secs_f64() / base.as_secs_f64();
        println!("{what:44} {:9.3} {ratio:9.3}", micros(cpu, READS));
    }
}
