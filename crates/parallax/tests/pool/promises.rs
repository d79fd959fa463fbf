//! The promises of every disk, kept by a disk of a pool.

use std::sync::Arc;

use kiln_block::testing::{Abilities, Dice, conforms};
use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice};
use kiln_parallax::{DiskOptions, Durability, Pool, PoolOptions};

use crate::world::{BASE, Model, Op, any_op, model_of, pool_on, rounds, small, step};

const ANY: Abilities = Abilities { granularity: 1, writable: true };

#[test]
fn a_disk_of_a_pool_is_a_disk() {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(32)));
    let pool = Pool::create(device.clone(), &small()).unwrap();
    pool.create_disk("one", ByteLen::mib(3), &DiskOptions::default()).unwrap();
    conforms(&pool.open_disk("one").unwrap(), ANY);
    let report = pool.verify(true).unwrap();
    assert!(report.is_clean(), "{report:?}");
    pool.snapshot("one", "s").unwrap();
    let read_only = Abilities { granularity: 1, writable: false };
    conforms(&pool.open_snapshot("one", "s").unwrap(), read_only);
    let mut before = vec![0; 3 << 20];
    pool.open_disk("one").unwrap().read_at(ByteOffset::ZERO, &mut before).unwrap();
    drop(pool);
    let pool = Pool::open(device, &small()).unwrap();
    let mut after = vec![0; 3 << 20];
    pool.open_disk("one").unwrap().read_at(ByteOffset::ZERO, &mut after).unwrap();
    assert!(before == after, "a reopened disk holds what it held");
    let report = pool.verify(true).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn a_disk_on_a_base_is_a_disk() {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(32)));
    let pool = Pool::create(device.clone(), &small()).unwrap();
    let size = pool.create_on_base("one", &BASE, &DiskOptions::default()).unwrap();
    assert_eq!(size, ByteLen::new(2304 * 512));
    pool.snapshot("one", "base").unwrap();
    let read_only = Abilities { granularity: 1, writable: false };
    conforms(&pool.open_snapshot("one", "base").unwrap(), read_only);
    let disk = pool.open_disk("one").unwrap();
    // The suite wants a disk that reads as zeros.
    disk.write_zeroes(ByteOffset::ZERO, size, false).unwrap();
    conforms(&disk, ANY);
    pool.snapshot("one", "s").unwrap();
    conforms(&pool.open_snapshot("one", "s").unwrap(), read_only);
    let mut before = vec![0; size.to_usize().unwrap()];
    disk.read_at(ByteOffset::ZERO, &mut before).unwrap();
    drop((disk, pool));
    let pool = Pool::open(device, &small()).unwrap();
    let mut after = vec![0; before.len()];
    pool.open_disk("one").unwrap().read_at(ByteOffset::ZERO, &mut after).unwrap();
    assert!(before == after, "a reopened disk holds what it held");
    let report = pool.verify(true).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

/// Its owner was killed, say; the machine that the disk is served to goes on.
#[test]
fn what_was_settled_outlives_the_process_even_on_a_disk_to_be_thrown_away() {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(8)));
    let pool = pool_on(device.clone());
    let options = DiskOptions { durability: Durability::None, ..DiskOptions::default() };
    pool.create_disk("a", ByteLen::mib(1), &options).unwrap();
    let disk = pool.open_disk("a").unwrap();
    for round in 0..40 {
        disk.write_at(ByteOffset::new(round * 512), &[u8::try_from(round).unwrap(); 700]).unwrap();
        disk.settle().unwrap();
    }
    drop((disk, pool));
    let pool = Pool::open(device, &small()).unwrap();
    let mut bytes = vec![0; 20480];
    pool.open_disk("a").unwrap().read_at(ByteOffset::ZERO, &mut bytes).unwrap();
    for (round, sector) in bytes.chunks(512).enumerate() {
        assert!(sector.iter().all(|byte| usize::from(*byte) == round), "sector {round}");
    }
}

#[test]
fn a_pool_agrees_with_a_plain_model_whatever_is_done_to_it() {
    for seed in 0..rounds(12, 1000) {
        let mut dice = Dice::seeded(seed + 77);
        let device = Arc::new(MemoryDevice::new(ByteLen::mib(16)));
        let mut pool = pool_on(device.clone());
        let mut model = Model::new();
        for round in 0..60 {
            let op = match round {
                0..=1 => Op::Create(["a", "b"][round], 3072),
                _ => any_op(&mut dice, u8::try_from(round).unwrap()),
            };
            step(&pool, &mut model, &op);
            if dice.below(15) == 0 {
                pool.flush().unwrap();
                drop(pool);
                pool = Pool::open(device.clone(), &small()).unwrap();
            }
            if round % 10 == 9 {
                assert_eq!(model_of(&pool).unwrap(), model, "seed {seed}, round {round}");
                let report = pool.verify(true).unwrap();
                assert!(report.is_clean(), "seed {seed}, round {round}: {report:?}");
            }
        }
        let names: Vec<String> = model.keys().cloned().collect();
        for name in names {
            for snapshot in model[&name].snapshots.keys() {
                pool.delete_snapshot(&name, snapshot).unwrap();
            }
            pool.delete(&name).unwrap();
        }
        pool.gc().unwrap();
        let report = pool.verify(true).unwrap();
        assert!(report.is_clean() && report.data_blocks < 8, "all is given back: {report:?}");
    }
}

#[test]
fn blocks_for_a_disk_that_is_flushed_often_are_written_before_they_are_needed() {
    let options = PoolOptions { log: ByteLen::mib(1), ..PoolOptions::default() };
    let pool = Pool::create(Arc::new(MemoryDevice::new(ByteLen::mib(64))), &options).unwrap();
    pool.create_disk("d", ByteLen::mib(16), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("d").unwrap();
    let written = || pool.stats().data_written.get() >> 12;
    for block in 0..600 {
        disk.write_at(ByteOffset::new(block << 12), &[7; 4096]).unwrap();
        if block % 2 == 0 {
            disk.flush().unwrap();
        }
    }
    assert_eq!(written(), 600 + 512, "a MiB at a time, from the second on");
    for block in 600..1400 {
        disk.write_at(ByteOffset::new(block << 12), &[7; 4096]).unwrap();
    }
    assert!(written() <= 1400 + 768, "no more once nobody waits for flushes");
}
