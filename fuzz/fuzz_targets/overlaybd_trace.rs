//! A trace of anybody's making, as text or by layer, perhaps in a tar, is read or refused; one by layer speaks of the disk, and
//! reads back as it is written.
#![no_main]

use std::io::Cursor;
use std::sync::{Arc, OnceLock};

use kiln_block::{BlockDevice, BlockSource as _, ByteLen, ByteOffset, MemoryDevice};
use kiln_overlaybd::{BlockCache, Input, Layer, OpenOptions, Sealing, Stack, Trace, pack};

/// Two layers that hold the same places and others.
fn stack() -> &'static Stack {
    static STACK: OnceLock<Stack> = OnceLock::new();
    STACK.get_or_init(|| {
        let layers = [[0, 40_000], [20_000, 100_000]].map(|places| {
            let disk: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(ByteLen::kib(256)));
            for at in places {
                disk.write_at(ByteOffset::new(at), &[1; 30_000]).expect("it has room");
            }
            let packed = pack("disk", &disk, Cursor::new(Vec::new()), &Sealing::default());
            let bytes = packed.expect("memory does not fail").out.into_inner();
            let cache = Arc::new(BlockCache::new(ByteLen::kib(256)));
            let input = Input::new("layer", Arc::new(MemoryDevice::holding(&bytes)));
            Layer::open(input, &OpenOptions { cache, threads: 1 }).expect("it was just written")
        });
        Stack::new(layers.into()).expect("two are few")
    })
}

/// CRC-32C without inversions.
fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |state, byte| {
        (0..8).fold(state ^ u32::from(*byte), |state, _| {
            if state & 1 == 1 { state >> 1 ^ 0x82f6_3b78 } else { state >> 1 }
        })
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let inside = Trace::from_tar(bytes, "trace");
    let _ = inside.map(|bytes| Trace::of_layers(&bytes, "trace", stack()));
    if let Ok(trace) = std::str::from_utf8(bytes).map(|text| Trace::parse(text, "trace"))
        && let Ok(trace) = trace
    {
        assert_eq!(Trace::parse(&trace.to_text(), "trace").expect("it was just written"), trace);
        let _ = Trace::of_layers(&trace.to_layers(stack()), "trace", stack()).expect("so was it");
    }
    // With a size and a CRC that are right nothing stands before the records.
    let mut records = vec![0x20, 0x18, 0xef, 0xc2, 0, 0, 0, 0];
    records.extend((bytes.len() as u64).to_le_bytes());
    records.extend(crc(&bytes[..bytes.len() / 24 * 24]).to_le_bytes());
    records.extend([0; 4]);
    records.extend(bytes);
    let trace = Trace::of_layers(&records, "trace", stack()).expect("its CRC is right");
    assert!(trace.bytes() <= stack().size().get());
    let again = Trace::of_layers(&trace.to_layers(stack()), "trace", stack());
    assert_eq!(again.expect("it was just written"), trace);
});
