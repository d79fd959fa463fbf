//! Where a stage stands, judged by its past: new failure, known failure, flaky, fixed.
//!
//! Only outcomes that judge the kernel count: passed on one side; failed, timed out and crashed on the other.
//! Skipped, not run and broken say nothing, so they are passed over.

use kiln_model::outcome::Outcome;
use kiln_model::{RunId, StageName};
use serde::Serialize;

/// So many past runs are looked at.
pub const WINDOW: usize = 50;

/// So many changes between passing and failing, over different kernels, make a stage flaky: a bug that
/// came and was fixed makes two.
const FLIPS_OF_A_FLAKE: usize = 4;

/// One past run of a stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Past {
    /// The run.
    pub run: RunId,
    /// The stage.
    pub stage: StageName,
    /// Digest of the kernel it ran on.
    pub kernel: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// Where a stage stands after a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "standing", rename_all = "kebab-case")]
pub enum Standing {
    /// It never passed or failed yet.
    Unknown,
    /// It passes, and has done so for `runs` runs in a row (this one counted).
    Passing {
        /// How many in a row.
        runs: usize,
    },
    /// It fails for the first time after passing.
    NewFailure {
        /// The last run in which it passed; none if it never ran before.
        passed_in: Option<RunId>,
    },
    /// It failed before and still does.
    KnownFailure {
        /// The first run of this row of failures.
        since: RunId,
        /// How many in a row (this one counted).
        runs: usize,
    },
    /// It passes after failing.
    Fixed {
        /// The last run in which it failed.
        failed_in: RunId,
    },
    /// It passes and fails with nothing changed, or keeps changing its mind.
    Flaky {
        /// How often it failed.
        failed: usize,
        /// Of so many.
        of: usize,
        /// Where its rate of failure lies with 95 % confidence, in percent (Wilson's interval).
        rate: (f64, f64),
    },
}

impl Standing {
    /// Judges the newest of `past`, which is ordered from new to old and is of one stage of one scenario.
    pub fn judge(past: &[Past]) -> Standing {
        let counted: Vec<&Past> = past
            .iter()
            .filter(|past| {
                past.outcome == Outcome::Passed || past.outcome.counts_against_the_kernel()
            })
            .take(WINDOW)
            .collect();
        let failed = |past: &Past| past.outcome.counts_against_the_kernel();
        let Some(newest) = counted.first() else { return Standing::Unknown };
        if let Some(flaky) = flaky(&counted) {
            return flaky;
        }
        let row = counted.iter().take_while(|past| failed(past) == failed(newest)).count();
        let before = counted.get(row).map(|past| past.run.clone());
        match (failed(newest), row, before) {
            (true, 1, passed_in) => Standing::NewFailure { passed_in },
            (true, runs, _) => Standing::KnownFailure { since: counted[row - 1].run.clone(), runs },
            (false, 1, Some(failed_in)) => Standing::Fixed { failed_in },
            (false, runs, _) => Standing::Passing { runs },
        }
    }

    /// The words for tables.
    pub fn word(&self) -> &'static str {
        match self {
            Standing::Unknown => "unknown",
            Standing::Passing { .. } => "passing",
            Standing::NewFailure { .. } => "new failure",
            Standing::KnownFailure { .. } => "known failure",
            Standing::Fixed { .. } => "fixed",
            Standing::Flaky { .. } => "flaky",
        }
    }
}

/// `new failure, passed in 20260101-…`, `flaky: failed 3 of 20 runs (5 % to 36 %)`.
impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Standing::Unknown => f.write_str("never judged"),
            Standing::Passing { runs: 1 } => f.write_str("passes, first time seen"),
            Standing::Passing { runs } => write!(f, "passes, {runs} runs in a row"),
            Standing::NewFailure { passed_in: Some(run) } => {
                write!(f, "new failure, passed in {run}")
            }
            Standing::NewFailure { passed_in: None } => {
                f.write_str("fails the first time it is seen")
            }
            Standing::KnownFailure { since, runs } => {
                write!(f, "known failure, {runs} runs in a row since {since}")
            }
            Standing::Fixed { failed_in } => write!(f, "fixed, failed in {failed_in}"),
            Standing::Flaky { failed, of, rate: (low, high) } => {
                write!(f, "flaky: failed {failed} of {of} runs ({low:.0} % to {high:.0} %)")
            }
        }
    }
}

/// Flaky if one and the same kernel both passed and failed, or if it changed sides too often for a bug.
fn flaky(counted: &[&Past]) -> Option<Standing> {
    let newest = counted.first()?;
    let failures =
        |of: &[&Past]| of.iter().filter(|past| past.outcome.counts_against_the_kernel()).count();
    let same: Vec<&Past> =
        counted.iter().copied().filter(|past| past.kernel == newest.kernel).collect();
    let flips =
        counted.windows(2).filter(|pair| failures(&pair[..1]) != failures(&pair[1..])).count();
    let group = match failures(&same) {
        failed if failed > 0 && failed < same.len() => &same[..],
        _ if flips >= FLIPS_OF_A_FLAKE => counted,
        _ => return None,
    };
    let (failed, of) = (failures(group), group.len());
    Some(Standing::Flaky { failed, of, rate: wilson(failed, of) })
}

/// Wilson's 95 % interval of a rate, in percent.
fn wilson(hits: usize, of: usize) -> (f64, f64) {
    let count = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    let (n, p, z) = (count(of), count(hits) / count(of), 1.96_f64);
    let spread = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let (centre, scale) = (p + z * z / (2.0 * n), 1.0 + z * z / n);
    (100.0 * ((centre - spread) / scale).max(0.0), 100.0 * ((centre + spread) / scale).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From new to old: `p`assed, `f`ailed, `b`roken; upper case on another kernel.
    fn standing(pattern: &str) -> Standing {
        let past: Vec<Past> = pattern
            .chars()
            .enumerate()
            .map(|(age, c)| Past {
                run: format!("20260101-000000-{:04x}", 0xffff - age).parse().unwrap(),
                stage: "s".parse().unwrap(),
                kernel: if c.is_uppercase() { format!("k{age}") } else { "k".into() },
                outcome: match c.to_ascii_lowercase() {
                    'p' => Outcome::Passed,
                    'f' => Outcome::Failed { reason: "exit status 1".into() },
                    _ => Outcome::Broken { reason: "no space".into() },
                },
                took_ms: 1,
            })
            .collect();
        Standing::judge(&past)
    }

    #[test]
    fn a_failure_after_a_pass_on_another_kernel_is_new_and_stays_known() {
        assert_eq!(
            standing("fPP"),
            Standing::NewFailure { passed_in: Some("20260101-000000-fffe".parse().unwrap()) }
        );
        assert_eq!(
            standing("ffFP"),
            Standing::KnownFailure { since: "20260101-000000-fffd".parse().unwrap(), runs: 3 }
        );
        assert_eq!(standing("f"), Standing::NewFailure { passed_in: None });
    }

    #[test]
    fn a_pass_after_a_failure_on_another_kernel_is_a_fix() {
        assert_eq!(
            standing("pFP"),
            Standing::Fixed { failed_in: "20260101-000000-fffe".parse().unwrap() }
        );
        assert_eq!(standing("ppF"), Standing::Passing { runs: 2 });
    }

    #[test]
    fn both_outcomes_on_one_kernel_are_a_flake_with_an_honest_rate() {
        let Standing::Flaky { failed, of, rate } = standing("fppppppppp") else { panic!() };
        assert_eq!((failed, of), (1, 10));
        assert!(rate.0 > 1.0 && rate.0 < 3.0 && rate.1 > 38.0 && rate.1 < 42.0, "{rate:?}");
        assert!(matches!(standing("PFPFP"), Standing::Flaky { failed: 2, of: 5, .. }));
    }

    #[test]
    fn broken_machines_never_change_where_a_stage_stands() {
        assert_eq!(standing("bpbbp"), Standing::Passing { runs: 2 });
        assert_eq!(standing("bbb"), Standing::Unknown);
        assert_eq!(standing("fbf"), standing("fbf"));
        assert!(matches!(standing("fbf"), Standing::KnownFailure { runs: 2, .. }));
    }
}
