//! What goes on beside reads and writes: a thread that checkpoints, grows and gives back space.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice};
use kiln_parallax::{DiskOptions, Pool, PoolOptions};

use crate::world::{rounds, small};

fn busy() -> PoolOptions {
    PoolOptions { background: true, limit: ByteLen::mib(64), ..small() }
}

#[test]
fn what_is_deleted_is_given_back_though_nobody_asks() {
    let pool = Pool::create(Arc::new(MemoryDevice::new(ByteLen::mib(32))), &busy()).unwrap();
    pool.create_disk("a", ByteLen::mib(16), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("a").unwrap();
    let mut before = None;
    for round in 0..4_u8 {
        disk.write_at(ByteOffset::ZERO, &vec![round; 4 << 20]).unwrap();
        pool.snapshot("a", &format!("s{round}")).unwrap();
        before = before.or(Some(pool.space().used));
    }
    for round in 0..3 {
        pool.delete_snapshot("a", &format!("s{round}")).unwrap();
    }
    while pool.stats().reclaiming > 0 {
        std::thread::yield_now();
    }
    assert!(pool.stats().reclaimed_blocks >= 3 << 10);
    assert!(pool.verify(true).unwrap().is_clean());
    let used = pool.space().used;
    assert!(used.get() < before.unwrap().get() + (1 << 20), "{used} are used");
}

#[test]
fn the_worker_has_ended_when_the_last_user_of_the_pool_is_gone() {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(32)));
    let pool = Pool::create(device.clone(), &busy()).unwrap();
    pool.create_disk("a", ByteLen::mib(16), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("a").unwrap();
    let again = pool.clone();
    drop(pool);
    drop(again);
    // A disk is a user, too.
    for round in 0..50_u64 {
        disk.write_at(ByteOffset::new(round << 18), &vec![1; 1 << 18]).unwrap();
    }
    assert!(Arc::strong_count(&device) > 1);
    drop(disk);
    assert_eq!(Arc::strong_count(&device), 1, "nothing holds the device any more");
}

const WRITERS: u64 = 3;
const BLOCKS: u64 = 2048;

/// Writes numbered blocks and flushes; says what each block holds in the end.
fn write(pool: &Pool, writer: u64, count: u64) -> Vec<u64> {
    let disk = pool.open_disk(&format!("d{writer}")).unwrap();
    let mut dice = Dice::seeded(writer + 3);
    let mut holds = vec![0; usize::try_from(BLOCKS).unwrap()];
    for number in 1..=count {
        let (block, len) = (dice.below(BLOCKS - 8), 1 + dice.below(8));
        let bytes: Vec<u8> = (0..len * 512).flat_map(|_| number.to_le_bytes()).collect();
        disk.write_at(ByteOffset::new(block * 4096), &bytes).unwrap();
        for place in block..block + len {
            holds[usize::try_from(place).unwrap()] = number;
        }
        if number.is_multiple_of(16) {
            disk.flush().unwrap();
        }
    }
    disk.flush().unwrap();
    holds
}

fn check(pool: &Pool, writer: u64, holds: &[u64]) {
    let disk = pool.open_disk(&format!("d{writer}")).unwrap();
    let mut bytes = [0; 4096];
    for (block, number) in (0_u64..).zip(holds) {
        disk.read_at(ByteOffset::new(block * 4096), &mut bytes).unwrap();
        let whole = bytes.chunks(8).all(|word| word == number.to_le_bytes());
        assert!(whole, "disk {writer}, block {block} is not {number}");
    }
}

#[test]
fn disks_that_are_written_snapshotted_cloned_verified_and_reclaimed_at_once_hold_what_they_should()
{
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(48)));
    let pool = Pool::create(device.clone(), &busy()).unwrap();
    for writer in 0..WRITERS {
        let name = format!("d{writer}");
        pool.create_disk(&name, ByteLen::new(BLOCKS * 4096), &DiskOptions::default()).unwrap();
    }
    let done = AtomicBool::new(false);
    let count = rounds(600, 12_000);
    let holds = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let pool = pool.clone();
                scope.spawn(move || write(&pool, writer, count))
            })
            .collect();
        let (pool, done) = (&pool, &done);
        scope.spawn(move || {
            for round in 0_u64.. {
                let disk = format!("d{}", round % WRITERS);
                pool.snapshot(&disk, "now").unwrap();
                pool.clone_disk(&disk, "now", "copy", &DiskOptions::default()).unwrap();
                pool.open_disk("copy").unwrap().write_at(ByteOffset::ZERO, &[9; 8192]).unwrap();
                let changed = pool.diff(&disk, "now", None).unwrap();
                assert!(changed.iter().all(|extent| !extent.len.is_zero()));
                pool.delete("copy").unwrap();
                pool.delete_snapshot(&disk, "now").unwrap();
                if done.load(Ordering::Acquire) {
                    break;
                }
            }
        });
        scope.spawn(move || {
            while !done.load(Ordering::Acquire) {
                let report = pool.verify(true).unwrap();
                assert!(report.is_clean(), "{report:?}");
            }
        });
        let holds: Vec<_> = writers.into_iter().map(|w| w.join().unwrap()).collect();
        done.store(true, Ordering::Release);
        holds
    });
    (0..WRITERS).zip(&holds).for_each(|(writer, holds)| check(&pool, writer, holds));
    pool.gc().unwrap();
    let report = pool.verify(true).unwrap();
    assert!(report.is_clean(), "{report:?}");
    // Some are pages of the catalog.
    assert!(report.data_blocks <= WRITERS * BLOCKS + 200, "{} blocks", report.data_blocks);
    drop(pool);
    let pool = Pool::open(device, &busy()).unwrap();
    (0..WRITERS).zip(&holds).for_each(|(writer, holds)| check(&pool, writer, holds));
    assert!(pool.verify(true).unwrap().is_clean());
}

#[test]
fn a_pool_says_what_it_did() {
    let pool = Pool::create(Arc::new(MemoryDevice::new(ByteLen::mib(32))), &small()).unwrap();
    pool.create_disk("a", ByteLen::mib(16), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("a").unwrap();
    let before = pool.stats();
    disk.write_at(ByteOffset::ZERO, &[1; 16384]).unwrap();
    disk.write_at(ByteOffset::new(8 << 20), &[1; 4096]).unwrap();
    disk.flush().unwrap();
    disk.flush().unwrap();
    let after = pool.stats();
    assert_eq!(after.data_written.get(), before.data_written.get() + 20480);
    assert_eq!(after.log_written.get(), before.log_written.get() + 512);
    assert_eq!(after.metadata_written, before.metadata_written);
    assert_eq!((after.flushes, after.syncs), (before.flushes + 2, before.syncs + 1));
    assert_eq!(
        (after.batches, after.batched_records),
        (before.batches + 1, before.batched_records + 2)
    );
    assert_eq!(after.leaf_misses, before.leaf_misses + 2);
    disk.write_at(ByteOffset::ZERO, &[2; 4096]).unwrap();
    let later = pool.stats();
    assert_eq!((later.waiting_blocks, later.leaf_misses), (1, after.leaf_misses));
    assert!(later.leaf_hits > after.leaf_hits);
    pool.checkpoint().unwrap();
    let later = pool.stats();
    assert_eq!((later.waiting_blocks, later.checkpoints), (0, after.checkpoints + 1));
    assert!(later.metadata_written > after.metadata_written && !later.checkpoint_time.is_zero());
}
