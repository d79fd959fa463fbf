//! Disks on bases: what shows of an image outside of the pool, and what happens when it is not what it was.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, ExtentKind, MemoryDevice};
use kiln_parallax::stream::{ReceiveOptions, SendOptions};
use kiln_parallax::{DiskOptions, Durability, Pool, PoolError, PoolOptions};

use crate::world::{BASE, Images, base_content, content_of, pool_on, small};

const DATA: ExtentKind = ExtentKind::Data;
const HOLE: ExtentKind = ExtentKind::Hole;

/// A pool, the images it may open, and disk `a` on the base.
fn based() -> (Arc<MemoryDevice>, Arc<Images>, Pool) {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(16)));
    let images = Arc::new(Images::of(&base_content()));
    let pool = Pool::create(device.clone(), &with(&images)).unwrap();
    pool.create_on_base("a", &BASE, &DiskOptions::default()).unwrap();
    (device, images, pool)
}

fn with(images: &Arc<Images>) -> PoolOptions {
    PoolOptions { bases: Some(images.clone()), ..small() }
}

/// Bytes of a sector that is zeros, a whole number of times.
fn sectors(count: u64) -> ByteLen {
    ByteLen::new(count * 512)
}

fn at(sector: u64) -> ByteOffset {
    ByteOffset::new(sector * 512)
}

fn is_clean(pool: &Pool) {
    let report = pool.verify(true).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

/// Extents in sectors.
fn extents(disk: &dyn BlockDevice) -> Vec<(u64, u64, ExtentKind)> {
    let found = disk.extents(ByteOffset::ZERO, disk.size()).unwrap();
    found.iter().map(|e| (e.at.get() / 512, e.len.get() / 512, e.kind)).collect()
}

#[test]
fn a_base_takes_no_space_and_shows_until_it_is_hidden() {
    let (_, _, pool) = based();
    let disk = pool.open_disk("a").unwrap();
    let mut wanted = base_content();
    wanted.resize(2304, 0);
    assert_eq!(content_of(&disk).unwrap(), wanted);
    assert_eq!(pool.stat("a").unwrap().referenced, ByteLen::ZERO);
    let base = pool.stat("a").unwrap().base.unwrap();
    assert_eq!((base.name.as_str(), base.shown), ("the base", sectors(2304)));
    // Part of a block: the rest of it comes from the base.
    disk.write_at(at(501), &[7; 512]).unwrap();
    wanted[501] = 7;
    disk.write_zeroes(at(0), sectors(32), false).unwrap();
    wanted[..32].fill(0);
    disk.discard(at(32), sectors(16)).unwrap();
    wanted[32..48].fill(0);
    assert_eq!(content_of(&disk).unwrap(), wanted);
    assert_eq!(pool.stat("a").unwrap().referenced, ByteLen::kib(4), "zeros take no block");
    is_clean(&pool);
}

#[test]
fn extents_are_those_of_the_disk_where_it_was_written_and_of_the_base_elsewhere() {
    let (_, _, pool) = based();
    let disk = pool.open_disk("a").unwrap();
    let data = [(0, 64), (496, 48), (696, 8), (2024, 40), (2288, 16)];
    let found = extents(&disk);
    let found: Vec<_> = found.iter().filter(|(_, _, kind)| *kind == DATA).collect();
    assert_eq!(found, data.map(|(at, len)| (at, len, DATA)).iter().collect::<Vec<_>>());
    disk.write_zeroes(at(0), sectors(64), false).unwrap();
    disk.write_at(at(64), &[1; 4096]).unwrap();
    let after = extents(&disk);
    assert_eq!(after[..2], [(0, 64, HOLE), (64, 8, DATA)]);
    let within = disk.extents(at(65), sectors(2)).unwrap();
    assert_eq!((within.len(), within[0].at, within[0].len), (1, at(65), sectors(2)));
    let whole: u64 = after.iter().map(|(_, len, _)| len).sum();
    assert_eq!(whole, 2304);
}

#[test]
fn what_a_disk_lost_when_it_became_smaller_does_not_come_back_from_the_base() {
    let (_, _, pool) = based();
    pool.snapshot("a", "whole").unwrap();
    pool.resize("a", sectors(512)).unwrap();
    pool.resize("a", sectors(3072)).unwrap();
    let mut wanted = base_content();
    wanted.resize(512, 0);
    wanted.resize(3072, 0);
    assert_eq!(content_of(&pool.open_disk("a").unwrap()).unwrap(), wanted);
    let found = pool.diff("a", "whole", None).unwrap();
    assert!(found.iter().all(|extent| extent.kind == HOLE), "{found:?}");
    let differ: Vec<_> = found.iter().map(|e| (e.at.get() / 512, e.len.get() / 512)).collect();
    assert_eq!(differ, [(512, 2304 - 512)]);
    pool.rollback("a", "whole").unwrap();
    let mut wanted = base_content();
    wanted.resize(2304, 0);
    assert_eq!(content_of(&pool.open_disk("a").unwrap()).unwrap(), wanted);
    assert_eq!(pool.diff("a", "whole", None).unwrap(), []);
    is_clean(&pool);
}

#[test]
fn a_difference_says_where_a_base_was_hidden_and_nothing_else() {
    let (_, _, pool) = based();
    pool.snapshot("a", "s").unwrap();
    let disk = pool.open_disk("a").unwrap();
    disk.write_zeroes(at(8), sectors(16), false).unwrap();
    disk.write_at(at(2032), &[9; 512]).unwrap();
    pool.snapshot("a", "t").unwrap();
    let found = pool.diff("a", "s", Some("t")).unwrap();
    let found: Vec<_> =
        found.iter().map(|e| (e.at.get() / 512, e.len.get() / 512, e.kind)).collect();
    assert_eq!(found, [(8, 16, HOLE), (2032, 8, DATA)]);
}

#[test]
fn a_base_that_is_not_there_is_an_error_for_what_it_shows_and_for_nothing_else() {
    let (device, images, pool) = based();
    pool.create_disk("other", sectors(1024), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("a").unwrap();
    disk.write_at(at(8), &[1; 4096]).unwrap();
    disk.write_zeroes(at(16), sectors(8), false).unwrap();
    disk.flush().unwrap();
    drop((disk, pool));
    let bytes = images.0.lock().unwrap().remove("base").unwrap();
    let pool = Pool::open(device.clone(), &with(&images)).unwrap();
    let disk = pool.open_disk("a").unwrap();
    let mut block = [0xee; 4096];
    let Err(DeviceError::Io { source, .. }) = disk.read_at(at(0), &mut block) else {
        panic!("what is on the base cannot be read");
    };
    let said = source.to_string();
    assert_eq!(said, "base \"the base\": it is not there; put it back");
    disk.write_at(at(3), &[1; 100]).unwrap_err();
    disk.read_at(at(8), &mut block).unwrap();
    assert_eq!(block, [1; 4096]);
    disk.read_at(at(16), &mut block).unwrap();
    assert_eq!(block, [0; 4096]);
    // Whole blocks need nothing of it, and are never lost.
    disk.write_at(at(0), &[2; 4096]).unwrap();
    disk.write_zeroes(at(500), sectors(12), false).unwrap_err();
    disk.write_zeroes(at(504), sectors(8), false).unwrap();
    assert_eq!(extents(&disk)[..2], [(0, 16, DATA), (16, 8, HOLE)]);
    pool.open_disk("other").unwrap().write_at(at(0), &[3; 512]).unwrap();
    pool.flush().unwrap();
    let report = pool.verify(true).unwrap();
    assert_eq!(report.problems, [said]);
    drop((disk, pool));
    images.0.lock().unwrap().insert("base".to_owned(), bytes);
    let pool = Pool::open(device, &with(&images)).unwrap();
    let mut wanted = base_content();
    wanted.resize(2304, 0);
    wanted[..8].fill(2);
    wanted[8..16].fill(1);
    wanted[16..24].fill(0);
    wanted[504..512].fill(0);
    assert_eq!(content_of(&pool.open_disk("a").unwrap()).unwrap(), wanted);
    is_clean(&pool);
}

#[test]
fn another_image_in_the_place_of_a_base_is_never_read() {
    for wrong in ["another", "longer"] {
        let (device, images, pool) = based();
        drop(pool);
        match wrong {
            "another" => images.0.lock().unwrap().get_mut("base").unwrap()[0] ^= 1,
            _ => images.0.lock().unwrap().get_mut("base").unwrap().insert(512, 0),
        }
        let pool = Pool::open(device, &with(&images)).unwrap();
        let disk = pool.open_disk("a").unwrap();
        let refused = disk.read_at(at(0), &mut [0; 512]).unwrap_err();
        assert!(matches!(refused, DeviceError::Io { .. }), "{refused:?}");
        assert!(!pool.verify(false).unwrap().is_clean());
    }
}

#[test]
fn a_pool_with_a_base_says_so_in_every_superblock_and_forgets_the_base_with_its_last_disk() {
    let (device, images, pool) = based();
    let features = |bytes: &[u8], copy: usize| {
        u64::from_le_bytes(bytes[copy * 4096 + 16..][..8].try_into().unwrap())
    };
    let bytes = device.to_vec();
    assert_eq!([0, 1, 2, 3].map(|copy| features(&bytes, copy)), [1; 4]);
    pool.snapshot("a", "s").unwrap();
    pool.clone_disk("a", "s", "b", &DiskOptions::default()).unwrap();
    pool.create_on_base("c", &BASE, &DiskOptions::default()).unwrap();
    pool.delete_snapshot("a", "s").unwrap();
    pool.delete("a").unwrap();
    pool.delete("c").unwrap();
    pool.gc().unwrap();
    drop(pool);
    let pool = Pool::open(device.clone(), &with(&images)).unwrap();
    assert_eq!(pool.stat("b").unwrap().base.unwrap().name, "the base");
    is_clean(&pool);
    pool.delete("b").unwrap();
    pool.gc().unwrap();
    drop(pool);
    // Nobody asks for it any more.
    let pool = Pool::open(device, &PoolOptions { bases: None, ..small() }).unwrap();
    is_clean(&pool);
    let refused = pool.create_on_base("d", &BASE, &DiskOptions::default());
    assert!(matches!(refused, Err(PoolError::Base { .. })));
    pool.create_disk("d", sectors(8), &DiskOptions::default()).unwrap();
}

#[test]
fn a_description_longer_than_a_page_of_the_catalog_is_kept() {
    let (device, images, pool) = based();
    let long = "x".repeat(9000);
    images.0.lock().unwrap().insert(long.clone(), vec![5; 8192]);
    let base = kiln_parallax::NewBase { description: &long, ..BASE };
    pool.create_on_base("long", &base, &DiskOptions::default()).unwrap();
    drop(pool);
    let pool = Pool::open(device, &with(&images)).unwrap();
    assert_eq!(content_of(&pool.open_disk("long").unwrap()).unwrap(), [5; 16]);
    is_clean(&pool);
}

#[test]
fn a_flattened_disk_holds_what_it_showed_and_needs_the_base_no_more() {
    let (device, images, pool) = based();
    let disk = pool.open_disk("a").unwrap();
    disk.write_at(at(501), &[7; 512]).unwrap();
    disk.write_zeroes(at(2032), sectors(8), false).unwrap();
    let wanted = content_of(&disk).unwrap();
    pool.snapshot("a", "s").unwrap();
    let mut last = ByteLen::ZERO;
    let copied = pool
        .flatten("a", &mut |done, _| {
            assert!(done >= last);
            last = done;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(copied > ByteLen::ZERO && copied < ByteLen::kib(128), "{copied}");
    assert_eq!(pool.stat("a").unwrap().base, None);
    assert!(pool.snapshots("a").unwrap()[0].base.is_some(), "it stays what it was");
    assert_eq!(content_of(&disk).unwrap(), wanted);
    is_clean(&pool);
    drop((disk, pool));
    images.0.lock().unwrap().clear();
    let pool = Pool::open(device, &with(&images)).unwrap();
    assert_eq!(content_of(&pool.open_disk("a").unwrap()).unwrap(), wanted);
    assert!(content_of(&pool.open_snapshot("a", "s").unwrap()).is_err());
    pool.delete_snapshot("a", "s").unwrap();
    pool.gc().unwrap();
    is_clean(&pool);
}

#[test]
fn who_reads_and_writes_while_a_disk_is_flattened_notices_nothing() {
    let (_, _, pool) = based();
    let disk = pool.open_disk("a").unwrap();
    let mut wanted = content_of(&disk).unwrap();
    wanted[504..512].fill(9);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = pool.open_disk("a").unwrap();
        let (done, wanted) = (&done, &wanted);
        scope.spawn(move || {
            while !done.load(Ordering::Acquire) {
                let found = content_of(&reader).unwrap();
                assert_eq!(found[..504], wanted[..504]);
                assert_eq!(found[512..], wanted[512..]);
            }
        });
        let written = disk.write_at(at(504), &[9; 4096]);
        let flattened = pool.flatten("a", &mut |_, _| ControlFlow::Continue(()));
        // Nobody waits for a reader that is never told.
        done.store(true, Ordering::Release);
        written.unwrap();
        flattened.unwrap();
    });
    assert_eq!(content_of(&disk).unwrap(), wanted);
    is_clean(&pool);
}

#[test]
fn who_wants_a_flattening_to_end_is_heard_and_the_disk_stays_on_its_base() {
    let (_, _, pool) = based();
    let before = content_of(&pool.open_disk("a").unwrap()).unwrap();
    let ended = pool.flatten("a", &mut |at, _| match at.get() {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    });
    assert!(matches!(ended, Err(PoolError::Stopped)));
    assert!(pool.stat("a").unwrap().base.is_some());
    assert_eq!(content_of(&pool.open_disk("a").unwrap()).unwrap(), before);
    is_clean(&pool);
}

#[test]
fn a_disk_that_is_sent_brings_what_it_shows_of_its_base() {
    let (_, _, pool) = based();
    let disk = pool.open_disk("a").unwrap();
    disk.write_at(at(501), &[7; 512]).unwrap();
    pool.snapshot("a", "s").unwrap();
    disk.write_zeroes(at(0), sectors(16), false).unwrap();
    disk.write_at(at(1000), &[8; 4096]).unwrap();
    pool.snapshot("a", "t").unwrap();
    let there = pool_on(Arc::new(MemoryDevice::new(ByteLen::mib(8))));
    for (snapshot, from) in [("s", None), ("t", Some("s"))] {
        let mut stream = Vec::new();
        let options = SendOptions { from, ..SendOptions::default() };
        let go_on = &mut |_| ControlFlow::Continue(());
        pool.send("a", snapshot, &options, &mut stream, go_on).unwrap();
        let go_on = &mut |_| ControlFlow::Continue(());
        there.receive(&mut &stream[..], &ReceiveOptions::default(), go_on).unwrap();
        let sent = content_of(&pool.open_snapshot("a", snapshot).unwrap()).unwrap();
        assert_eq!(content_of(&there.open_snapshot("a", snapshot).unwrap()).unwrap(), sent);
    }
    assert_eq!(there.stat("a").unwrap().base, None);
    is_clean(&there);
}

#[test]
fn a_quota_counts_what_is_written_and_not_what_shows() {
    let (_, _, pool) = based();
    let options = DiskOptions { quota: ByteLen::kib(8), durability: Durability::None };
    pool.snapshot("a", "s").unwrap();
    pool.clone_disk("a", "s", "b", &options).unwrap();
    let disk = pool.open_disk("b").unwrap();
    disk.write_zeroes(at(0), sectors(64), false).unwrap();
    disk.write_at(at(0), &[1; 8192]).unwrap();
    assert!(matches!(disk.write_at(at(500), &[1; 512]), Err(DeviceError::NoSpace { .. })));
    disk.write_zeroes(at(0), sectors(8), false).unwrap();
    disk.write_at(at(500), &[1; 512]).unwrap();
    assert_eq!(pool.unique("b").unwrap().get() % 4096, 0);
    is_clean(&pool);
}
