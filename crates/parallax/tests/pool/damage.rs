//! Rotten bits are found: an error that names disk and block, never wrong data.

use std::sync::Arc;

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, MemoryDevice};
use kiln_parallax::{DiskOptions, Pool, PoolError};

use crate::world::{Model, Op, model_of, pool_on, rounds, small, step};

/// A closed pool with a snapshot, a clone, and something flushed to its log.
fn example() -> (Vec<u8>, Model) {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(4)));
    let pool = pool_on(device.clone());
    let mut model = Model::new();
    let ops = [
        Op::Create("a", 3072),
        Op::Write("a", 0, 80, 1),
        Op::Snapshot("a", "s"),
        Op::Write("a", 8, 8, 2),
        Op::Clone("a", "s", "b"),
        Op::Write("b", 2048, 16, 3),
        Op::Checkpoint,
        Op::Write("a", 32, 8, 4),
        Op::Flush,
        Op::Write("b", 16, 8, 5),
        Op::Flush,
        Op::Write("b", 24, 8, 6),
    ];
    for op in &ops {
        step(&pool, &mut model, op);
    }
    pool.flush().unwrap();
    (device.to_vec(), model)
}

/// Blocks that are in use, and the sector of the log's last batch. That, and its data (the sixes), cannot be told from what a
/// power cut tore.
fn places(bytes: &[u8]) -> (Vec<usize>, usize) {
    let used = (0..bytes.len() / 4096)
        .filter(|block| bytes[block * 4096..][..4096].iter().any(|byte| ![0, 6].contains(byte)))
        .collect();
    let last = bytes.chunks(512).rposition(|sector| sector.starts_with(b"KPXw"));
    (used, last.unwrap())
}

#[test]
fn a_flipped_bit_is_an_error_or_harmless_and_never_wrong_data() {
    let (bytes, model) = example();
    let mut dice = Dice::seeded(5);
    let (used, last_batch) = places(&bytes);
    let (mut refused, mut found, mut harmless) = (0, 0, 0);
    for block in used {
        for _ in 0..rounds(3, 150) {
            let at = block * 4096 + usize::try_from(dice.below(4096)).unwrap();
            if at / 512 == last_batch {
                continue;
            }
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << dice.below(8);
            let device = Arc::new(MemoryDevice::holding(&bytes));
            let pool = match Pool::open(device.clone(), &small()) {
                Ok(pool) => pool,
                Err(PoolError::FreeMap { .. }) => {
                    refused += 1;
                    let pool = Pool::repair(device, &small()).unwrap();
                    assert_eq!(model_of(&pool).unwrap(), model, "byte {at}");
                    assert!(pool.verify(true).unwrap().is_clean(), "byte {at}");
                    continue;
                }
                Err(PoolError::Damaged { .. }) => {
                    refused += 1;
                    repaired_says_what_is_lost(device, &model, &format!("byte {at}"));
                    continue;
                }
                Err(error) => panic!("byte {at}: {error}"),
            };
            match model_of(&pool) {
                Ok(read) => {
                    assert_eq!(read, model, "byte {at}");
                    harmless += 1;
                }
                Err(text) => {
                    assert!(text.contains("block"), "byte {at}: {text}");
                    found += 1;
                    assert!(!pool.verify(true).unwrap().is_clean(), "byte {at}");
                }
            }
        }
    }
    assert!(refused > 0 && found > 0 && harmless > 0, "{refused}, {found}, {harmless}");
}

/// Of a pool that was refused, repair opens what there is or says why it cannot; and what it says is there is there.
fn repaired_says_what_is_lost(device: Arc<MemoryDevice>, model: &Model, of: &str) {
    let pool = match Pool::repair(device.clone(), &small()) {
        Ok(pool) => pool,
        // Where neither maps nor free map say what is free, nothing is.
        Err(PoolError::Damaged { .. } | PoolError::NotAPool | PoolError::NoSpace) => return,
        Err(error) => panic!("{of}: {error}"),
    };
    if model_of(&pool).ok().as_ref() != Some(model) {
        assert!(!pool.losses().is_empty() || !pool.verify(true).unwrap().is_clean(), "{of}");
    }
    sectors_are_right_or_errors(&pool, model, pool.losses().is_empty(), of);
    // It can be used, as far as what is left goes.
    let made = pool.create_disk("new", ByteLen::mib(1), &DiskOptions::default());
    if made.is_ok() {
        let disk = pool.open_disk("new").unwrap();
        disk.write_at(ByteOffset::ZERO, &[0x77; 65536]).unwrap();
        disk.flush().unwrap();
        sectors_are_right_or_errors(&pool, model, pool.losses().is_empty(), of);
    }
    drop(pool);
    drop(Pool::repair(device, &small()));
}

/// Reads every block alone. Without losses each has its value or cannot be read; with losses it may also be older.
fn sectors_are_right_or_errors(pool: &Pool, model: &Model, latest: bool, of: &str) {
    let check = |disk: &dyn BlockDevice, content: &[u8], may_be: &dyn Fn(u8) -> bool| {
        let mut bytes = [0; 4096];
        for (block, sectors) in (0_u64..).zip(content.chunks(8)) {
            match disk.read_at(ByteOffset::new(block * 4096), &mut bytes) {
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains("block"), "{of}: {text}");
                }
                Ok(()) => {
                    for (found, number) in bytes.chunks(512).zip(sectors) {
                        let whole = found.iter().all(|byte| *byte == found[0]);
                        let right = found[0] == *number || may_be(found[0]);
                        assert!(whole && right, "{of}: block {block} is {}", found[0]);
                    }
                }
            }
        }
    };
    for (name, content) in model {
        let Ok(disk) = pool.open_disk(name) else { continue };
        check(&disk, &content.now, &|older| !latest && older < 7);
        for (snapshot, content) in &content.snapshots {
            let Ok(view) = pool.open_snapshot(name, snapshot) else { continue };
            check(&view, content, &|_| false);
        }
    }
}

#[test]
fn a_pool_damaged_in_many_places_gives_errors_and_never_wrong_data() {
    let (bytes, model) = example();
    let (used, last_batch) = places(&bytes);
    let mut opened = 0;
    for seed in 0..rounds(60, 3000) {
        let mut dice = Dice::seeded(seed + 1);
        let mut bytes = bytes.clone();
        for _ in 0..1 + seed % 12 {
            let block = used[usize::try_from(dice.below(used.len() as u64)).unwrap()];
            let at = block * 4096 + usize::try_from(dice.below(4096)).unwrap();
            if at / 512 != last_batch {
                bytes[at] ^= 1 << dice.below(8);
            }
        }
        let device = Arc::new(MemoryDevice::holding(&bytes));
        let of = format!("seed {seed}");
        match Pool::open(device.clone(), &small()) {
            Ok(pool) => {
                opened += 1;
                // The log's last batch may be gone, as a power cut may take it.
                sectors_are_right_or_errors(&pool, &model, false, &of);
                let _ = pool.verify(true).unwrap();
                for disk in pool.disks() {
                    let _ = pool.unique(&disk.name);
                    let _ = pool.diff(&disk.name, "s", None);
                    let _ = pool.delete_snapshot(&disk.name, "s");
                }
                let _ = pool.gc();
            }
            Err(_) => repaired_says_what_is_lost(device, &model, &of),
        }
    }
    assert!(opened > 0);
}

#[test]
fn what_repair_leaves_out_is_named() {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(4)));
    let pool = pool_on(device.clone());
    for name in ["a", "b"] {
        pool.create_disk(name, ByteLen::mib(1), &DiskOptions::default()).unwrap();
        let disk = pool.open_disk(name).unwrap();
        disk.write_at(ByteOffset::ZERO, &[name.as_bytes()[0]; 65536]).unwrap();
    }
    pool.checkpoint().unwrap();
    drop(pool);
    let bytes = device.to_vec();
    let nodes = bytes.chunks(4096).enumerate().filter(|(_, block)| block.starts_with(b"KPXn"));
    let mut lossy = 0;
    for (block, _) in nodes {
        let mut bytes = bytes.clone();
        bytes[block * 4096 + 2000] ^= 1;
        let device = Arc::new(MemoryDevice::holding(&bytes));
        let Ok(pool) = Pool::repair(device, &small()) else { continue };
        let unread = ["a", "b"].into_iter().find(|name| {
            let mut byte = [0];
            let read = pool.open_disk(name).unwrap().read_at(ByteOffset::ZERO, &mut byte);
            assert!(read.is_err() || byte[0] == name.as_bytes()[0]);
            read.is_err()
        });
        let losses = pool.losses().join("; ");
        if losses.starts_with("the newest catalog") {
            assert!(losses.contains("the checkpoint before") && unread.is_none(), "{losses}");
            continue;
        }
        assert_eq!(losses.is_empty(), unread.is_none(), "{losses}");
        if let Some(name) = unread {
            assert!(losses.starts_with(&format!("{name}: ")), "{losses}");
            assert!(losses.ends_with("cannot be read"), "{losses}");
            lossy += 1;
        }
    }
    assert!(lossy >= 2, "{lossy}");
}

#[test]
fn damaged_data_is_named_by_disk_and_block() {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(4)));
    let pool = pool_on(device.clone());
    pool.create_disk("root", ByteLen::mib(1), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("root").unwrap();
    disk.write_at(ByteOffset::new(5 * 4096), &[0xab; 4096]).unwrap();
    let bytes = device.to_vec();
    let at = bytes.windows(64).position(|window| window == [0xab; 64]).unwrap();
    device.write_at(ByteOffset::new(at as u64 + 100), &[0xac]).unwrap();
    let mut buffer = vec![0; 8192];
    let error = disk.read_at(ByteOffset::new(5 * 4096), &mut buffer).unwrap_err();
    assert!(matches!(error, DeviceError::Damaged { at, .. } if at.get() == 5 * 4096), "{error}");
    let text = error.to_string();
    assert!(text.contains("\"root\"") && text.contains("block 5"), "{text}");
    let report = pool.verify(true).unwrap();
    assert_eq!(report.problems.len(), 1, "{report:?}");
    // Writing it again heals it.
    disk.write_at(ByteOffset::new(5 * 4096), &[0xcd; 4096]).unwrap();
    disk.read_at(ByteOffset::new(5 * 4096), &mut buffer).unwrap();
}

#[test]
fn what_is_no_pool_is_refused_by_name() {
    let open = |bytes: &[u8]| Pool::open(Arc::new(MemoryDevice::holding(bytes)), &small());
    assert!(matches!(open(&[]), Err(PoolError::NotAPool)));
    assert!(matches!(open(&vec![0x55; 1 << 20]), Err(PoolError::NotAPool)));
    let (bytes, _) = example();
    assert!(matches!(open(&bytes[..2 << 20]), Err(PoolError::TooSmall { .. })));
    let tiny = Arc::new(MemoryDevice::new(ByteLen::kib(512)));
    assert!(matches!(Pool::create(tiny, &small()), Err(PoolError::TooSmall { .. })));
}
