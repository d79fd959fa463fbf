//! Many orders of what threads do to a pool, drawn at random; `KILN_LONG=1` draws more.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::Arc;

use kiln_block::testing::CrashDisk;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice};
use kiln_parallax_schedules::{Disk, DiskOptions, Pool, PoolOptions};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::Mutex;
use shuttle::{Config, Runner, thread};

const POOL: ByteLen = ByteLen::mib(2);

/// Half of the orders are drawn evenly, half so that few switches are at odd places.
fn in_many_orders(test: impl Fn() + Send + Sync + Clone + 'static) {
    let count = if std::env::var_os("KILN_LONG").is_some() { 4000 } else { 60 };
    run(RandomScheduler::new(count), test.clone());
    run(PctScheduler::new(3, count), test);
}

fn run(scheduler: impl Scheduler + 'static, test: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    // A stack that has room for a few blocks.
    config.stack_size = 1 << 20;
    config.max_steps = shuttle::MaxSteps::None;
    Runner::new(scheduler, config).run(test);
}

fn options() -> PoolOptions {
    PoolOptions {
        log: ByteLen::kib(16),
        cache: ByteLen::mib(1),
        background: false,
        ..PoolOptions::default()
    }
}

fn pool_on(device: Arc<dyn BlockDevice>) -> Pool {
    let pool = Pool::create(device, &options()).unwrap();
    pool.create_disk("a", ByteLen::mib(4), &DiskOptions::default()).unwrap();
    pool
}

fn at(block: u64) -> ByteOffset {
    ByteOffset::new(block * 4096)
}

fn write(disk: &Disk, block: u64, number: u8) {
    disk.write_at(at(block), &[number; 4096]).unwrap();
}

fn number(disk: &Disk, block: u64) -> u8 {
    let mut bytes = [0; 4096];
    disk.read_at(at(block), &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "block {block} is torn");
    bytes[0]
}

fn is_clean(pool: &Pool) {
    let report = pool.verify(true).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

/// What was flushed when the device had seen that many calls: each block and its number.
type Flushed = Arc<Mutex<Vec<(usize, u64, u8)>>>;

fn survives(device: &CrashDisk, flushed: &Flushed) {
    for (cut, block, was) in flushed.lock().unwrap().drain(..) {
        for image in device.images_a_power_cut_may_leave(cut, 1, 7) {
            let pool = Pool::open(Arc::new(MemoryDevice::holding(&image)), &options()).unwrap();
            let found = number(&pool.open_disk("a").unwrap(), block);
            assert!(found >= was, "block {block} is {found}, {was} was flushed");
        }
    }
}

#[test]
fn a_flush_that_others_wait_for_makes_durable_what_each_of_them_wrote() {
    in_many_orders(|| {
        let device = Arc::new(CrashDisk::new(POOL));
        let pool = pool_on(device.clone());
        let flushed = Flushed::default();
        let threads: Vec<_> = (0..3)
            .map(|block| {
                let (pool, device, flushed) = (pool.clone(), device.clone(), flushed.clone());
                thread::spawn(move || {
                    let disk = pool.open_disk("a").unwrap();
                    for round in 1..3 {
                        write(&disk, block * 300, round);
                        disk.flush().unwrap();
                        flushed.lock().unwrap().push((device.steps(), block * 300, round));
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        survives(&device, &flushed);
    });
}

#[test]
fn a_flush_beside_a_checkpoint_does_not_depend_on_it() {
    in_many_orders(|| {
        let device = Arc::new(CrashDisk::new(POOL));
        let pool = pool_on(device.clone());
        let flushed = Flushed::default();
        let writer = {
            let (pool, device, flushed) = (pool.clone(), device.clone(), flushed.clone());
            thread::spawn(move || {
                let disk = pool.open_disk("a").unwrap();
                for round in 1..5 {
                    write(&disk, 5, round);
                    disk.flush().unwrap();
                    flushed.lock().unwrap().push((device.steps(), 5, round));
                }
            })
        };
        let other = {
            let pool = pool.clone();
            thread::spawn(move || {
                pool.checkpoint().unwrap();
                pool.open_disk("a").unwrap().settle().unwrap();
                pool.checkpoint().unwrap();
            })
        };
        writer.join().unwrap();
        other.join().unwrap();
        survives(&device, &flushed);
        is_clean(&pool);
    });
}

#[test]
fn a_snapshot_beside_writes_is_one_instant() {
    in_many_orders(|| {
        let pool = pool_on(Arc::new(MemoryDevice::new(POOL)));
        let writer = {
            let pool = pool.clone();
            thread::spawn(move || {
                let disk = pool.open_disk("a").unwrap();
                for round in 1..6 {
                    write(&disk, 1, round);
                    write(&disk, 700, round);
                }
            })
        };
        let checkpointer = {
            let pool = pool.clone();
            thread::spawn(move || pool.checkpoint().unwrap())
        };
        let mut seen = Vec::new();
        for name in ["s", "t"] {
            pool.snapshot("a", name).unwrap();
            let view = pool.open_snapshot("a", name).unwrap();
            let (first, second) = (number(&view, 1), number(&view, 700));
            assert!(first == second || first == second + 1, "{name}: {first} and {second}");
            seen.push((name, first, second));
        }
        writer.join().unwrap();
        checkpointer.join().unwrap();
        for (name, first, second) in seen {
            let view = pool.open_snapshot("a", name).unwrap();
            assert_eq!((number(&view, 1), number(&view, 700)), (first, second), "{name} changed");
        }
        is_clean(&pool);
    });
}

#[test]
fn reclaiming_beside_writes_frees_what_nobody_has_and_nothing_else() {
    in_many_orders(|| {
        let pool = pool_on(Arc::new(MemoryDevice::new(POOL)));
        let disk = pool.open_disk("a").unwrap();
        for (round, name) in (1..).zip(["s", "t", "u"]) {
            (0..4).for_each(|block| write(&disk, block * 200, round));
            pool.snapshot("a", name).unwrap();
        }
        let writer = thread::spawn(move || {
            for block in 0..4 {
                write(&disk, block * 200, 9);
                write(&disk, block * 200 + 1, 9);
            }
            disk
        });
        let cleaner = {
            let pool = pool.clone();
            thread::spawn(move || {
                pool.delete_snapshot("a", "t").unwrap();
                pool.delete_snapshot("a", "u").unwrap();
                pool.gc().unwrap();
            })
        };
        let disk = writer.join().unwrap();
        cleaner.join().unwrap();
        pool.gc().unwrap();
        is_clean(&pool);
        let view = pool.open_snapshot("a", "s").unwrap();
        for block in 0..4 {
            assert_eq!((number(&disk, block * 200), number(&view, block * 200)), (9, 1));
        }
        assert_eq!(pool.verify(false).unwrap().data_blocks, 12 + 1, "and a page of the catalog");
    });
}
