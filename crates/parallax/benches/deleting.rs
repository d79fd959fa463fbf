//! What deleting one of many snapshots takes, and what it does to those who write meanwhile:
//! `cargo bench -p kiln-parallax --bench deleting`. `KILN_BENCH_DIR` says on which filesystem.
//!
//! One thread writes and flushes all the time. Spells in which snapshots are deleted take turns with spells as long in
//! which none is, so that both see the same machine; what is compared are all the samples of either.
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]

mod measure;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset};
use kiln_parallax::{DiskOptions, Pool, PoolOptions};

use measure::{folder, micros, percentile};

const SNAPSHOTS: u64 = 1000;
const DISK: u64 = 4 << 30;
/// Blocks that one deleted snapshot alone has, about: what is written after the one before it, and overwritten
/// before the one behind it.
const FREED: u64 = 1000;
/// Snapshots that are deleted in one spell.
const SPELL: usize = 4;
/// A spell in which nothing is deleted.
const QUIET: u64 = 0;
const DELETING: u64 = 1;
const END: u64 = 2;

fn overwrite(disk: &dyn BlockDevice, seed: u64, blocks: u64) {
    let mut dice = Dice::seeded(seed);
    for _ in 0..blocks {
        disk.write_at(ByteOffset::new(dice.below(DISK / 4096) * 4096), &[7; 4096]).unwrap();
    }
}

/// Writes and flushes at random until told to stop; how long each took that began and ended in one kind of spell.
fn write_meanwhile(disk: &dyn BlockDevice, spell: &AtomicU64) -> [Vec<Duration>; 2] {
    let mut dice = Dice::seeded(99);
    let mut times = [Vec::new(), Vec::new()];
    loop {
        let now = spell.load(Ordering::Relaxed);
        let begun = Instant::now();
        disk.write_at(ByteOffset::new(dice.below(DISK / 4096) * 4096), &[9; 4096]).unwrap();
        disk.flush().unwrap();
        let took = begun.elapsed();
        match usize::try_from(now).unwrap() {
            of @ (0 | 1) if spell.load(Ordering::Relaxed) == now => times[of].push(took),
            0 | 1 => {}
            _ => return times,
        }
    }
}

fn row(name: &str, times: &mut [Duration]) {
    let [median, late, last] = [50, 99, 100].map(|percent| percentile(times, percent));
    println!("{name:48} {median:8.0} {late:8.0} {last:8.0} {:8}", times.len());
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
    // What was written so far reaches the device now, not while something else is measured.
    std::fs::File::open(&path).unwrap().sync_all().unwrap();
    let spell = AtomicU64::new(END);
    let before = pool.stats();
    let (mut calls, mut gone) = (Vec::new(), Vec::new());
    spell.store(QUIET, Ordering::Relaxed);
    let [mut quiet, mut busy] = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_meanwhile(&disk, &spell));
        std::thread::sleep(Duration::from_millis(200));
        let all: Vec<u64> = (0..SNAPSHOTS).step_by(10).collect();
        for some in all.chunks(SPELL) {
            let begun = Instant::now();
            spell.store(DELETING, Ordering::Relaxed);
            for number in some {
                let begun = Instant::now();
                pool.delete_snapshot("a", &format!("s{number}")).unwrap();
                calls.push(begun.elapsed());
                while pool.reclaiming() > 0 {
                    // Whoever looks all the time is one more who wants a processor.
                    std::thread::sleep(Duration::from_millis(4));
                }
                gone.push(begun.elapsed());
            }
            spell.store(QUIET, Ordering::Relaxed);
            std::thread::sleep(begun.elapsed());
        }
        spell.store(END, Ordering::Relaxed);
        writer.join().unwrap()
    });
    println!("{:48} {:>8} {:>8} {:>8} {:>8}", "us", "median", "p99", "slowest", "samples");
    row("write and flush, nothing else", &mut quiet);
    row("write and flush, snapshots being deleted", &mut busy);
    row("a snapshot's deletion, the call", &mut calls);
    row("a snapshot's deletion, until its space is free", &mut gone);
    let mut ratio = |percent| percentile(&mut busy, percent) / percentile(&mut quiet, percent);
    let [median, late] = [50, 99].map(&mut ratio);
    println!("deleting against nothing else: median {median:.2}, p99 {late:.2}");
    let after = pool.stats();
    let each = |of: fn(&kiln_parallax::PoolStats) -> u64| (of(&after) - of(&before)) / 100;
    println!(
        "for each snapshot: {} blocks freed, {} checkpoints; longest standstill of maps: {:.0} us",
        each(|stats| stats.reclaimed_blocks),
        each(|stats| stats.checkpoints),
        micros(after.longest_standstill, 1)
    );
}
