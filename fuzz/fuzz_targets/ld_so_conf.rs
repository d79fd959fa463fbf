//! The loader's configuration gives absolute directories.
#![no_main]

use kiln_image::closure::ld_so_conf::{Line, parse};

libfuzzer_sys::fuzz_target!(|text: &str| {
    for line in parse(text) {
        if let Line::Directory(path) = line {
            assert!(path.is_absolute());
        }
    }
});
