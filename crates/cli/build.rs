//! Embeds what the single binary needs: the guest executable, if it was built, and the shipped scenarios.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let root = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let mut code = String::new();

    println!("cargo::rerun-if-env-changed=KILN_GUEST_EMBED");
    let guest = env::var_os("KILN_GUEST_EMBED").map_or_else(|| built_guest(&root), PathBuf::from);
    println!("cargo::rerun-if-changed={}", guest.display());
    let embedded = match guest.is_file() {
        true => format!("Some(include_bytes!({:?}))", guest.display().to_string()),
        false => "None".to_owned(),
    };
    let _infallible = writeln!(code, "pub(super) const GUEST: Option<&[u8]> = {embedded};");

    let mut files = Vec::new();
    for folder in ["scenarios", "manifests"] {
        let folder = root.join(folder);
        // A folder that is watched is watched with everything in it.
        if folder.is_dir() {
            println!("cargo::rerun-if-changed={}", folder.display());
            collect(&folder, &mut files)?;
        }
    }
    files.sort();
    let _infallible = writeln!(code, "pub(super) const FILES: &[(&str, &[u8])] = &[");
    for file in files {
        let name = file.strip_prefix(&root).map_err(io::Error::other)?;
        let (name, path) = (name.display().to_string(), file.display().to_string());
        let _infallible = writeln!(code, "    ({name:?}, include_bytes!({path:?})),");
    }
    code.push_str("];\n");
    fs::write(Path::new(&variable("OUT_DIR")).join("embedded.rs"), code)
}

/// Where `make guest` leaves the guest executable.
fn built_guest(root: &Path) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    target.join("x86_64-unknown-linux-gnu/guest/kiln-guest")
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => collect(&path, files)?,
            false => files.push(path),
        }
    }
    Ok(())
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}
