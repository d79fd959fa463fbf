//! What the store of 2005 did wrong, and what happens when many do things at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_block::{BlockDevice, ByteLen, ByteOffset, Extent, ExtentKind, FileDevice, MemoryDevice};
use kiln_parallax::{DiskOptions, Pool, PoolError, PoolOptions};

use crate::world::{pool_on, small};

#[test]
fn sixty_four_first_writes_at_once_into_distant_regions_all_arrive() {
    let pool = pool_on(Arc::new(MemoryDevice::new(ByteLen::mib(16))));
    pool.create_disk("a", ByteLen::gib(256), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("a").unwrap();
    let barrier = std::sync::Barrier::new(64);
    std::thread::scope(|scope| {
        for region in 0..64_u8 {
            let (disk, barrier) = (&disk, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let at = ByteOffset::new(u64::from(region) << 32);
                disk.write_at(at, &[region + 1; 4096]).unwrap();
                disk.flush().unwrap();
            });
        }
    });
    for region in 0..64_u8 {
        let mut bytes = [0; 4096];
        disk.read_at(ByteOffset::new(u64::from(region) << 32), &mut bytes).unwrap();
        assert_eq!(bytes, [region + 1; 4096], "region {region}");
    }
    assert!(pool.verify(true).unwrap().is_clean());
}

#[test]
fn parts_of_one_block_written_at_once_all_arrive() {
    let pool = pool_on(Arc::new(MemoryDevice::new(ByteLen::mib(8))));
    pool.create_disk("a", ByteLen::mib(1), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("a").unwrap();
    std::thread::scope(|scope| {
        for part in 0..8_u8 {
            let disk = &disk;
            scope.spawn(move || {
                for round in 0..50 {
                    let at = ByteOffset::new(u64::from(part) * 512);
                    disk.write_at(at, &[part ^ round; 512]).unwrap();
                }
            });
        }
    });
    let mut bytes = [0; 4096];
    disk.read_at(ByteOffset::ZERO, &mut bytes).unwrap();
    for (part, sector) in (0_u8..).zip(bytes.chunks(512)) {
        assert!(sector.iter().all(|byte| *byte == part ^ 49), "part {part}");
    }
}

#[test]
fn a_snapshot_of_a_disk_that_is_being_written_is_one_instant_and_never_changes() {
    let pool = pool_on(Arc::new(MemoryDevice::new(ByteLen::mib(32))));
    pool.create_disk("a", ByteLen::gib(4), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("a").unwrap();
    let (near, far) = (ByteOffset::new(4096), ByteOffset::new(3 << 30));
    let stop = AtomicBool::new(false);
    let number = |disk: &dyn BlockDevice, at| {
        let mut bytes = [0; 4096];
        disk.read_at(at, &mut bytes).unwrap();
        assert!(bytes.chunks(8).all(|word| word == &bytes[..8]), "a block is whole");
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut count = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                count += 1;
                let block = count.to_le_bytes().repeat(512);
                disk.write_at(near, &block).unwrap();
                disk.write_at(far, &block).unwrap();
            }
        });
        let mut seen = Vec::new();
        for round in 0..20 {
            let name = format!("s{round}");
            pool.snapshot("a", &name).unwrap();
            let view = pool.open_snapshot("a", &name).unwrap();
            let (a, b) = (number(&view, near), number(&view, far));
            assert!(a == b || a == b + 1, "{name} shows {a} and {b}");
            seen.push((name, a, b));
        }
        for (name, a, b) in seen {
            let view = pool.open_snapshot("a", &name).unwrap();
            assert_eq!((number(&view, near), number(&view, far)), (a, b), "{name} changed");
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
    for round in (0..20).step_by(2) {
        pool.delete_snapshot("a", &format!("s{round}")).unwrap();
    }
    pool.gc().unwrap();
    assert!(pool.verify(true).unwrap().is_clean());
}

#[test]
fn deleting_gives_the_space_back() {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(64)));
    let pool = pool_on(device);
    pool.create_disk("a", ByteLen::mib(32), &DiskOptions::default()).unwrap();
    let empty = pool.space().used;
    let disk = pool.open_disk("a").unwrap();
    let write = |from: u64, mib: u64, byte: u8| {
        for at in 0..mib * 4 {
            let at = ByteOffset::new((from << 20) + at * 262_144);
            disk.write_at(at, &vec![byte; 262_144]).unwrap();
        }
    };
    write(0, 16, 1);
    pool.snapshot("a", "s").unwrap();
    write(0, 4, 2);
    pool.snapshot("a", "t").unwrap();
    write(2, 4, 3);
    pool.clone_disk("a", "t", "b", &DiskOptions::default()).unwrap();
    let unique = pool.unique("a").unwrap();
    assert!((ByteLen::mib(4)..ByteLen::mib(5)).contains(&unique), "{unique}");
    let used = pool.space().used;
    pool.delete_snapshot("a", "s").unwrap();
    pool.gc().unwrap();
    let freed = used.saturating_sub(pool.space().used);
    assert!((ByteLen::mib(4)..ByteLen::mib(5)).contains(&freed), "s alone had {freed}");
    pool.delete_snapshot("a", "t").unwrap();
    pool.gc().unwrap();
    let mut byte = [0];
    pool.open_disk("b").unwrap().read_at(ByteOffset::new(3 << 20), &mut byte).unwrap();
    assert_eq!(byte, [2], "a clone keeps what the deleted snapshot had");
    pool.delete("b").unwrap();
    drop(disk);
    assert_eq!(pool.stat("a").unwrap().referenced, ByteLen::mib(16));
    pool.delete("a").unwrap();
    pool.gc().unwrap();
    assert!(pool.space().used <= empty, "{} of {empty}", pool.space().used);
    assert!(pool.verify(true).unwrap().is_clean());
}

#[test]
fn a_difference_is_exact_and_says_what_became_a_hole() {
    let pool = pool_on(Arc::new(MemoryDevice::new(ByteLen::mib(8))));
    pool.create_disk("a", ByteLen::gib(1), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("a").unwrap();
    disk.write_at(ByteOffset::ZERO, &[1; 10 * 4096]).unwrap();
    pool.snapshot("a", "s").unwrap();
    disk.write_at(ByteOffset::new(2 * 4096), &[2; 3 * 4096]).unwrap();
    disk.discard(ByteOffset::new(8 * 4096), ByteLen::new(4096)).unwrap();
    disk.write_at(ByteOffset::new(512 << 20), &[3; 4096]).unwrap();
    pool.snapshot("a", "t").unwrap();
    let extent = |at: u64, blocks: u64, kind| Extent {
        at: ByteOffset::new(at * 4096),
        len: ByteLen::new(blocks * 4096),
        kind,
    };
    let expected = [
        extent(2, 3, ExtentKind::Data),
        extent(8, 1, ExtentKind::Hole),
        extent(131_072, 1, ExtentKind::Data),
    ];
    assert_eq!(pool.diff("a", "s", Some("t")).unwrap(), expected);
    assert_eq!(pool.diff("a", "t", None).unwrap(), []);
}

#[test]
fn a_pool_in_a_file_has_one_owner_and_grows_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    let options = PoolOptions { limit: ByteLen::mib(64), ..small() };
    let pool = Pool::create_file(&path, ByteLen::mib(8), &options).unwrap();
    assert!(matches!(Pool::open_file(&path, &options), Err(PoolError::Busy { .. })));
    pool.create_disk("a", ByteLen::mib(16), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("a").unwrap();
    disk.write_at(ByteOffset::ZERO, &[5; 4096]).unwrap();
    disk.flush().unwrap();
    let small_space = pool.space().available;
    drop((disk, pool));
    std::fs::File::options().write(true).open(&path).unwrap().set_len(32 << 20).unwrap();
    let pool = Pool::open_file(&path, &options).unwrap();
    assert!(pool.space().available > small_space);
    let mut byte = [0];
    pool.open_disk("a").unwrap().read_at(ByteOffset::ZERO, &mut byte).unwrap();
    assert_eq!(byte, [5]);
    drop(pool);
    assert!(FileDevice::open(&path, true).is_ok());
}

#[test]
fn what_is_open_is_neither_deleted_nor_rolled_back() {
    let pool = pool_on(Arc::new(MemoryDevice::new(ByteLen::mib(8))));
    pool.create_disk("a", ByteLen::mib(1), &DiskOptions::default()).unwrap();
    pool.snapshot("a", "s").unwrap();
    let disk = pool.open_disk("a").unwrap();
    assert!(matches!(pool.rollback("a", "s"), Err(PoolError::InUse { .. })));
    let view = pool.open_snapshot("a", "s").unwrap();
    assert!(matches!(pool.delete_snapshot("a", "s"), Err(PoolError::InUse { .. })));
    assert!(matches!(pool.delete("a"), Err(PoolError::HasSnapshots { snapshots: 1, .. })));
    drop(view);
    pool.delete_snapshot("a", "s").unwrap();
    assert!(matches!(pool.delete("a"), Err(PoolError::InUse { .. })));
    drop(disk);
    pool.delete("a").unwrap();
    for name in ["", "a@b", "a/b", "a\n", &"x".repeat(129)] {
        let made = pool.create_disk(name, ByteLen::mib(1), &DiskOptions::default());
        assert!(matches!(made, Err(PoolError::BadName { .. })), "{name:?}");
    }
    let odd = pool.create_disk("a", ByteLen::new(5000), &DiskOptions::default());
    assert!(matches!(odd, Err(PoolError::BadSize { .. })));
}

#[test]
fn the_lineage_names_every_disk_and_snapshot_and_what_it_evolved_from() {
    let pool = pool_on(Arc::new(MemoryDevice::new(ByteLen::mib(8))));
    let options = DiskOptions::default();
    pool.create_disk("base", ByteLen::mib(1), &options).unwrap();
    pool.snapshot("base", "one").unwrap();
    pool.snapshot("base", "two").unwrap();
    pool.clone_disk("base", "two", "vm", &options).unwrap();
    pool.snapshot("vm", "late").unwrap();
    // Two children keep it, hidden.
    pool.clone_disk("base", "two", "other", &options).unwrap();
    pool.delete_snapshot("base", "two").unwrap();
    let text = |of: &(String, String)| format!("{}@{}", of.0, of.1);
    let lines: Vec<String> = pool
        .lineage()
        .into_iter()
        .map(|of| {
            let name = of.snapshot.map_or(of.disk.clone(), |name| format!("{}@{name}", of.disk));
            let parent = of.parent.as_ref().map_or("nothing".to_owned(), text);
            format!("{name} of {parent}")
        })
        .collect();
    assert_eq!(
        lines,
        [
            "base of base@one",
            "base@one of nothing",
            "vm of vm@late",
            "vm@late of base@one",
            "other of base@one",
        ]
    );
}
