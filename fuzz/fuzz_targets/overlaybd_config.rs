//! The configuration of an image is read or refused.
#![no_main]

use kiln_overlaybd::Config;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(config) = Config::parse(text, "config.v1.json") {
        assert!(config.lowers.len() <= 255);
        assert!(!config.lowers.is_empty() || config.upper.is_some());
    }
});
