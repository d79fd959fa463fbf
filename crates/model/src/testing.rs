//! What tests with real machines boot: one answer for every crate, so that all of them test the same.

use std::fs;
use std::path::PathBuf;

/// The boot image to test with: named by `KILN_TEST_KERNEL`, else the one that `make kernel` fetched last. Its modules
/// are at `../lib/modules/RELEASE`.
///
/// # Panics
/// When there is none, saying how to get one.
pub fn kernel() -> PathBuf {
    if let Some(image) = variable("KILN_TEST_KERNEL") {
        assert!(image.is_file(), "KILN_TEST_KERNEL names {}, which is no file", image.display());
        return image;
    }
    let cache = variable("KILN_HOME")
        .map(|home| home.join("cache"))
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("kiln")))
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache/kiln")));
    let fetched = cache.and_then(|cache| fs::read_dir(cache.join("kernels")).ok());
    let images = fetched.into_iter().flatten().flatten().filter_map(|entry| {
        let release = entry.file_name().into_string().ok()?;
        let image = entry.path().join(format!("boot/vmlinuz-{release}"));
        Some((fs::metadata(&image).ok()?.modified().ok()?, image))
    });
    let Some((_, image)) = images.max() else {
        panic!("no kernel to test with: run `make kernel`, or set KILN_TEST_KERNEL");
    };
    image
}

/// The static guest executable: named by `KILN_GUEST`, else the one that `make guest` built beside this test.
///
/// # Panics
/// When there is none, saying how to get one.
pub fn guest_executable() -> PathBuf {
    let guest = variable("KILN_GUEST").unwrap_or_else(|| {
        // A test is TARGET/PROFILE/deps/NAME.
        let test = std::env::current_exe().unwrap_or_default();
        let target = test.ancestors().nth(3).map(PathBuf::from).unwrap_or_default();
        target.join("x86_64-unknown-linux-gnu/guest/kiln-guest")
    });
    assert!(guest.is_file(), "no guest executable at {}: run `make guest`", guest.display());
    guest
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}
