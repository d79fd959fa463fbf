//! What each command does, and how it is answered.

use std::sync::Arc;

use kiln_block::testing::{Act, Dice, FaultDisk};
use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice, zeros};

use crate::client::*;

fn memory() -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(ByteLen::mib(64)))
}

/// Random bytes.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Dice::seeded(seed).fill(&mut bytes);
    bytes
}

#[test]
fn what_is_written_is_read_back_whatever_its_length() {
    for structured in [false, true] {
        let device = memory();
        let mut client = Client::with_disk(&one(device.clone()), structured);
        // Around the limits of brief requests, of the receive buffer and of the largest payload.
        let lengths = [1, 511, 4096, 65535, 65536, 65537, 131_072, 196_608, 1 << 20, 32 << 20];
        for (len, at) in lengths.into_iter().zip([0, 3, 4096, 77, 1 << 20, 5, 9, 8192, 6, 32 << 20])
        {
            let bytes = noise(len, len as u64);
            assert_eq!(client.write(0, at, &bytes), 0);
            let mut there = vec![0; len];
            device.read_at(ByteOffset::new(at), &mut there).unwrap();
            assert!(there == bytes, "{len} bytes at {at} arrived");
            let back = client.read(at, u32::try_from(len).unwrap()).unwrap();
            assert!(back == bytes, "{len} bytes at {at} came back");
        }
        client.hung_up();
    }
}

#[test]
fn a_read_is_one_chunk_when_it_is_small_or_must_not_be_fragmented() {
    let device = memory();
    device.write_at(ByteOffset::new(1 << 20), &[1; 4096]).unwrap();
    let mut client = Client::with_disk(&one(device), true);
    for (flags, len) in [(0, 65536), (DF, 65536), (DF, 2 << 20)] {
        client.request(READ, flags, 1, 0, len);
        let Reply::Chunk(1, true, 1, payload) = client.reply() else { panic!("not one chunk") };
        assert_eq!(payload.len(), 8 + len as usize);
    }
    client.hung_up();
}

#[test]
fn large_holes_are_not_sent() {
    let device = memory();
    let bytes = noise(65536, 1);
    device.write_at(ByteOffset::new(1 << 20), &bytes).unwrap();
    device.write_at(ByteOffset::new((1 << 20) + 70_000), &bytes[..4]).unwrap();
    let mut client = Client::with_disk(&one(device.clone()), true);
    client.request(READ, 0, 1, 4096, 2 << 20);
    let kinds: Vec<(bool, u16, usize)> = (0..3)
        .map(|_| match client.reply() {
            Reply::Chunk(1, last, kind, payload) => (last, kind, payload.len()),
            other => panic!("{other:?}"),
        })
        .collect();
    // 70 000 lies in the page after the next; the page between is a short hole, and sent.
    assert_eq!(kinds, [(false, 2, 12), (false, 1, 8 + 65536 + 8192), (true, 2, 12)]);
    let back = client.read(0, 4 << 20).unwrap();
    assert!(back == device.to_vec()[..4 << 20]);
    client.request(READ, 0, 1, 8 << 20, 1 << 20);
    assert!(matches!(client.reply(), Reply::Chunk(1, true, 2, _)));
    client.hung_up();
}

#[test]
fn reading_nothing_is_answered_with_nothing() {
    let exports = one(memory());
    let mut client = Client::with_disk(&exports, true);
    client.request(READ, 0, 1, 5, 0);
    assert_eq!(client.reply(), Reply::Chunk(1, true, 0, vec![]));
    client.hung_up();
    let mut client = Client::with_disk(&exports, false);
    assert_eq!(client.ask(READ, 0, 5, 0), 0);
    assert_eq!(client.write(0, 5, &[]), 0);
    for command in [TRIM, CACHE, WRITE_ZEROES] {
        assert_eq!(client.ask(command, 0, 64 << 20, 0), 0);
    }
    client.hung_up();
}

#[test]
fn block_status_tells_data_zeros_and_holes() {
    let device = memory();
    device.write_at(ByteOffset::new(8192), &[1; 4096]).unwrap();
    let mut client = Client::with_disk(&one(device), true);
    assert_eq!(client.status(0, 0, 16384), [(8192, 3), (4096, 0), (4096, 3)]);
    assert_eq!(client.status(0, 8193, 4096), [(4095, 0), (1, 3)], "never past the request");
    assert_eq!(client.status(REQ_ONE, 0, 16384), [(8192, 3)]);
    assert_eq!(client.status(0, 0, 64 << 20), [(8192, 3), (4096, 0), ((64 << 20) - 12288, 3)]);
    assert_eq!(client.ask(BLOCK_STATUS, 0, 0, 0), EINVAL);
    client.hung_up();
}

#[test]
fn block_status_of_a_whole_large_hole_is_one_extent() {
    let mut client = Client::with_disk(&one(Arc::new(zeros(ByteLen::gib(8)))), true);
    assert_eq!(client.status(0, 1 << 20, u32::MAX), [(u32::MAX, 3)]);
    client.hung_up();
}

#[test]
fn block_status_of_a_disk_in_shreds_is_cut_and_can_be_continued() {
    let device = memory();
    for page in 0..2000 {
        device.write_at(ByteOffset::new(page * 8192), &[1]).unwrap();
    }
    let mut client = Client::with_disk(&one(device), true);
    let first = client.status(0, 0, 64 << 20);
    assert_eq!(first.len(), 2048);
    let at: u32 = first.iter().map(|(len, _)| len).sum();
    let rest = client.status(0, at.into(), (64 << 20) - at);
    assert_eq!(at + rest.iter().map(|(len, _)| len).sum::<u32>(), 64 << 20);
    client.hung_up();
}

#[test]
fn trim_and_zeros_leave_zeros() {
    let device = memory();
    device.write_at(ByteOffset::ZERO, &[7; 65536]).unwrap();
    let mut client = Client::with_disk(&one(device), true);
    assert_eq!(client.ask(TRIM, FUA, 0, 4096), 0);
    assert_eq!(client.ask(WRITE_ZEROES, 0, 4096, 4096), 0);
    assert_eq!(client.ask(WRITE_ZEROES, FAST_ZERO, 8192, 4096), 0);
    assert_eq!(client.ask(WRITE_ZEROES, NO_HOLE | FUA, 12288, 4096), 0);
    assert_eq!(client.read(0, 16384), Ok(vec![0; 16384]));
    assert_eq!(client.read(16384, 4096), Ok(vec![7; 4096]));
    assert_eq!(client.status(0, 0, 20480), [(12288, 3), (8192, 0)], "NO_HOLE keeps the space");
    client.hung_up();
}

#[test]
fn zeros_that_keep_their_space_are_not_promised_to_be_fast() {
    let device = memory();
    device.write_at(ByteOffset::ZERO, &[7; 4096]).unwrap();
    let mut client = Client::with_disk(&one(device), true);
    assert_eq!(client.ask(WRITE_ZEROES, NO_HOLE | FAST_ZERO, 0, 4096), ENOTSUP);
    assert_eq!(client.read(0, 4096), Ok(vec![7; 4096]), "and nothing was changed");
    client.hung_up();
}

#[test]
fn fua_flushes_before_it_is_answered_and_only_where_something_changed() {
    let device = Arc::new(FaultDisk::new(MemoryDevice::new(ByteLen::mib(1))));
    let mut client = Client::with_disk(&one(device.clone()), false);
    let flushes = || device.calls(Act::Flush);
    assert_eq!(client.write(0, 0, &[1; 512]), 0);
    assert_eq!(flushes(), 0);
    assert_eq!(client.write(FUA, 0, &[1; 512]), 0);
    assert_eq!(flushes(), 1);
    assert_eq!(client.ask(TRIM, FUA, 0, 512), 0);
    assert_eq!(client.ask(WRITE_ZEROES, FUA, 0, 512), 0);
    assert_eq!(flushes(), 3);
    assert_eq!(client.ask(FLUSH, FUA, 0, 0), 0);
    assert_eq!(flushes(), 4);
    assert_eq!(client.ask(CACHE, FUA, 0, 512), 0);
    assert_eq!(flushes(), 4);
    client.hung_up();
}

#[test]
fn cache_reads_ahead() {
    let device = Arc::new(FaultDisk::new(MemoryDevice::new(ByteLen::mib(64))));
    let mut client = Client::with_disk(&one(device.clone()), false);
    assert_eq!(client.ask(CACHE, 0, 4096, 600 << 10), 0);
    assert_eq!(device.calls(Act::Read), 3);
    assert_eq!(client.ask(CACHE, 0, 64 << 20, 1), EINVAL);
    client.hung_up();
}

#[test]
fn requests_past_the_end_are_refused() {
    let end = 64 << 20;
    for structured in [false, true] {
        let mut client = Client::with_disk(&one(memory()), structured);
        assert_eq!(client.read(end - 1, 2), Err(EINVAL));
        assert_eq!(client.read(end - 1, 200 << 10), Err(EINVAL));
        assert_eq!(client.read(u64::MAX, 1), Err(EINVAL));
        assert_eq!(client.write(0, end - 1, &[1; 2]), ENOSPC);
        assert_eq!(client.write(FUA, u64::MAX, &[1; 2]), ENOSPC);
        assert_eq!(client.write(0, end - 1, &vec![1; 100_000]), ENOSPC);
        assert_eq!(client.ask(WRITE_ZEROES, 0, end - 1, 2), ENOSPC);
        assert_eq!(client.ask(TRIM, 0, end - 1, 2), EINVAL);
        assert_eq!(client.read(end - 1, 1), Ok(vec![0]), "and nothing was changed");
        client.hung_up();
    }
}

#[test]
fn changes_of_a_read_only_disk_are_not_permitted() {
    let mut client = Client::with_disk(&one(Arc::new(zeros(ByteLen::mib(1)))), true);
    assert_eq!(client.write(0, 0, &[1; 512]), EPERM);
    assert_eq!(client.write(0, 0, &[1; 100_000]), EPERM);
    assert_eq!(client.ask(TRIM, 0, 0, 512), EPERM);
    assert_eq!(client.ask(WRITE_ZEROES, 0, 0, 512), EPERM);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    client.hung_up();
}

#[test]
fn what_is_not_understood_is_invalid_and_the_connection_goes_on() {
    let mut client = Client::with_disk(&one(memory()), true);
    assert_eq!(client.ask(8, 0, 0, 512), EINVAL);
    assert_eq!(client.ask(999, 0, 0, 512), EINVAL);
    for (command, flags) in
        [(READ, NO_HOLE), (TRIM, DF), (FLUSH, REQ_ONE), (WRITE_ZEROES, 1 << 15), (CACHE, 1 << 5)]
    {
        assert_eq!(client.ask(command, flags, 0, 512), EINVAL, "{command} {flags}");
    }
    assert_eq!(client.write(NO_HOLE, 0, &[1; 512]), EINVAL, "its payload is skipped");
    assert_eq!(client.read(0, 4), Ok(vec![0; 4]));
    client.hung_up();
    let mut plain = Client::with_disk(&one(memory()), false);
    assert_eq!(plain.ask(READ, DF, 0, 512), EINVAL);
    assert_eq!(plain.ask(BLOCK_STATUS, 0, 0, 512), EINVAL);
    plain.hung_up();
}

#[test]
fn a_read_that_is_too_long_is_refused() {
    let mut client = Client::with_disk(&one(memory()), true);
    assert_eq!(client.ask(READ, 0, 0, (32 << 20) + 1), EINVAL);
    assert_eq!(client.ask(READ, DF, 0, u32::MAX), EOVERFLOW);
    assert_eq!(client.read(0, 32 << 20).map(|bytes| bytes.len()), Ok(32 << 20));
    client.hung_up();
}

#[test]
fn what_was_sent_before_a_disconnect_is_carried_out() {
    let device = memory();
    let mut client = Client::with_disk(&one(device.clone()), false);
    let mut bytes = Vec::new();
    for index in 0..100_u8 {
        let flags = if index % 3 == 0 { FUA } else { 0 };
        bytes.extend(request(WRITE, flags, index.into(), u64::from(index) * 512, 512));
        bytes.extend([index + 1; 512]);
    }
    bytes.extend(request(DISCONNECT, 0, 0, 0, 0));
    client.send(&bytes);
    client.cut_off();
    let there = device.to_vec();
    for (sector, index) in there.chunks(512).zip(1..=100_u8) {
        assert_eq!(sector, [index; 512]);
    }
}
