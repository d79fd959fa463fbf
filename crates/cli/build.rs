//! Embeds the guest executable, if it was built, so that the single binary works alone.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let variable = |name: &str| PathBuf::from(env::var_os(name).unwrap_or_default());
    println!("cargo::rerun-if-env-changed=KILN_GUEST_EMBED");
    let root = variable("CARGO_MANIFEST_DIR").join("../..").canonicalize()?;
    let guest = env::var_os("KILN_GUEST_EMBED").map_or_else(|| built_guest(&root), PathBuf::from);
    println!("cargo::rerun-if-changed={}", guest.display());
    let embedded = match guest.is_file() {
        true => format!("Some(include_bytes!({:?}))", guest.display().to_string()),
        false => "None".to_owned(),
    };
    let code = format!("pub(super) const GUEST: Option<&[u8]> = {embedded};\n");
    fs::write(variable("OUT_DIR").join("embedded.rs"), code)
}

/// Where `make guest` leaves the guest executable.
fn built_guest(root: &Path) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    target.join("x86_64-unknown-linux-gnu/guest/kiln-guest")
}
