//! Exit codes: one meaning each (`docs/exit-codes.md`).

use kiln_model::outcome::Verdict;

/// Why the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything asked for was done; for a run, everything passed.
    Success,
    /// A bug in Kiln.
    Internal,
    /// The command line, a scenario or the configuration is wrong.
    Usage,
    /// Nothing matched, so nothing ran.
    NothingSelected,
    /// Something this machine needs is missing.
    Setup,
    /// Tests failed, crashed the kernel or ran out of time.
    TestsFailed,
    /// The kernel or the image could not be built.
    BuildFailed,
    /// What was checked is damaged, or is not the same.
    Unsound,
    /// Our side broke during the run; no verdict on the kernel.
    InfrastructureBroke,
    /// `--bisect`: this commit cannot be tested.
    CannotTest,
    /// Stopped by a signal.
    Interrupted,
    /// `kiln shell`: what the guest's shell said.
    Guest(u8),
}

impl Exit {
    /// Every code with a fixed meaning, in the order of the documentation.
    pub(crate) const ALL: [Exit; 11] = [
        Exit::Success,
        Exit::Internal,
        Exit::Usage,
        Exit::NothingSelected,
        Exit::Setup,
        Exit::TestsFailed,
        Exit::BuildFailed,
        Exit::Unsound,
        Exit::InfrastructureBroke,
        Exit::CannotTest,
        Exit::Interrupted,
    ];

    /// What the shell sees in `$?`.
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Success => 0,
            Exit::Internal => 1,
            Exit::Usage => 2,
            Exit::NothingSelected => 4,
            Exit::Setup => 96,
            Exit::TestsFailed => 100,
            Exit::BuildFailed => 101,
            Exit::Unsound => 102,
            Exit::InfrastructureBroke => 103,
            Exit::CannotTest => 125,
            Exit::Interrupted => 130,
            Exit::Guest(status) => status,
        }
    }

    /// One line for help and documentation.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Exit::Success => "done; for a run: everything that ran passed",
            Exit::Internal => "a bug in Kiln, please report it",
            Exit::Usage => "the command line, a scenario or the configuration is wrong",
            Exit::NothingSelected => "nothing matched, so nothing was run",
            Exit::Setup => "this machine lacks something; `kiln doctor` names it",
            Exit::TestsFailed => "tests failed, crashed the kernel or ran out of time",
            Exit::BuildFailed => "the kernel or the image could not be built",
            Exit::Unsound => {
                "`kiln disk`, `kiln layer`, `kiln image`: what was checked is damaged, or not the same"
            }
            Exit::InfrastructureBroke => "our side broke; this says nothing about the kernel",
            Exit::CannotTest => {
                "with --bisect: this commit cannot be tested (was 4, 96, 101 or 103)"
            }
            Exit::Interrupted => "stopped by Ctrl-C or a signal",
            Exit::Guest(_) => "the status of the guest's shell",
        }
    }

    /// How a run's verdict leaves the process.
    pub(crate) fn of_verdict(verdict: Verdict) -> Exit {
        match verdict {
            Verdict::Passed => Exit::Success,
            Verdict::Failed => Exit::TestsFailed,
            Verdict::Broken => Exit::InfrastructureBroke,
            Verdict::Interrupted => Exit::Interrupted,
            Verdict::Empty => Exit::NothingSelected,
        }
    }

    /// The same for `git bisect run`, which skips a commit at 125 and stops at 128 and above.
    pub(crate) fn for_bisect(self) -> Exit {
        match self {
            Exit::NothingSelected | Exit::Setup | Exit::BuildFailed | Exit::InfrastructureBroke => {
                Exit::CannotTest
            }
            // A wrong command line must end the bisection, not call the commit bad.
            Exit::Usage | Exit::Internal | Exit::Unsound => Exit::Interrupted,
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_causes_share_a_code() {
        let mut codes: Vec<u8> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Exit::ALL.len());
    }

    #[test]
    fn a_bisection_never_blames_a_commit_for_our_own_trouble() {
        for exit in Exit::ALL {
            let blames = (1..=124).contains(&exit.for_bisect().code())
                || (126..=127).contains(&exit.for_bisect().code());
            assert_eq!(blames, exit == Exit::TestsFailed, "{exit:?}");
        }
    }

    #[test]
    fn the_page_lists_every_code_with_its_meaning() {
        let page = include_str!("../../../docs/exit-codes.md");
        for exit in Exit::ALL {
            let row = format!("| {} | {} |", exit.code(), exit.meaning());
            assert!(page.contains(&row), "docs/exit-codes.md lacks {row:?}");
        }
    }
}
