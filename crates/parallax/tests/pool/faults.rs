//! A disk that fails below the pool costs the call that needed it, and never what was flushed.

use std::sync::Arc;

use kiln_block::testing::{Act, FaultDisk};
use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, MemoryDevice};
use kiln_parallax::{DiskOptions, Durability, Pool, PoolError};

use crate::crash::is_legal;
use crate::world::{Model, Op, model_of, pool_on, small};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn workload() -> Vec<Op> {
    vec![
        Op::Create("a", 3072),
        Op::Write("a", 0, 40, 1),
        Op::Flush,
        Op::Write("a", 3, 9, 2),
        Op::Snapshot("a", "s"),
        Op::Write("a", 2044, 16, 3),
        Op::Flush,
        Op::Clone("a", "s", "b"),
        Op::Write("b", 0, 24, 4),
        Op::Settle,
        Op::Resize("b", 2304),
        Op::Grow(4608),
        Op::Checkpoint,
        Op::Write("b", 9, 24, 5),
        Op::Rollback("a", "s"),
        Op::Rename("b", "c"),
        Op::DeleteSnapshot("a", "s"),
        Op::Zero("a", 0, 8),
        Op::Delete("a"),
        Op::Gc,
        Op::Flush,
    ]
}

/// Fails one call of a kind, then looks at what is left, and at what is left after opening again.
fn survives_fault(act: Act, call: u64, errno: i32, lasting: bool) -> bool {
    let device = Arc::new(FaultDisk::new(MemoryDevice::new(ByteLen::mib(4))));
    let pool = pool_on(device.clone());
    device.fail(act, call, errno, lasting);
    let mut model = Model::new();
    let mut legal = vec![model.clone()];
    let mut failed = false;
    let context = || format!("{act:?} {call}, errno {errno}, lasting {lasting}");
    for op in workload() {
        op.apply_to_model(&mut model);
        legal.push(model.clone());
        match op.apply_to_pool(&pool) {
            Ok(()) if op.settles() => legal = vec![model.clone()],
            Ok(()) => {}
            Err(_) => {
                failed = true;
                break;
            }
        }
    }
    device.heal();
    let legal: Vec<&Model> = legal.iter().collect();
    let found = model_of(&pool).unwrap_or_else(|error| panic!("{error}: {}", context()));
    is_legal(&found, &legal).unwrap_or_else(|error| panic!("{error}: {}", context()));
    drop(pool);
    let pool = Pool::open(device, &small()).unwrap();
    let report = pool.verify(true).unwrap();
    assert!(report.is_clean(), "{report:?}: {}", context());
    let found = model_of(&pool).unwrap_or_else(|error| panic!("{error}: {}", context()));
    is_legal(&found, &legal).unwrap_or_else(|error| panic!("{error}: {}", context()));
    failed
}

#[test]
fn a_fault_at_any_call_loses_nothing_that_was_flushed() {
    for (act, errno, lasting) in [
        (Act::Read, EIO, false),
        (Act::Read, EIO, true),
        (Act::Write, EIO, false),
        (Act::Write, EIO, true),
        (Act::Write, ENOSPC, false),
        (Act::Write, ENOSPC, true),
        (Act::Grow, EIO, false),
        (Act::Grow, ENOSPC, true),
        (Act::Flush, EIO, false),
        (Act::Flush, EIO, true),
    ] {
        let mut call = 0;
        while survives_fault(act, call, errno, lasting) {
            call += 1;
        }
        assert!(call > 0, "{act:?} is called");
    }
}

#[test]
fn a_failed_flush_poisons_every_disk_until_the_pool_is_opened_again() {
    let device = Arc::new(FaultDisk::new(MemoryDevice::new(ByteLen::mib(4))));
    let pool = pool_on(device.clone());
    pool.create_disk("a", ByteLen::mib(1), &DiskOptions::default()).unwrap();
    pool.create_disk("b", ByteLen::mib(1), &DiskOptions::default()).unwrap();
    let (a, b) = (pool.open_disk("a").unwrap(), pool.open_disk("b").unwrap());
    a.write_at(ByteOffset::ZERO, &[7; 4096]).unwrap();
    device.fail(Act::Flush, 0, EIO, false);
    assert!(matches!(a.flush(), Err(DeviceError::Io { .. })), "the first to know says why");
    for disk in [&a, &b] {
        assert!(matches!(disk.flush(), Err(DeviceError::Poisoned)));
        assert!(matches!(disk.write_at(ByteOffset::ZERO, &[1]), Err(DeviceError::Poisoned)));
    }
    assert!(matches!(pool.snapshot("a", "s"), Err(PoolError::Poisoned)));
    let mut byte = [0];
    a.read_at(ByteOffset::ZERO, &mut byte).unwrap();
    assert_eq!(byte, [7], "it can still be read");
    drop((a, b, pool));
    let pool = Pool::open(device, &small()).unwrap();
    pool.open_disk("a").unwrap().write_at(ByteOffset::ZERO, &[1]).unwrap();
}

#[test]
fn a_full_pool_says_so_keeps_what_it_has_and_recovers_by_deleting() {
    let pool = pool_on(Arc::new(MemoryDevice::new(ByteLen::mib(8))));
    pool.create_disk("a", ByteLen::mib(64), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("a").unwrap();
    let mut written = 0_u64;
    let refused = loop {
        let bytes = vec![u8::try_from(written % 251).unwrap(); 65536];
        match disk.write_at(ByteOffset::new(written * 65536), &bytes) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, DeviceError::NoSpace { .. }), "{refused}");
    assert!(written > 90, "{written} of 128 pieces fit");
    disk.flush().unwrap();
    let mut bytes = vec![0; 65536];
    for piece in 0..written {
        disk.read_at(ByteOffset::new(piece * 65536), &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| u64::from(*byte) == piece % 251));
    }
    // Overwriting needs no more than what it replaces, as long as nobody else has that.
    for piece in 0..40 {
        disk.write_at(ByteOffset::new(piece % 3 * 4096), &[7; 4096]).unwrap_or_default();
    }
    drop(disk);
    pool.delete("a").unwrap();
    pool.gc().unwrap();
    pool.create_disk("b", ByteLen::mib(64), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("b").unwrap();
    for piece in 0..90_u64 {
        disk.write_at(ByteOffset::new(piece * 65536), &vec![1; 65536]).unwrap();
    }
    assert!(pool.verify(true).unwrap().is_clean());
}

#[test]
fn a_quota_is_kept_and_a_throw_away_disk_never_syncs() {
    let pool = pool_on(Arc::new(MemoryDevice::new(ByteLen::mib(8))));
    let quota = DiskOptions { quota: ByteLen::kib(64), ..DiskOptions::default() };
    pool.create_disk("a", ByteLen::mib(1), &quota).unwrap();
    let disk = pool.open_disk("a").unwrap();
    disk.write_at(ByteOffset::ZERO, &[1; 65536]).unwrap();
    disk.write_at(ByteOffset::ZERO, &[2; 65536]).unwrap();
    let more = disk.write_at(ByteOffset::new(65536), &[3; 4096]);
    assert!(matches!(more, Err(DeviceError::NoSpace { .. })), "{more:?}");
    pool.set_quota("a", ByteLen::ZERO).unwrap();
    disk.write_at(ByteOffset::new(65536), &[3; 4096]).unwrap();
    disk.flush().unwrap();
    let before = pool.space().syncs;
    disk.flush().unwrap();
    assert_eq!(pool.space().syncs, before, "nothing to flush, nothing to sync");
    let throw_away = DiskOptions { durability: Durability::None, ..DiskOptions::default() };
    pool.create_disk("b", ByteLen::mib(1), &throw_away).unwrap();
    let disk = pool.open_disk("b").unwrap();
    let before = pool.space().syncs;
    for _ in 0..10 {
        disk.write_at(ByteOffset::ZERO, &[4; 8192]).unwrap();
        disk.flush().unwrap();
    }
    assert_eq!(pool.space().syncs, before);
}
