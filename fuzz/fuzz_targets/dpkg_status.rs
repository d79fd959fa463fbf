//! The database of installed packages: status, file lists and diversions, and what a package needs.
#![no_main]

use std::fs;

use kiln_image::packages::Packages;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(3, |byte| *byte == 0);
    let root = std::env::temp_dir().join(format!("kiln-fuzz-dpkg-{}", std::process::id()));
    let database = root.join("var/lib/dpkg");
    fs::create_dir_all(database.join("info")).expect("there is room for it");
    for name in ["status", "info/a.list", "diversions"] {
        fs::write(database.join(name), parts.next().unwrap_or_default()).expect("room");
    }
    if let Ok(packages) = Packages::read(&root) {
        let _ = packages.closure(["a"]);
    }
    let _ = fs::remove_dir_all(&root);
});
