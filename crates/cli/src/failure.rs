//! What a command that could not do its work says: the chain of causes, a hint with a command, an exit code.

use crate::exit::Exit;

/// Why a command failed; becomes lines on stderr and an exit code.
///
/// Deliberately not an `Error`, so that `?` turns every error into one (with [`Exit::Internal`], until
/// somebody says better).
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) exit: Exit,
    /// The act that failed, and its causes.
    pub(crate) error: anyhow::Error,
    /// What to do about it; each names a command or a file.
    pub(crate) hints: Vec<String>,
}

impl Failure {
    /// A failure without a cause below it.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, error: anyhow::Error::msg(message.into()), hints: Vec::new() }
    }

    /// Adds what to do about it.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hints.push(hint.into());
        self
    }

    /// The same failure with another exit code.
    #[must_use]
    pub(crate) fn with_exit(self, exit: Exit) -> Failure {
        Failure { exit, ..self }
    }

    /// The lines for stderr, without colour; causes that only repeat the line above are left out.
    pub(crate) fn lines(&self) -> Vec<(Part, String)> {
        let mut lines: Vec<(Part, String)> = Vec::new();
        for (at, cause) in self.error.chain().enumerate() {
            let text = cause.to_string();
            if lines.last().is_some_and(|(_, above)| above.ends_with(&text)) {
                continue;
            }
            lines.push((if at == 0 { Part::Error } else { Part::Cause }, text));
        }
        lines.extend(self.hints.iter().map(|hint| (Part::Hint, hint.clone())));
        lines
    }
}

/// What a line of a [`Failure`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// What was tried.
    Error,
    /// Why it failed.
    Cause,
    /// What to do.
    Hint,
}

impl Part {
    /// The word in front of the line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Part::Error => "error",
            Part::Cause => "  because",
            Part::Hint => "hint",
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { exit: Exit::Internal, error: error.into(), hints: Vec::new() }
    }
}

/// Says what a failed call means for the process.
pub(crate) trait Explain<T> {
    /// The exit code this failure deserves.
    fn exits(self, exit: Exit) -> Result<T, Failure>;
    /// What to do about it.
    fn hint(self, hint: impl Into<String>) -> Result<T, Failure>;
    /// What was tried.
    fn tried(self, act: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> Explain<T> for Result<T, E> {
    fn exits(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| Failure { exit, ..error.into() })
    }

    fn hint(self, hint: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| error.into().hint(hint))
    }

    fn tried(self, act: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| {
            let failure: Failure = error.into();
            Failure { error: failure.error.context(act()), ..failure }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_told_from_the_act_to_the_cause_and_ends_with_the_hint() {
        let failure = Err::<(), _>(std::io::Error::other("no space left"))
            .tried(|| "cannot write /runs/x".to_owned())
            .exits(Exit::InfrastructureBroke)
            .hint("kiln image prune")
            .unwrap_err();
        assert_eq!(failure.exit, Exit::InfrastructureBroke);
        assert_eq!(
            failure.lines(),
            [
                (Part::Error, "cannot write /runs/x".to_owned()),
                (Part::Cause, "no space left".to_owned()),
                (Part::Hint, "kiln image prune".to_owned())
            ]
        );
    }
}
