//! A layer of anybody's making, in a tar, compressed, or neither, opens and reads or is refused.
#![no_main]

use std::sync::Arc;

use kiln_block::{BlockDevice, BlockSource, ByteLen, ByteOffset, MemoryDevice, ReadOnly};
use kiln_overlaybd::{BlockCache, Input, Layer, OpenOptions, Stack};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let input = Input::new("layer", Arc::new(MemoryDevice::holding(bytes)));
    let options = OpenOptions { cache: Arc::new(BlockCache::new(ByteLen::kib(256))), threads: 1 };
    let Ok(layer) = Layer::open(input, &options) else { return };
    let Ok(stack) = Stack::new(vec![layer]) else { return };
    let disk = ReadOnly(stack);
    let size = disk.size().get();
    for segment in disk.0.segments().iter().take(16) {
        let Some(at) = segment.start.checked_mul(512).filter(|at| at + 512 <= size) else {
            continue;
        };
        let mut sector = [0; 512];
        let _ = disk.read_at(ByteOffset::new(at), &mut sector);
    }
    if size > 0 {
        let found = disk.0.extents(ByteOffset::ZERO, ByteLen::new(size)).expect("no I/O");
        let covered: u64 = found.iter().map(|extent| extent.len.get()).sum();
        assert_eq!(covered, size);
    }
});
