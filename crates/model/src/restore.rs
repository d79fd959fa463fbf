//! From where a machine starts: a boot, or an instant that was saved of one.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::job::Stage;
use crate::scenario::nearest;

/// The stage that prepares a machine, where a scenario wants its machines to start prepared; its first one.
pub const PREPARE_STAGE: &str = "prepare";

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restore {
    /// Every machine boots.
    Never,
    /// From the moment at which the guest's agent was ready.
    #[default]
    Ready,
    /// From the moment at which the stage [`PREPARE_STAGE`] had passed.
    Prepared,
}

impl Restore {
    /// All of them as people write them.
    pub const WORDS: &'static [&'static str] = &["never", "ready", "prepared"];

    /// As people write it.
    pub fn word(self) -> &'static str {
        match self {
            Restore::Never => "never",
            Restore::Ready => "ready",
            Restore::Prepared => "prepared",
        }
    }
}

/// A moment nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is nothing to restore: never, ready or prepared{}", meant(*nearest))]
pub struct RestoreError {
    text: String,
    nearest: Option<&'static str>,
}

fn meant(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(", did you mean {name}?"))
}

impl FromStr for Restore {
    type Err = RestoreError;

    fn from_str(text: &str) -> Result<Restore, RestoreError> {
        let all = [Restore::Never, Restore::Ready, Restore::Prepared];
        all.into_iter().find(|choice| choice.word() == text).ok_or_else(|| RestoreError {
            text: text.chars().take(32).collect(),
            nearest: nearest(text, Restore::WORDS.iter().copied()),
        })
    }
}

/// Where the machines of a job start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Warm {
    /// The folder of saved machines (`docs/formats/warm.md`); without it all boot.
    pub folder: Option<PathBuf>,
    /// The stage that prepares each of them before any other runs on it.
    #[serde(default)]
    pub prepare: Option<Stage>,
}
