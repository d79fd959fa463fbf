//! A pool in a file starts small and grows; one that cannot grow is full, and says so.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use kiln_block::testing::{Act, FaultDisk};
use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, MemoryDevice};
use kiln_parallax::{DiskOptions, Pool, PoolError, PoolOptions};

use crate::world::small;

fn fill(pool: &Pool, mib: u64) -> Result<(), DeviceError> {
    let disk = pool.open_disk("a").unwrap();
    for n in 0..mib * 4 {
        let bytes = vec![u8::try_from(n % 251).unwrap(); 1 << 18];
        disk.write_at(ByteOffset::new(n << 18), &bytes)?;
    }
    disk.flush()
}

fn holds(pool: &Pool, mib: u64) {
    let disk = pool.open_disk("a").unwrap();
    let mut bytes = vec![0; 1 << 18];
    for n in 0..mib * 4 {
        disk.read_at(ByteOffset::new(n << 18), &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| u64::from(*byte) == n % 251), "piece {n}");
    }
}

#[test]
fn a_pool_in_a_file_starts_small_with_its_space_taken_and_grows_as_it_is_written() {
    for background in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool");
        let options = PoolOptions { background, ..small() };
        let pool = Pool::create_file(&path, ByteLen::gib(1 << 10), &options).unwrap();
        let taken = || std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!((64 << 20..80 << 20).contains(&taken()), "{} bytes", taken());
        assert!(pool.space().limit >= ByteLen::gib(1 << 10));
        pool.create_disk("a", ByteLen::gib(100), &DiskOptions::default()).unwrap();
        fill(&pool, 100).unwrap();
        assert!(pool.stats().growths > 0);
        assert!(taken() > 128 << 20, "{} bytes", taken());
        drop(pool);
        let pool = Pool::open_file(&path, &options).unwrap();
        holds(&pool, 100);
        assert!(pool.verify(true).unwrap().is_clean());
    }
}

#[test]
fn a_pool_grows_no_further_than_it_may() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    let pool = Pool::create_file(&path, ByteLen::mib(20), &small()).unwrap();
    pool.create_disk("a", ByteLen::gib(1), &DiskOptions::default()).unwrap();
    let refused = fill(&pool, 40).unwrap_err();
    assert!(matches!(refused, DeviceError::NoSpace { .. }), "{refused}");
    assert!(std::fs::metadata(&path).unwrap().len() <= 20 << 20);
    assert!(matches!(pool.grow_to(ByteLen::gib(1)), Err(PoolError::TooLarge { .. })));
    // When asked to, as far as its free map goes.
    pool.grow_to(ByteLen::mib(100)).unwrap();
    assert_eq!(pool.space().total, ByteLen::mib(100));
    fill(&pool, 40).unwrap();
    drop(pool);
    let pool = Pool::open_file(&path, &small()).unwrap();
    holds(&pool, 40);
    assert!(pool.verify(true).unwrap().is_clean());
    let path = folder.path().join("none");
    assert!(matches!(
        Pool::create_file(&path, ByteLen::kib(64), &small()),
        Err(PoolError::TooSmall { .. })
    ));
    assert!(!path.exists(), "nothing is left of what could not be made");
}

#[test]
fn a_filesystem_that_is_full_when_the_pool_grows_costs_the_write_and_nothing_else() {
    let device = Arc::new(FaultDisk::new(MemoryDevice::new(ByteLen::mib(4))));
    let options = PoolOptions { limit: ByteLen::mib(64), ..small() };
    let pool = Pool::create(device.clone(), &options).unwrap();
    pool.create_disk("a", ByteLen::mib(64), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("a").unwrap();
    let mut piece = 0_u64;
    let write = |piece: u64| {
        let bytes = vec![u8::try_from(piece % 251).unwrap(); 65536];
        disk.write_at(ByteOffset::new(piece << 16), &bytes)
    };
    // Until the next write has to grow.
    let free = |pool: &Pool| pool.space().available;
    while free(&pool) > ByteLen::ZERO {
        write(piece).unwrap();
        piece += 1;
    }
    disk.flush().unwrap();
    const ENOSPC: i32 = 28;
    device.fail(Act::Grow, 0, ENOSPC, true);
    let refused = loop {
        match write(piece) {
            Ok(()) => piece += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, DeviceError::NoSpace { .. }), "{refused}");
    assert!(matches!(pool.grow_to(ByteLen::mib(32)), Err(PoolError::NoSpace)));
    disk.flush().unwrap();
    pool.snapshot("a", "s").unwrap();
    device.heal();
    write(piece).unwrap();
    assert_eq!(pool.stats().growths, 1);
    disk.flush().unwrap();
    drop(disk);
    drop(pool);
    let pool = Pool::open(device, &options).unwrap();
    let disk = pool.open_disk("a").unwrap();
    let mut bytes = vec![0; 65536];
    for piece in 0..=piece {
        disk.read_at(ByteOffset::new(piece << 16), &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| u64::from(*byte) == piece % 251), "piece {piece}");
    }
    assert!(pool.verify(true).unwrap().is_clean());
}
