//! A pool that anybody changed, with right checksums, opens or is refused, and can be used or says why not.
#![no_main]

use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice};
use kiln_parallax::{DiskOptions, Pool, PoolOptions};

const POOL: &[u8] = include_bytes!("../../crates/parallax/tests/golden/pool-1.bin");

// Each four bytes change one of the pool's: which of the stored blocks, where in it, and to what.
libfuzzer_sys::fuzz_target!(|changes: &[u8]| {
    let device = MemoryDevice::new(ByteLen::mib(2));
    let mut blocks: Vec<Vec<u8>> = POOL.chunks(8 + 4096).map(<[u8]>::to_vec).collect();
    for change in changes.chunks_exact(4) {
        let block = usize::from(change[0]) % blocks.len();
        let at = usize::from(u16::from_le_bytes([change[1], change[2]])) % 4096;
        blocks[block][8 + at] = change[3];
    }
    for block in &blocks {
        let number = u64::from_le_bytes(block[..8].try_into().expect("eight bytes"));
        device.write_at(ByteOffset::new(number * 4096), &block[8..]).expect("within the pool");
    }
    let options = PoolOptions { cache: ByteLen::mib(1), background: false, ..PoolOptions::default() };
    let device = Arc::new(device);
    let pool = match Pool::open(device.clone(), &options) {
        Ok(pool) => pool,
        Err(_) => match Pool::repair(device, &options) {
            Ok(pool) => pool,
            Err(_) => return,
        },
    };
    let mut bytes = vec![0; 65536];
    for disk in pool.disks() {
        let Ok(handle) = pool.open_disk(&disk.name) else { continue };
        let len = bytes.len().min(disk.size.to_usize().unwrap_or(0));
        let _ = handle.read_at(ByteOffset::ZERO, &mut bytes[..len]);
        let _ = handle.extents(ByteOffset::ZERO, ByteLen::of(&bytes[..len]));
        let _ = handle.write_at(ByteOffset::ZERO, &vec![1; len.min(5000)]);
        let _ = handle.flush();
        drop(handle);
        for snapshot in pool.snapshots(&disk.name).unwrap_or_default() {
            let _ = pool.diff(&disk.name, &snapshot.name, None);
            let _ = pool.clone_disk(&disk.name, &snapshot.name, "clone", &DiskOptions::default());
            let _ = pool.rollback(&disk.name, &snapshot.name);
            let _ = pool.delete_snapshot(&disk.name, &snapshot.name);
        }
        let _ = pool.delete(&disk.name);
    }
    let _ = pool.gc();
    let _ = pool.verify(true);
});
