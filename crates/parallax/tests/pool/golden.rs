//! A pool made by the first version of the format is opened by every build since.

use std::path::Path;
use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice};
use kiln_parallax::Pool;

use crate::world::{Model, Op, model_of, pool_on, small, step};

const SIZE: ByteLen = ByteLen::mib(2);

fn make() -> (Vec<u8>, Model) {
    let device = Arc::new(MemoryDevice::new(SIZE));
    let pool = pool_on(device.clone());
    let mut model = Model::new();
    for op in [
        Op::Create("a", 3072),
        Op::Write("a", 0, 40, 1),
        Op::Snapshot("a", "s"),
        Op::Clone("a", "s", "b"),
        Op::Write("a", 8, 8, 2),
        Op::Write("b", 2048, 16, 3),
        Op::Snapshot("a", "t"),
        Op::DeleteSnapshot("a", "t"),
        Op::Write("a", 16, 24, 4),
        Op::Zero("b", 0, 8),
        Op::Flush,
    ] {
        step(&pool, &mut model, &op);
    }
    (device.to_vec(), model)
}

/// The file holds only the blocks that are not zeros, each behind its number.
#[test]
fn a_pool_of_version_1_opens_with_all_it_had() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pool-1.bin");
    let (made, model) = make();
    if std::env::var_os("KILN_BLESS").is_some() {
        let blocks = (0_u64..).zip(made.chunks(4096));
        let kept = blocks.filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0));
        let file: Vec<u8> =
            kept.flat_map(|(n, bytes)| [&n.to_le_bytes()[..], bytes].concat()).collect();
        std::fs::write(&path, file).unwrap();
    }
    let file = std::fs::read(&path).unwrap();
    let device = MemoryDevice::new(SIZE);
    for block in file.chunks(8 + 4096) {
        let number = u64::from_le_bytes(block[..8].try_into().unwrap());
        device.write_at(ByteOffset::new(number * 4096), &block[8..]).unwrap();
    }
    let bytes = device.to_vec();
    let superblock = [&bytes[..4096], &bytes[2 * 4096..3 * 4096]];
    assert!(superblock.iter().all(|slot| slot.starts_with(b"\x89KPX\r\n\x1a\n\x01\0\0\0")));
    let pool = Pool::open(Arc::new(device), &small()).unwrap();
    assert_eq!(model_of(&pool).unwrap(), model);
    let report = pool.verify(true).unwrap();
    assert!(report.is_clean(), "{report:?}");
}
