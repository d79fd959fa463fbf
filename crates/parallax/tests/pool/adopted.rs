//! A clone to be thrown away, written to through many owners, none of which ended well.

use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice};
use kiln_parallax::{DiskOptions, Durability, Pool};

use crate::world::{pool_on, small};

#[test]
fn what_was_settled_outlives_one_killed_owner_after_another() {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(64)));
    let pool = pool_on(device.clone());
    pool.create_disk("base", ByteLen::mib(16), &DiskOptions::default()).unwrap();
    pool.open_disk("base").unwrap().write_at(ByteOffset::ZERO, &[0xba; 1 << 20]).unwrap();
    pool.snapshot("base", "ready").unwrap();
    pool.flush().unwrap();
    let options = DiskOptions { durability: Durability::None, ..DiskOptions::default() };
    pool.clone_disk("base", "ready", "vm", &options).unwrap();
    let mut pool = Some(pool);
    let mut expected = vec![0_u8; 16 << 20];
    expected[..1 << 20].fill(0xba);
    for owner in 1..=5_u8 {
        let disk = pool.as_ref().unwrap().open_disk("vm").unwrap();
        for at in 0..24_usize {
            let start = at * 600_000 + usize::from(owner) * 8192;
            let at = ByteOffset::new(u64::try_from(start / 4096 * 4096).unwrap());
            disk.write_at(at, &[owner; 12288]).unwrap();
            disk.settle().unwrap();
            let start = start / 4096 * 4096;
            expected[start..start + 12288].fill(owner);
        }
        drop(disk);
        // Killed: nothing is stored on the way out.
        drop(pool.take());
        pool = Some(Pool::open(device.clone(), &small()).unwrap());
        let mut found = vec![0; 16 << 20];
        let disk = pool.as_ref().unwrap().open_disk("vm").unwrap();
        disk.read_at(ByteOffset::ZERO, &mut found).unwrap();
        let wrong = (0..found.len()).step_by(4096).find(|at| found[*at] != expected[*at]);
        assert_eq!(wrong, None, "after owner {owner}");
        assert!(pool.as_ref().unwrap().verify(true).unwrap().is_clean(), "after owner {owner}");
    }
}
