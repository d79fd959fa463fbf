//! The files of a supermin appliance: names of packages, host files and exclusions with wildcards, archives, each
//! perhaps compressed.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use kiln_image::supermin::fuzzing;

/// A folder for the appliance, and one taken for `/`.
fn folders() -> &'static [PathBuf; 2] {
    static FOLDERS: OnceLock<[PathBuf; 2]> = OnceLock::new();
    FOLDERS.get_or_init(|| {
        let all = std::env::temp_dir().join(format!("kiln-fuzz-supermin-{}", std::process::id()));
        let system = all.join("system");
        for name in ["etc/a", "etc/b/c", "etc/.hidden"] {
            fs::create_dir_all(system.join(name)).expect("there is room for it");
            fs::write(system.join(name).join("x.conf"), "").expect("room");
        }
        fs::create_dir_all(all.join("supermin.d")).expect("room");
        [all.join("supermin.d"), system]
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // What leads out of the folder may lead anywhere, and there is much.
    if data.windows(2).any(|two| two == b"..") {
        return;
    }
    let [appliance, system] = folders();
    for (number, part) in (0..3).zip(data.split(|byte| *byte == 0xff).chain([&b""[..]; 3])) {
        fs::write(appliance.join(number.to_string()), part).expect("room");
    }
    let _ = fuzzing::read(appliance, system);
});
