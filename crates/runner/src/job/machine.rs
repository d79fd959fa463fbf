//! The seam between executing a job and the machine that it is executed on.
//!
//! The real machine is QEMU with Kiln's guest in it ([`super::qemu`]); the tests use one that plays a script, so that
//! every rule of execution is tested without a kernel.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_model::StageName;
use kiln_model::event::{Acceleration, NoteLevel};
use kiln_model::job::Stage;

use super::disks::Kept;
use crate::watch::Sign;

/// Most bytes of artifacts one stage may bring home.
pub(crate) const ARTIFACT_BYTES: u64 = 256 << 20;
/// Most files and folders of them.
pub(crate) const ARTIFACT_ENTRIES: u32 = 10_000;

/// Makes machines, one after the other.
pub(crate) trait Machines {
    /// Starts the next one. It is not ready yet: [`News::Ready`] says when it is. An error is
    /// the host's fault.
    fn start(&mut self, number: u32) -> Result<Box<dyn Machine>, String>;
}

/// One machine. Dropping it ends it at once and frees its disks.
pub(crate) trait Machine {
    /// What executes it, and its process.
    fn identity(&self) -> (Acceleration, u32);

    /// The next thing it says, waiting at most this long.
    fn next(&mut self, patience: Duration) -> Option<News>;

    /// Starts a stage's script on a terminal; its exit arrives as a sign.
    fn launch(&mut self, stage: &Stage, environment: &[(String, String)]) -> Result<(), String>;

    /// Ends the stage's script and everything it started.
    fn cancel(&mut self);

    /// Whether there is something at a path in the guest.
    fn exists(&mut self, path: &str) -> Result<bool, String>;

    /// Brings files home into a folder, which is made if anything comes.
    fn pull(&mut self, patterns: &[String], into: &Path) -> Result<Pulled, String>;

    /// Makes the kernel tell where it stands (sysrq) and reads the processors' registers. What the kernel says comes
    /// as console signs.
    fn diagnose(&mut self) -> Option<String>;

    /// What this host did that its kernel must not be blamed for: a full pool, for one.
    fn host_trouble(&mut self) -> Option<String>;

    /// What of its root disk this host could not let it read. Nothing that runs there can be trusted after that, not even to
    /// have passed: a program or a file of the test itself may have been missing.
    fn misread(&mut self) -> Option<String> {
        None
    }

    /// What its disks take of the pool beyond what they started as, and how large they look, in bytes; nothing where none
    /// started as something.
    fn own_bytes(&mut self) -> Option<(u64, u64)> {
        None
    }

    /// Keeps the disks in the pool, as they are after this stage. The machine goes on.
    fn keep_disks(&mut self, stage: &StageName) -> Result<Vec<Kept>, String>;

    /// Saves it as it is, for others to start from, if that is wanted and was not done by somebody else. Says what came in
    /// between; the machine goes on.
    fn save_prepared(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Ends it: politely if there is hope that it listens. Says how it went, for a person.
    fn end(self: Box<Self>, politely: bool) -> String;
}

/// What a machine says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// It booted, or came back: wall and CPU time from exec to the agent's hello, in milliseconds.
    Ready { boot_ms: u64, boot_cpu_ms: u64, restored: bool, prepared: bool },
    /// Something a person should know.
    Told(NoteLevel, String),
    /// It runs, and will never be ready.
    Failed(String),
    /// Something that bears on a stage.
    Sign(Sign),
}

/// What a pull brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pulled {
    /// The files.
    pub(crate) saved: Vec<Saved>,
    /// Whether there was more than may be brought.
    pub(crate) truncated: bool,
    /// What could not be had, and why.
    pub(crate) troubles: Vec<String>,
}

/// A file that was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Saved {
    /// Where, on the host.
    pub(crate) path: PathBuf,
    /// How large it is.
    pub(crate) bytes: u64,
}
