//! How a stage or a test ended, and what a run adds up to.

use std::fmt;

#[cfg(feature = "text")]
use serde::{Deserialize, Serialize};

/// How a stage (or one test of it) ended. `NotRun` and `Broken` never count against a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "text", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "text", serde(tag = "kind", rename_all = "kebab-case"))]
pub enum Outcome {
    /// It did what it should.
    Passed,
    /// It said no: an exit status, a signal, or a missing completion file.
    Failed {
        /// Why, for a person: `exit status 3`, `killed by signal 11 (SIGSEGV)`.
        reason: String,
    },
    /// It chose not to test, and said why (exit status 77 of a script).
    Skipped {
        /// Why.
        reason: String,
    },
    /// It ran out of time, or the guest fell silent.
    TimedOut {
        /// Which of the two.
        cause: TimeoutCause,
    },
    /// The kernel crashed under it.
    Crashed {
        /// The splat's stable signature (`panic: sysrq triggered crash`), or what the machine did.
        signature: String,
    },
    /// It was never started.
    NotRun {
        /// Why: `interrupted`, `an earlier stage failed`.
        reason: String,
    },
    /// Our side broke: no verdict on the kernel.
    Broken {
        /// What broke, with its causes.
        reason: String,
    },
}

/// What ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "text", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "text", serde(rename_all = "kebab-case"))]
pub enum TimeoutCause {
    /// The stage's own timeout; the guest was alive.
    Deadline,
    /// No heartbeat and no output: the guest hangs.
    Hang,
}

impl Outcome {
    /// The one word for tables: `passed`, `failed`, `skipped`, `timed-out`, `crashed`, `not-run`, `broken`.
    pub fn word(&self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::Failed { .. } => "failed",
            Outcome::Skipped { .. } => "skipped",
            Outcome::TimedOut { .. } => "timed-out",
            Outcome::Crashed { .. } => "crashed",
            Outcome::NotRun { .. } => "not-run",
            Outcome::Broken { .. } => "broken",
        }
    }

    /// Whether the kernel or the test is to blame.
    pub fn counts_against_the_kernel(&self) -> bool {
        matches!(self, Outcome::Failed { .. } | Outcome::TimedOut { .. } | Outcome::Crashed { .. })
    }
}

impl fmt::Display for TimeoutCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TimeoutCause::Deadline => "deadline",
            TimeoutCause::Hang => "hang",
        })
    }
}

/// `passed`, `failed (exit status 3)`, `timed-out (hang)`, `crashed (panic: …)`.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        match self {
            Outcome::Passed => Ok(()),
            Outcome::TimedOut { cause } => write!(f, " ({cause})"),
            Outcome::Crashed { signature } => write!(f, " ({signature})"),
            Outcome::Failed { reason }
            | Outcome::Skipped { reason }
            | Outcome::NotRun { reason }
            | Outcome::Broken { reason } => write!(f, " ({reason})"),
        }
    }
}

/// What a whole run adds up to; decides the exit status of `kiln run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "text", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "text", serde(rename_all = "kebab-case"))]
pub enum Verdict {
    /// Everything that ran passed, and something did.
    Passed,
    /// At least one outcome counts against the kernel.
    Failed,
    /// Nothing failed, but something broke on our side.
    Broken,
    /// Nothing failed or broke, but it was stopped before its end.
    Interrupted,
    /// Nothing was run at all.
    Empty,
}

impl Verdict {
    /// Adds up outcomes; a failure outweighs a broken machine, which outweighs an interruption.
    pub fn of<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> Verdict {
        let mut verdict = Verdict::Empty;
        for outcome in outcomes {
            let this = match outcome {
                Outcome::Passed | Outcome::Skipped { .. } => Verdict::Passed,
                Outcome::NotRun { .. } => Verdict::Interrupted,
                Outcome::Broken { .. } => Verdict::Broken,
                Outcome::Failed { .. } | Outcome::TimedOut { .. } | Outcome::Crashed { .. } => {
                    Verdict::Failed
                }
            };
            if this.weight() > verdict.weight() {
                verdict = this;
            }
        }
        verdict
    }

    /// The one word for tables.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed => "failed",
            Verdict::Broken => "broken",
            Verdict::Interrupted => "interrupted",
            Verdict::Empty => "empty",
        }
    }

    fn weight(self) -> u8 {
        match self {
            Verdict::Empty => 0,
            Verdict::Passed => 1,
            Verdict::Interrupted => 2,
            Verdict::Broken => 3,
            Verdict::Failed => 4,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_machine_never_hides_a_failure_nor_counts_as_one() {
        let broken = Outcome::Broken { reason: "no space".into() };
        let failed = Outcome::Failed { reason: "exit status 1".into() };
        assert_eq!(Verdict::of([&broken, &failed]), Verdict::Failed);
        assert_eq!(Verdict::of([&Outcome::Passed, &broken]), Verdict::Broken);
        assert!(!broken.counts_against_the_kernel());
        assert_eq!(Verdict::of([]), Verdict::Empty);
    }
}
