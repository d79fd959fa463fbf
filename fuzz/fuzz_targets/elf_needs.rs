//! Programs and libraries of anybody's making say what they need or are refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(needs) = kiln_image::elf::needs(bytes) {
        assert!(needs.libraries.iter().all(|name| name.len() < 4096 && !name.contains(&0)));
    }
});
