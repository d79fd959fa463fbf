//! A tar around a layer: whatever its headers say, what is read stays within the file.
#![no_main]

use std::sync::Arc;

use kiln_block::{ByteLen, MemoryDevice};
use kiln_overlaybd::{BlockCache, Input, Layer, OpenOptions};

/// Makes a block a header, as far as a reader cares.
fn seal(block: &mut [u8]) {
    block[257..262].copy_from_slice(b"ustar");
    block[263..265].copy_from_slice(b"00");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut file = bytes.to_vec();
    for at in [0, 1024] {
        if let Some(block) = file.get_mut(at..at + 512) {
            seal(block);
        }
    }
    let input = Input::new("tar", Arc::new(MemoryDevice::holding(&file)));
    let options = OpenOptions { cache: Arc::new(BlockCache::new(ByteLen::kib(256))), threads: 1 };
    let _ = Layer::open(input, &options);
});
