//! The guest executable, which travels inside the `kiln` binary.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};

mod generated {
    include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
}

/// Whether a guest executable was built in.
pub(crate) fn has_guest() -> bool {
    generated::GUEST.is_some()
}

/// The guest executable as a file: the configured one, else the embedded one, unpacked into the cache.
pub(crate) fn guest(configured: Option<PathBuf>, cache: &Path) -> Result<PathBuf, Failure> {
    if let Some(path) = configured {
        return match path.is_file() {
            true => Ok(path),
            false => Err(Failure::new(
                Exit::Setup,
                format!("the guest executable {} is not there", path.display()),
            )
            .hint("build it with `make guest`, or unset KILN_GUEST to use the built-in one")),
        };
    }
    let Some(bytes) = generated::GUEST else {
        return Err(Failure::new(Exit::Setup, "this kiln was built without a guest executable")
            .hint(
                "run `make guest` in Kiln's source tree and build again, or set KILN_GUEST to one",
            ));
    };
    unpack(bytes, &cache.join("guest"))
        .tried(|| format!("cannot unpack the guest executable below {}", cache.display()))
        .exits(Exit::Setup)
        .hint("free some space there, or move Kiln's folders with KILN_HOME")
}

/// Writes the bytes to a file named by their digest, unless it is there already. The rename makes sure that no
/// other process ever sees half of it.
fn unpack(bytes: &[u8], folder: &Path) -> io::Result<PathBuf> {
    let path = folder.join(format!("kiln-guest-{}", &blake3::hash(bytes).to_hex()[..16]));
    if path.metadata().is_ok_and(|about| about.len() == bytes.len() as u64) {
        return Ok(path);
    }
    std::fs::create_dir_all(folder)?;
    let temporary = folder.join(format!(".kiln-guest.{}", std::process::id()));
    let written = (|| {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o755)
            .open(&temporary)?;
        file.write_all(bytes)?;
        std::fs::rename(&temporary, &path)
    })();
    if written.is_err() {
        let _already_gone = std::fs::remove_file(&temporary);
    }
    written.map(|()| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unpacked_guest_is_whole_executable_and_found_again() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let first = unpack(b"not an ELF", folder.path()).unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), b"not an ELF");
        assert_eq!(first.metadata().unwrap().permissions().mode() & 0o700, 0o700);
        std::fs::write(&first, b"torn").unwrap();
        assert_eq!(unpack(b"not an ELF", folder.path()).unwrap(), first);
        assert_eq!(std::fs::read(&first).unwrap(), b"not an ELF");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_guest_names_make_guest() {
        let failure = guest(Some("/no/such".into()), Path::new("/")).unwrap_err();
        assert_eq!(failure.exit, Exit::Setup);
        assert!(failure.hints[0].contains("make guest"));
    }
}
