//! A boot image and the kernel packed in it.
#![no_main]

use kiln_image::kernel::{decompress, parse_boot_image};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(header) = parse_boot_image(data)
        && let Some(payload) = header.payload
    {
        let _ = decompress(&data[payload], 1 << 20);
    }
    if let Ok(plain) = decompress(data, 1 << 20) {
        assert!(plain.len() <= 1 << 20);
    }
});
