//! Where a guest's root file system is: as it is asked for, and as a job is told.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::scenario::nearest;

/// The serial of a root disk; no disk of a scenario has it.
pub const ROOT_SERIAL: &str = "kiln-root";

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootChoice {
    /// In memory while it is small, else on a disk that is never written.
    #[default]
    Auto,
    /// In memory.
    Initramfs,
    /// On a disk that is never written; what the guest writes is in memory.
    Disk,
    /// On a clone in the pool, which takes what the guest writes and goes with the machine.
    Clone,
}

impl RootChoice {
    /// All of them as people write them.
    pub const WORDS: &'static [&'static str] = &["auto", "initramfs", "disk", "clone"];

    /// As people write it.
    pub fn word(self) -> &'static str {
        match self {
            RootChoice::Auto => "auto",
            RootChoice::Initramfs => "initramfs",
            RootChoice::Disk => "disk",
            RootChoice::Clone => "clone",
        }
    }
}

/// A root nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no root: auto, initramfs, disk or clone{}", meant(*nearest))]
pub struct RootError {
    text: String,
    nearest: Option<&'static str>,
}

fn meant(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(", did you mean {name}?"))
}

impl FromStr for RootChoice {
    type Err = RootError;

    fn from_str(text: &str) -> Result<RootChoice, RootError> {
        let all = [RootChoice::Auto, RootChoice::Initramfs, RootChoice::Disk, RootChoice::Clone];
        all.into_iter().find(|choice| choice.word() == text).ok_or_else(|| RootError {
            text: text.chars().take(32).collect(),
            nearest: nearest(text, RootChoice::WORDS.iter().copied()),
        })
    }
}

/// Where a job's machines have their root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum JobRoot {
    /// In the initramfs.
    #[default]
    Initramfs,
    /// On a disk that the job serves and nobody writes to; the initramfs only leads there.
    Plan {
        /// The disk's plan (`docs/formats/root-plan.md`).
        plan: PathBuf,
    },
    /// On the disk of the job whose serial is [`ROOT_SERIAL`], which is written to.
    Disk,
}
