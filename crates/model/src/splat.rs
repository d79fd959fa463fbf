//! A kernel's cry for help on its console: `BUG:`, `WARNING:`, `Oops`, panic and their kin.

use std::fmt;

#[cfg(feature = "text")]
use serde::{Deserialize, Serialize};

/// What kind of report the kernel printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "text", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "text", serde(rename_all = "kebab-case"))]
pub enum SplatKind {
    /// `Kernel panic - not syncing`.
    Panic,
    /// `Oops:`, a general protection fault, a bad page access.
    Oops,
    /// `kernel BUG at`, `BUG:` without a kind of its own.
    Bug,
    /// `WARNING: CPU: … at …`.
    Warning,
    /// AddressSanitizer.
    Kasan,
    /// Concurrency sanitizer.
    Kcsan,
    /// Uninitialised memory.
    Kmsan,
    /// Undefined behaviour.
    Ubsan,
    /// Lock ordering and its relatives.
    Lockdep,
    /// `task … blocked for more than`.
    HungTask,
    /// A CPU stuck in the kernel with interrupts on.
    SoftLockup,
    /// A CPU stuck with interrupts off.
    HardLockup,
    /// RCU grace periods that do not end.
    RcuStall,
    /// The out-of-memory killer.
    OomKill,
}

impl SplatKind {
    /// The one word for tables and signatures: `panic`, `oops`, `hung-task`.
    pub fn word(self) -> &'static str {
        match self {
            SplatKind::Panic => "panic",
            SplatKind::Oops => "oops",
            SplatKind::Bug => "bug",
            SplatKind::Warning => "warning",
            SplatKind::Kasan => "kasan",
            SplatKind::Kcsan => "kcsan",
            SplatKind::Kmsan => "kmsan",
            SplatKind::Ubsan => "ubsan",
            SplatKind::Lockdep => "lockdep",
            SplatKind::HungTask => "hung-task",
            SplatKind::SoftLockup => "soft-lockup",
            SplatKind::HardLockup => "hard-lockup",
            SplatKind::RcuStall => "rcu-stall",
            SplatKind::OomKill => "oom-kill",
        }
    }

    /// Whether the kernel cannot be trusted afterwards, so that the machine must be replaced and
    /// the stage that was running counts as crashed. The others are recorded beside the outcome.
    pub fn is_fatal(self) -> bool {
        matches!(self, SplatKind::Panic | SplatKind::Oops | SplatKind::Bug | SplatKind::Kasan)
    }
}

impl fmt::Display for SplatKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// One report, cut out of the console.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "text", derive(Serialize, Deserialize))]
pub struct Splat {
    /// What it is.
    pub kind: SplatKind,
    /// Stable across runs, addresses, CPUs and process ids: `oops: btrfs_sync_file`, used to tell
    /// the same bug from another.
    pub signature: String,
    /// The report's lines, bounded; hostile text.
    pub excerpt: String,
}
