//! Why a scenario was refused, and on which line.

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ScenarioError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a scenario.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Longer than any sensible scenario.
    #[error("the scenario has {bytes} bytes, more than a scenario may have ({limit})", limit = super::MAX_TEXT)]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// Not TOML.
    #[error("{message}")]
    Toml {
        /// What the TOML reader said, on one line.
        message: String,
    },
    /// A key that means nothing here.
    #[error("unknown key `{key}`{}", hint(nearest.as_deref(), known))]
    UnknownKey {
        /// The key with the tables around it: `vm.memroy`.
        key: String,
        /// The known key it resembles.
        nearest: Option<String>,
        /// What could have been meant.
        known: Vec<String>,
    },
    /// A key with a value of the wrong kind.
    #[error("`{key}` should be {wanted}, not {found}")]
    Kind {
        /// Which key.
        key: String,
        /// `a string`.
        wanted: &'static str,
        /// `an integer`.
        found: &'static str,
    },
    /// A key that may not be left out.
    #[error("`{key}` is missing: {why}")]
    Missing {
        /// Which key.
        key: String,
        /// What it is for.
        why: String,
    },
    /// A value that breaks a rule.
    #[error("`{key}`: {why}")]
    Value {
        /// Which key.
        key: String,
        /// The rule, and the value where it helps.
        why: String,
    },
    /// A name used twice.
    #[error("{what} is used twice; the first is on line {first}")]
    Duplicate {
        /// What has the name.
        what: String,
        /// Where it was used first.
        first: usize,
    },
}

fn hint(nearest: Option<&str>, known: &[String]) -> String {
    match nearest {
        Some(name) => format!(", did you mean `{name}`?"),
        None => format!("; known here: {}", known.join(", ")),
    }
}
