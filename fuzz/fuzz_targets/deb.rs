//! A Debian package, and a list of packages.
#![no_main]


use kiln_image::kernel::fetch::parse_package_list;
use kiln_image::kernel::{Limits, read_deb};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let limits = Limits { bytes: 1 << 20, entries: 100 };
    let mut all = 0;
    let _ = read_deb(data, limits, &mut |file, bytes| {
        assert!(!file.path.starts_with('/') && file.path.split('/').all(|part| part != ".."));
        let mut read = Vec::new();
        bytes.read_to_end(&mut read)?;
        all += read.len();
        Ok(())
    });
    assert!(all <= 1 << 20);
    if let Ok(text) = std::str::from_utf8(data) {
        parse_package_list(text);
    }
});
