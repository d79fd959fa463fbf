//! Streams that are damaged, or for another disk, change nothing that was there.

use std::ops::ControlFlow;

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice as _, ByteLen, ByteOffset};
use kiln_parallax::stream::{ReceiveOptions, SendOptions, StreamError};
use kiln_parallax::{DiskOptions, Pool, PoolError};

use crate::{assert_sound, bytes_of, change, pool, pool_with, receive, send};

fn small_stream(compress: bool) -> (Pool, Vec<u8>) {
    let from = pool();
    from.create_disk("base", ByteLen::kib(64), &DiskOptions::default()).unwrap();
    let disk = from.open_disk("base").unwrap();
    disk.write_at(ByteOffset::new(4096), &[3; 3000]).unwrap();
    disk.write_at(ByteOffset::new(32768), b"more").unwrap();
    from.snapshot("base", "a").unwrap();
    let stream = send(&from, "base", "a", &SendOptions { compress, ..Default::default() });
    (from, stream)
}

#[test]
fn one_flipped_bit_anywhere_is_found() {
    let to = pool_with("treasure");
    change(&to, "treasure", 1, 20);
    let treasure = bytes_of(&to.open_disk("treasure").unwrap());
    for compress in [false, true] {
        let (_from, stream) = small_stream(compress);
        for at in 0..stream.len() {
            let mut bytes = stream.clone();
            bytes[at] ^= 1 << (at % 8);
            let outcome = receive(&to, &bytes);
            assert!(outcome.is_err(), "byte {at}");
            assert!(to.stat("base").is_err(), "byte {at}");
            for partial in to.partials() {
                to.delete(&partial.name).unwrap();
            }
            assert_eq!(to.disks().len(), 1, "byte {at}");
        }
    }
    assert!(bytes_of(&to.open_disk("treasure").unwrap()) == treasure);
    assert_sound(&to);
}

#[test]
fn records_that_are_missing_swapped_or_of_another_stream_are_found() {
    let from = pool_with("base");
    change(&from, "base", 30, 12);
    from.snapshot("base", "a").unwrap();
    change(&from, "base", 31, 3);
    from.snapshot("base", "b").unwrap();
    let one = send(&from, "base", "a", &SendOptions::default());
    let other = send(&from, "base", "b", &SendOptions::default());
    let places = |stream: &[u8]| {
        let mut at = 512;
        let mut found = vec![];
        while at < stream.len() {
            let len = u32::from_le_bytes(stream[at + 24..at + 28].try_into().unwrap());
            found.push(at..at + 36 + len as usize);
            at += 36 + len as usize;
        }
        found
    };
    let parts = places(&one);
    let cut = |which: &[usize]| -> Vec<u8> {
        let records = which.iter().flat_map(|number| one[parts[*number].clone()].to_vec());
        one[..512].iter().copied().chain(records).collect()
    };
    let all: Vec<usize> = (0..parts.len()).collect();
    let without: Vec<usize> = all.iter().copied().filter(|number| *number != 1).collect();
    let mut swapped = all.clone();
    swapped.swap(1, 2);
    let mut twice = all.clone();
    twice.insert(1, 0);
    let foreign = [&one[..512], &other[512..]].concat();
    assert!(receive(&pool(), &cut(&all)).is_ok());
    for bytes in [cut(&without), cut(&swapped), cut(&twice), foreign] {
        let error = receive(&pool(), &bytes).unwrap_err();
        assert!(matches!(error, StreamError::Cut { .. }), "{error}");
    }
}

#[test]
fn garbage_is_no_stream_and_leaves_nothing() {
    let to = pool_with("treasure");
    let mut dice = Dice::seeded(3);
    for len in [0, 1, 511, 512, 4096, 100_000] {
        let mut bytes = vec![0; len];
        dice.fill(&mut bytes);
        let error = receive(&to, &bytes).unwrap_err();
        match len {
            512.. => assert!(matches!(error, StreamError::NotAStream), "{error}"),
            _ => assert!(matches!(error, StreamError::Ended { .. }), "{error}"),
        }
    }
    assert_eq!(to.disks().len(), 1);
}

#[test]
fn what_changed_goes_onto_the_snapshot_it_changed_from_and_no_other() {
    let from = pool_with("base");
    for name in ["a", "b", "c"] {
        change(&from, "base", 40, 10);
        from.snapshot("base", name).unwrap();
    }
    let step = |a, b| send(&from, "base", b, &SendOptions { from: Some(a), ..Default::default() });
    // No such disk; one of the same name that is another; one whose snapshot is older.
    let to = pool();
    assert!(matches!(
        receive(&to, &step("a", "b")),
        Err(StreamError::Pool(PoolError::NoDisk { .. }))
    ));
    let stranger = pool_with("base");
    change(&stranger, "base", 40, 10);
    stranger.snapshot("base", "a").unwrap();
    let before = bytes_of(&stranger.open_disk("base").unwrap());
    let error = receive(&stranger, &step("a", "b")).unwrap_err();
    assert!(error.to_string().contains("what changed since \"a\" of disk \"base\""), "{error}");
    assert!(bytes_of(&stranger.open_disk("base").unwrap()) == before);
    receive(&to, &send(&from, "base", "a", &SendOptions::default())).unwrap();
    assert!(matches!(receive(&to, &step("b", "c")), Err(StreamError::WrongBase { .. })));
    receive(&to, &step("a", "b")).unwrap();
    // The same again, and one that would branch off.
    assert!(matches!(
        receive(&to, &step("a", "b")),
        Err(StreamError::Pool(PoolError::Exists { .. }))
    ));
    let error = receive(&to, &step("a", "c")).unwrap_err();
    assert!(matches!(error, StreamError::Changed { .. }), "{error}");
    assert!(to.partials().is_empty() && to.disks().len() == 1);
}

#[test]
fn a_disk_that_changed_since_is_refused_until_it_is_rolled_back() {
    let from = pool_with("base");
    change(&from, "base", 50, 10);
    from.snapshot("base", "a").unwrap();
    change(&from, "base", 51, 10);
    from.snapshot("base", "b").unwrap();
    let to = pool();
    receive(&to, &send(&from, "base", "a", &SendOptions::default())).unwrap();
    change(&to, "base", 52, 2);
    let changes = send(&from, "base", "b", &SendOptions { from: Some("a"), ..Default::default() });
    let mine = bytes_of(&to.open_disk("base").unwrap());
    let error = receive(&to, &changes).unwrap_err();
    assert!(error.to_string().contains("roll it back first"), "{error}");
    assert!(bytes_of(&to.open_disk("base").unwrap()) == mine);
    to.rollback("base", "a").unwrap();
    // Nor while somebody has it open, as they would see it change under them.
    let open = to.open_disk("base").unwrap();
    let error = receive(&to, &changes).unwrap_err();
    assert!(matches!(error, StreamError::Pool(PoolError::InUse { .. })), "{error}");
    drop(open);
    // All of it had arrived, so nothing is left to send but the end.
    receive(&to, &changes).unwrap();
    crate::assert_same(&from, &to, "base", "b");
    assert_sound(&to);
}

#[test]
fn a_name_that_is_taken_is_refused_before_anything_is_read() {
    let from = pool_with("base");
    from.snapshot("base", "a").unwrap();
    let stream = send(&from, "base", "a", &SendOptions::default());
    let error = receive(&from, &stream[..512]).unwrap_err();
    assert!(matches!(error, StreamError::Pool(PoolError::Exists { .. })), "{error}");
    for name in ["", "a@b", "a/b"] {
        let options = ReceiveOptions { disk: Some(name) };
        let error = pool().receive(&mut &stream[..], &options, &mut |_| ControlFlow::Continue(()));
        assert!(matches!(error, Err(StreamError::Pool(PoolError::BadName { .. }))));
    }
}

#[test]
fn a_pool_that_is_full_says_so_and_keeps_its_disks() {
    let from = pool();
    from.create_disk("base", ByteLen::mib(40), &DiskOptions::default()).unwrap();
    let disk = from.open_disk("base").unwrap();
    let mut bytes = vec![0; 40 << 20];
    Dice::seeded(9).fill(&mut bytes);
    disk.write_at(ByteOffset::ZERO, &bytes).unwrap();
    from.snapshot("base", "a").unwrap();
    let stream = send(&from, "base", "a", &SendOptions::default());
    let device = std::sync::Arc::new(kiln_block::MemoryDevice::new(ByteLen::mib(24)));
    let to = Pool::create(device, &crate::options()).unwrap();
    to.create_disk("treasure", ByteLen::mib(4), &DiskOptions::default()).unwrap();
    change(&to, "treasure", 1, 5);
    let treasure = bytes_of(&to.open_disk("treasure").unwrap());
    let error = receive(&to, &stream).unwrap_err();
    assert!(matches!(error, StreamError::Disk { act: "write", .. }), "{error}");
    assert!(bytes_of(&to.open_disk("treasure").unwrap()) == treasure);
    for disk in to.disks().into_iter().filter(|disk| disk.name != "treasure") {
        to.delete(&disk.name).unwrap();
    }
    to.gc().unwrap();
    assert_sound(&to);
}
