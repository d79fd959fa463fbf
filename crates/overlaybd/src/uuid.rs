//! The names by which layers know each other.

use std::fmt;
use std::str::FromStr;

/// Which layer. Stored as text in a layer's header; all zeros says "none".
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Uuid([u8; 16]);

/// A text that is not `8-4-4-4-12` hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a UUID: write 32 hexadecimal digits as 8-4-4-4-12")]
pub struct ParseUuidError(String);

/// How long the text is.
pub(crate) const TEXT_LEN: usize = 36;
const DASHES: [usize; 4] = [8, 13, 18, 23];

impl Uuid {
    /// No layer.
    pub const NIL: Uuid = Uuid([0; 16]);

    /// A UUID of these bytes, in the order of its text.
    pub const fn from_bytes(bytes: [u8; 16]) -> Uuid {
        Uuid(bytes)
    }

    /// Whether it names no layer.
    pub fn is_nil(self) -> bool {
        self == Uuid::NIL
    }
}

impl FromStr for Uuid {
    type Err = ParseUuidError;

    fn from_str(text: &str) -> Result<Uuid, ParseUuidError> {
        let wrong = || ParseUuidError(text.chars().take(64).collect());
        let mut bytes = [0u8; 16];
        let mut digits = 0;
        if text.len() != TEXT_LEN {
            return Err(wrong());
        }
        for (position, character) in text.chars().enumerate() {
            if DASHES.contains(&position) {
                if character != '-' {
                    return Err(wrong());
                }
                continue;
            }
            let digit = character.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            let digit = digit.ok_or_else(wrong)?;
            let byte = bytes.get_mut(digits / 2).ok_or_else(wrong)?;
            *byte = *byte << 4 | digit;
            digits += 1;
        }
        Ok(Uuid(bytes))
    }
}

/// Upper case, as layers store it.
impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02X}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_in_upper_case_and_read_in_any() {
        let uuid: Uuid = "0b0b0b0b-1111-4222-8333-00000000000B".parse().unwrap();
        assert_eq!(uuid.to_string(), "0B0B0B0B-1111-4222-8333-00000000000B");
    }

    #[test]
    fn what_is_not_a_uuid_is_refused() {
        for text in [
            "",
            "0b0b0b0b",
            "0b0b0b0b-1111-4222-8333+00000000000B",
            "é0b0b0b-1111-4222-8333-00000000000B",
        ] {
            assert!(text.parse::<Uuid>().is_err(), "{text}");
        }
    }
}
