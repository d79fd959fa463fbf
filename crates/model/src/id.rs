//! Names: of runs, and of the stages within them.

use std::fmt;
use std::str::FromStr;

/// Names one run: `20261121-142530-7f3a`, when it began (UTC) and four random hexadecimal digits.
/// Sorts by time; any unique prefix, or `last`, names a run on the command line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(String);

/// Names one stage of a scenario: letters, digits, `-`, `_` and `.`, so that it can name a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageName(String);

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is empty, too long, or holds a character that cannot be part of a file name.
    #[error(
        "{0:?} cannot name a stage: use 1 to 100 letters, digits, '-', '_' and '.', not starting with '.'"
    )]
    Stage(String),
    /// It does not look like `20261121-142530-7f3a`.
    #[error("{0:?} is not a run: it looks like 20261121-142530-7f3a")]
    Run(String),
}

impl RunId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl StageName {
    /// The name as text; safe as one component of a path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RunId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<RunId, NameError> {
        let shape = text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 15 => byte == b'-',
            0..=14 => byte.is_ascii_digit(),
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        });
        if text.len() == 20 && shape {
            Ok(RunId(text.to_owned()))
        } else {
            Err(NameError::Run(text.chars().take(64).collect()))
        }
    }
}

impl FromStr for StageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<StageName, NameError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if (1..=100).contains(&text.len()) && text.chars().all(allowed) && !text.starts_with('.') {
            Ok(StageName(text.to_owned()))
        } else {
            Err(NameError::Stage(text.chars().take(128).collect()))
        }
    }
}

macro_rules! text_form {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        #[cfg(feature = "text")]
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        #[cfg(feature = "text")]
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<$name, D::Error> {
                let text = <std::borrow::Cow<'_, str>>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

text_form!(RunId);
text_form!(StageName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_name_can_always_name_a_file() {
        for bad in ["", "..", ".x", "a/b", "a b", "a\0", "ä"] {
            assert!(bad.parse::<StageName>().is_err(), "{bad:?}");
        }
        assert_eq!("raid5-scrub_2.0".parse::<StageName>().unwrap().as_str(), "raid5-scrub_2.0");
    }

    #[test]
    fn a_run_id_has_one_shape() {
        assert!("20261121-142530-7f3a".parse::<RunId>().is_ok());
        for bad in ["20261121-142530-7F3A", "20261121-142530", "2026112101425300-7f3", "../x"] {
            assert!(bad.parse::<RunId>().is_err(), "{bad:?}");
        }
    }
}
