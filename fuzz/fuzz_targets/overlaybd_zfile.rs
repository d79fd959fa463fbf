//! A ZFile of anybody's making: header, jump table and blocks behind a sound magic.
#![no_main]

use std::sync::Arc;

use kiln_block::{BlockSource, ByteLen, MemoryDevice};
use kiln_overlaybd::{BlockCache, Input, ZFile};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut file = b"ZFile\0\x01\0tuji.yyf@Alibaba".to_vec();
    file.extend(bytes);
    if let Some(flags) = file.get_mut(32) {
        // With digests nothing behind them would ever be reached.
        *flags &= !0x10;
    }
    let input = Input::new("zfile", Arc::new(MemoryDevice::holding(&file)));
    let cache = Arc::new(BlockCache::new(ByteLen::kib(256)));
    let Ok(zfile) = ZFile::open(input, cache, 1) else { return };
    // A block takes at least a byte of the file, so content is bounded by it.
    assert!(zfile.size().get() <= file.len() as u64 * 65536);
    let _ = zfile.damaged_blocks(1);
});
