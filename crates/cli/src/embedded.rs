//! The guest executable, which travels inside the `kiln` binary.

use std::path::PathBuf;

use kiln_image::cache::GuestExecutable;

use crate::exit::Exit;
use crate::failure::Failure;

mod generated {
    include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
}

/// Whether a guest executable was built in.
pub(crate) fn has_guest() -> bool {
    generated::GUEST.is_some()
}

/// The guest executable: the configured one, else the embedded one.
pub(crate) fn guest(configured: Option<PathBuf>) -> Result<GuestExecutable, Failure> {
    match (configured, generated::GUEST) {
        (Some(path), _) if path.is_file() => Ok(GuestExecutable::File(path)),
        (Some(path), _) => {
            let text = format!("the guest executable {} is not there", path.display());
            Err(Failure::new(Exit::Setup, text)
                .hint("build it with `make guest`, or unset KILN_GUEST to use the built-in one"))
        }
        (None, Some(bytes)) => Ok(GuestExecutable::Bytes(bytes.into())),
        (None, None) => {
            Err(Failure::new(Exit::Setup, "this kiln was built without a guest executable").hint(
                "run `make guest` in Kiln's source tree and build again, or set KILN_GUEST to one",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_guest_names_make_guest() {
        let failure = guest(Some("/no/such".into())).unwrap_err();
        assert_eq!(failure.exit, Exit::Setup);
        assert!(failure.hints[0].contains("make guest"));
    }
}
