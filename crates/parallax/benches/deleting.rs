//! What deleting one of many snapshots takes, and what it does to those who write meanwhile:
//! `cargo bench -p kiln-parallax --bench deleting`. `KILN_BENCH_DIR` says on which filesystem.
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]

mod measure;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset};
use kiln_parallax::{DiskOptions, Pool, PoolOptions};

use measure::{folder, micros, percentile};

const SNAPSHOTS: u64 = 1000;
const DISK: u64 = 4 << 30;
/// Blocks that one deleted snapshot alone has.
const FREED: u64 = 1000;

fn overwrite(disk: &dyn BlockDevice, seed: u64, blocks: u64) {
    let mut dice = Dice::seeded(seed);
    for _ in 0..blocks {
        disk.write_at(ByteOffset::new(dice.below(DISK / 4096) * 4096), &[7; 4096]).unwrap();
    }
}

/// Writes and flushes at random until told to stop; how long each took.
fn write_meanwhile(disk: &dyn BlockDevice, stop: &AtomicBool) -> Vec<Duration> {
    let mut dice = Dice::seeded(99);
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        disk.write_at(ByteOffset::new(dice.below(DISK / 4096) * 4096), &[9; 4096]).unwrap();
        disk.flush().unwrap();
        times.push(begun.elapsed());
    }
    times
}

fn row(name: &str, times: &mut [Duration]) {
    let (median, late) = (percentile(times, 50), percentile(times, 99));
    println!("{name:44} {median:10.0} us {late:10.0} us {:8}", times.len());
}

fn main() {
    let folder = folder();
    let path = folder.path().join("pool");
    let pool = Pool::create_file(&path, ByteLen::gib(64), &PoolOptions::default()).unwrap();
    pool.create_disk("a", ByteLen::new(DISK), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("a").unwrap();
    for number in 0..SNAPSHOTS {
        // Every tenth has what the next one overwrites.
        let alone = number % 10 == 0 || number % 10 == 1;
        overwrite(&disk, number / 10 * 10, if alone { FREED } else { 10 });
        pool.snapshot("a", &format!("s{number}")).unwrap();
    }
    pool.checkpoint().unwrap();
    let stop = AtomicBool::new(false);
    println!("{:44} {:>13} {:>13} {:>8}", "", "median", "p99", "samples");
    let mut quiet = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_meanwhile(&disk, &stop));
        std::thread::sleep(Duration::from_secs(2));
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    row("write and flush, nothing else", &mut quiet);
    stop.store(false, Ordering::Relaxed);
    let before = pool.stats();
    let (mut calls, mut gone) = (Vec::new(), Vec::new());
    let mut busy = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_meanwhile(&disk, &stop));
        for number in (0..SNAPSHOTS).step_by(10) {
            let begun = Instant::now();
            pool.delete_snapshot("a", &format!("s{number}")).unwrap();
            calls.push(begun.elapsed());
            while pool.stats().reclaiming > 0 {
                std::thread::sleep(Duration::from_micros(200));
            }
            gone.push(begun.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    row("write and flush, snapshots being deleted", &mut busy);
    row("a snapshot's deletion, the call", &mut calls);
    row("a snapshot's deletion, until its space is free", &mut gone);
    let after = pool.stats();
    let freed = (after.reclaimed_blocks - before.reclaimed_blocks) / gone.len() as u64;
    let longest = micros(after.longest_standstill, 1);
    println!("blocks freed by each: {freed}; longest standstill of maps: {longest:.0} us");
}
