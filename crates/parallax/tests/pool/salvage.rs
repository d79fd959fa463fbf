//! A damaged catalog costs what it held and nothing else: repair keeps every disk whose record can be read, names
//! what there is no more, and can itself be cut off anywhere.

use std::sync::Arc;

use kiln_block::testing::CrashDisk;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice};
use kiln_parallax::{DiskOptions, Pool, PoolError};

use crate::world::{Model, Op, model_of, pool_on, rounds, small, step};

/// More disks than a page of the catalog has room for, and one with a row of snapshots and clones. With `idle`, neither
/// checkpoint that is there changed the catalog.
fn example(idle: bool) -> (Vec<u8>, Model) {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(4)));
    let pool = pool_on(device.clone());
    let mut model = Model::new();
    const NAMES: [&str; 20] = [
        "d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7", "d8", "d9", "d10", "d11", "d12", "d13",
        "d14", "d15", "d16", "d17", "d18", "d19",
    ];
    let mut ops = vec![Op::Create("a", 2048), Op::Write("a", 0, 64, 1), Op::Snapshot("a", "s")];
    ops.extend([Op::Write("a", 8, 16, 2), Op::Snapshot("a", "t"), Op::Clone("a", "t", "b")]);
    for (name, number) in NAMES.into_iter().zip(10..) {
        ops.extend([Op::Create(name, 512), Op::Write(name, 0, 8, number)]);
    }
    ops.extend([Op::Write("a", 16, 16, 3), Op::Snapshot("a", "u"), Op::Clone("a", "t", "c")]);
    ops.extend([Op::Write("b", 0, 8, 4), Op::Write("c", 24, 8, 5), Op::Write("a", 0, 8, 6)]);
    ops.extend([Op::Checkpoint, Op::Checkpoint, Op::Checkpoint]);
    if !idle {
        ops.extend([Op::Write("a", 32, 8, 7), Op::Write("d19", 8, 8, 8), Op::Checkpoint]);
        ops.extend([Op::Write("c", 0, 8, 9), Op::Flush, Op::Snapshot("b", "v")]);
    }
    ops.iter().for_each(|op| assert!(step(&pool, &mut model, op), "{op:?}"));
    (device.to_vec(), model)
}

/// Images with one bit flipped each that are refused for what is wrong with their catalog.
fn refused(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for block in 4..bytes.len() / 4096 {
        let content = &bytes[block * 4096..][..4096];
        if content.iter().all(|byte| *byte == content[0]) {
            continue;
        }
        for at in [20, 700].into_iter().take(usize::try_from(rounds(1, 2)).unwrap()) {
            let mut bytes = bytes.to_vec();
            bytes[block * 4096 + at] ^= 16;
            let device = Arc::new(MemoryDevice::holding(&bytes));
            if !matches!(Pool::open(device.clone(), &small()), Err(PoolError::Damaged { .. })) {
                continue;
            }
            // Of maps of disks, what leads to something that is flushed is read when a pool is opened, too.
            let of_catalog = match Pool::repair(device, &small()) {
                Ok(pool) => pool.losses().iter().any(|loss| loss.contains("catalog")),
                Err(_) => true,
            };
            if of_catalog {
                found.push(bytes);
            }
        }
    }
    found
}

/// What is there is what was there, disk by disk and snapshot by snapshot; how many disks there are.
fn is_part_of(found: &Model, model: &Model) -> usize {
    for (name, disk) in found.iter().filter(|(name, _)| !name.starts_with("lost-")) {
        let was = &model[name];
        assert_eq!(disk.now, was.now, "{name}");
        for (snapshot, content) in &disk.snapshots {
            assert_eq!(content, &was.snapshots[snapshot], "{name}@{snapshot}");
        }
    }
    for disk in found.iter().filter(|(name, _)| name.starts_with("lost-")).map(|(_, disk)| disk) {
        for (snapshot, content) in &disk.snapshots {
            let same = model.values().any(|was| was.snapshots.get(snapshot) == Some(content));
            assert!(same, "{snapshot} of a disk that is lost");
        }
    }
    found.len()
}

fn is_clean(pool: &Pool, of: &str) {
    let report = pool.verify(true).unwrap();
    assert!(report.is_clean(), "{of}: {report:?}");
}

#[test]
fn a_catalog_that_is_damaged_since_the_last_checkpoint_costs_nothing() {
    let (bytes, model) = example(false);
    let (mut whole, refused) = (0, refused(&bytes));
    assert!(refused.len() >= 2, "{}", refused.len());
    for bytes in &refused {
        let device = Arc::new(MemoryDevice::holding(bytes));
        let pool = Pool::repair(device.clone(), &small()).unwrap();
        let losses = pool.losses().join("; ");
        assert!(!losses.is_empty());
        is_clean(&pool, &losses);
        let found = model_of(&pool).unwrap();
        is_part_of(&found, &model);
        whole += usize::from(found == model);
        drop(pool);
        let pool = Pool::open(device, &small()).unwrap();
        assert_eq!(model_of(&pool).unwrap(), found);
    }
    assert!(whole * 2 >= refused.len(), "{whole} of {}", refused.len());
}

#[test]
fn a_page_of_the_catalog_that_rotted_costs_the_disks_on_it_and_no_other() {
    let (bytes, model) = example(true);
    let refused = refused(&bytes);
    assert!(refused.len() >= 3, "{}", refused.len());
    let mut partly = 0;
    for bytes in &refused {
        let device = Arc::new(MemoryDevice::holding(bytes));
        let pool = Pool::repair(device.clone(), &small()).unwrap();
        let losses = pool.losses().join("; ");
        is_clean(&pool, &losses);
        let found = model_of(&pool).unwrap();
        assert!(is_part_of(&found, &model) > 0);
        partly += usize::from(found != model);
        // What is left can be used and deleted, and none of it takes from the rest.
        pool.create_disk("new", ByteLen::kib(256), &DiskOptions::default()).unwrap();
        for (name, disk) in &found {
            for snapshot in disk.snapshots.keys() {
                pool.delete_snapshot(name, snapshot).unwrap();
            }
            pool.gc().unwrap();
            let new = pool.open_disk("new").unwrap();
            for at in (0..ByteLen::kib(256).get()).step_by(4096) {
                new.write_at(ByteOffset::new(at), &[0xee; 4096]).unwrap();
            }
            pool.checkpoint().unwrap();
            let now = model_of(&pool).unwrap();
            found.iter().for_each(|(name, disk)| assert_eq!(now[name].now, disk.now, "{name}"));
        }
        is_clean(&pool, &losses);
    }
    assert!(partly > 0);
}

#[test]
fn a_repair_that_is_cut_off_anywhere_can_be_done_again() {
    for idle in [false, true] {
        let (bytes, _) = example(idle);
        let refused = refused(&bytes);
        let stride = usize::try_from(rounds(7, 1)).unwrap();
        for bytes in refused.iter().step_by(if stride > 1 { refused.len() / 2 } else { 1 }) {
            let device = Arc::new(CrashDisk::holding(bytes.clone()));
            let pool = Pool::repair(device.clone(), &small()).unwrap();
            let repaired = model_of(&pool).unwrap();
            drop(pool);
            for cut in (0..=device.steps()).step_by(stride) {
                for image in device.images_a_power_cut_may_leave(cut, 3, 7) {
                    let device = Arc::new(MemoryDevice::holding(&image));
                    let pool = Pool::repair(device, &small())
                        .unwrap_or_else(|error| panic!("cut {cut}: {error}"));
                    is_clean(&pool, &format!("cut {cut}"));
                    assert_eq!(model_of(&pool).unwrap(), repaired, "cut {cut}");
                }
            }
        }
    }
}
