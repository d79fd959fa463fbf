//! A client's side of an NBD conversation, from its first byte on.
#![no_main]

#[path = "nbd/memory.rs"]
mod memory;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Flags that let every conversation begin; the rest is the fuzzer's.
    let channel = memory::Memory::saying(&[&3_u32.to_be_bytes(), bytes].concat());
    let _ = kiln_export::nbd::serve(&channel, &memory::disk());
    assert!(channel.told().starts_with(b"NBDMAGICIHAVEOPT"));
});
