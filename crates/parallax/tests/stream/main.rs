//! Disks that are sent from one pool to another: whole, in part, damaged, to the wrong place.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cut;
mod power;
mod same;
mod wrong;

use std::ops::ControlFlow;
use std::sync::Arc;

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice};
use kiln_parallax::stream::{ReceiveOptions, Received, SendOptions, StreamError};
use kiln_parallax::{DiskOptions, Pool, PoolOptions};

const SIZE: u64 = 12 << 20;

fn options() -> PoolOptions {
    PoolOptions { log: ByteLen::mib(1), ..PoolOptions::default() }
}

fn pool() -> Pool {
    Pool::create(Arc::new(MemoryDevice::new(ByteLen::mib(128))), &options()).unwrap()
}

fn pool_with(disk: &str) -> Pool {
    let pool = pool();
    pool.create_disk(disk, ByteLen::new(SIZE), &DiskOptions::default()).unwrap();
    pool
}

/// Writes, zeros and discards here and there, more where there is less.
fn change(pool: &Pool, disk: &str, seed: u64, times: usize) {
    let mut dice = Dice::seeded(seed);
    let device = pool.open_disk(disk).unwrap();
    let size = device.size().get();
    for _ in 0..times {
        let at = dice.below(size - 8192);
        let len = (1 + dice.below(150_000)).min(size - at);
        let mut bytes = vec![0x42; usize::try_from(len).unwrap()];
        let (at, len) = (ByteOffset::new(at), ByteLen::new(len));
        match dice.below(6) {
            0 => device.discard(at, len).unwrap(),
            1 => device.write_zeroes(at, len, false).unwrap(),
            2 => device.write_at(at, &vec![0; bytes.len()]).unwrap(),
            3 => device.write_at(at, &bytes).unwrap(),
            _ => {
                dice.fill(&mut bytes);
                device.write_at(at, &bytes).unwrap();
            }
        }
    }
    device.flush().unwrap();
}

fn bytes_of(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![1; device.size().to_usize().unwrap()];
    device.read_at(ByteOffset::ZERO, &mut bytes).unwrap();
    bytes
}

fn content(pool: &Pool, disk: &str, snapshot: &str) -> Vec<u8> {
    bytes_of(&pool.open_snapshot(disk, snapshot).unwrap())
}

fn send(pool: &Pool, disk: &str, snapshot: &str, options: &SendOptions<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let sent =
        pool.send(disk, snapshot, options, &mut out, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(sent.bytes, out.len() as u64);
    out
}

fn receive(pool: &Pool, stream: &[u8]) -> Result<Received, StreamError> {
    let mut input = stream;
    pool.receive(&mut input, &ReceiveOptions::default(), &mut |_| ControlFlow::Continue(()))
}

fn assert_same(a: &Pool, b: &Pool, disk: &str, snapshot: &str) {
    assert!(content(a, disk, snapshot) == content(b, disk, snapshot), "{disk}@{snapshot}");
}

/// Nothing is wrong with a pool, whatever it went through.
fn assert_sound(pool: &Pool) {
    let report = pool.verify(true).unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
}
