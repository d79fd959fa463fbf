//! What may go wrong with a machine before it runs.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use crate::qmp::QmpError;

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// No emulator was found.
    #[error(
        "QEMU is not installed: there is no qemu-system-x86_64 on the PATH; install it with `sudo apt install qemu-system-x86` (Debian, Ubuntu) or `sudo dnf install qemu-system-x86-core` (Fedora)"
    )]
    NoQemu,
    /// What was taken for one is something else.
    #[error("{path} is not QEMU: asked for its version it said {said:?}; name another with `qemu`", path = path.display())]
    NotQemu {
        /// The program.
        path: PathBuf,
        /// The first line it said, cut.
        said: String,
    },
    /// The emulator is too old.
    #[error("{path} is QEMU {version}; Kiln needs {oldest} or later", path = path.display())]
    OldQemu {
        /// The program.
        path: PathBuf,
        /// Its version.
        version: String,
        /// The oldest supported.
        oldest: String,
    },
    /// The host refused something.
    #[error("cannot {act} {path}", path = path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// QEMU ended before the machine ran.
    #[error("QEMU ended before the machine ran ({status}); it said: {stderr}")]
    Stillborn {
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to standard error, bounded.
        stderr: String,
    },
    /// QEMU runs and cannot be talked to.
    #[error("QEMU started and cannot be controlled")]
    Control(#[from] QmpError),
    /// A machine was not saved, or a saved one does not come back.
    #[error("cannot {act} the machine: {why}")]
    Snapshot {
        /// `save` or `restore`.
        act: &'static str,
        /// Why not.
        why: String,
    },
    /// The machine makes no sense.
    #[error("{0}")]
    Spec(String),
}
