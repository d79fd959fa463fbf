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

#[test]
fn a_flipped_bit_is_an_error_or_harmless_and_never_wrong_data() {
    let (bytes, model) = example();
    let mut dice = Dice::seeded(5);
    let used: Vec<usize> = (0..bytes.len() / 4096)
        .filter(|block| bytes[block * 4096..][..4096].iter().any(|byte| ![0, 6].contains(byte)))
        .collect();
    // The log's last batch, and its data (the sixes), cannot be told from what a power cut tore.
    let last_batch = bytes.chunks(512).rposition(|sector| sector.starts_with(b"KPXw")).unwrap();
    let (mut refused, mut found, mut harmless) = (0, 0, 0);
    for block in used {
        for _ in 0..rounds(3, 300) {
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
