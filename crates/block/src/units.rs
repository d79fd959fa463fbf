//! Numbers with a meaning: a position is not a length, a block is not a byte.

use std::fmt;
use std::str::FromStr;

/// Where, in bytes from the start of a device or file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteOffset(u64);

/// How many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteLen(u64);

/// Which block, counted from zero; the owner of the number says how large a block is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(u64);

/// How many blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockCount(u64);

macro_rules! number {
    ($name:ident) => {
        impl $name {
            /// Zero.
            pub const ZERO: $name = $name(0);

            /// Wraps a bare number read from outside.
            pub const fn new(value: u64) -> $name {
                $name(value)
            }

            /// The bare number.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl From<u64> for $name {
            fn from(value: u64) -> $name {
                $name(value)
            }
        }
    };
}

number!(ByteOffset);
number!(ByteLen);
number!(BlockIndex);
number!(BlockCount);

impl ByteOffset {
    /// The position `len` further on, unless it passes the end of what a `u64` can say.
    pub fn checked_add(self, len: ByteLen) -> Option<ByteOffset> {
        self.0.checked_add(len.0).map(ByteOffset)
    }

    /// How far this position lies behind `start`, if it does.
    pub fn checked_since(self, start: ByteOffset) -> Option<ByteLen> {
        self.0.checked_sub(start.0).map(ByteLen)
    }

    /// Whether this position is a whole number of `unit` bytes.
    pub fn is_aligned(self, unit: u64) -> bool {
        self.0.is_multiple_of(unit)
    }
}

impl ByteLen {
    /// The length of a buffer.
    pub fn of(bytes: &[u8]) -> ByteLen {
        ByteLen(bytes.len() as u64)
    }

    /// This many kibibytes.
    pub const fn kib(count: u64) -> ByteLen {
        ByteLen(count << 10)
    }

    /// This many mebibytes.
    pub const fn mib(count: u64) -> ByteLen {
        ByteLen(count << 20)
    }

    /// This many gibibytes.
    pub const fn gib(count: u64) -> ByteLen {
        ByteLen(count << 30)
    }

    /// The sum, unless it overflows.
    pub fn checked_add(self, other: ByteLen) -> Option<ByteLen> {
        self.0.checked_add(other.0).map(ByteLen)
    }

    /// What is left after `other` is taken away, and zero where nothing is.
    pub fn saturating_sub(self, other: ByteLen) -> ByteLen {
        ByteLen(self.0.saturating_sub(other.0))
    }

    /// The length as a `usize`, for sizing a buffer; `None` where memory cannot be that large.
    pub fn to_usize(self) -> Option<usize> {
        usize::try_from(self.0).ok()
    }

    /// Whether there is nothing.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Whether this length is a whole number of `unit` bytes.
    pub fn is_aligned(self, unit: u64) -> bool {
        self.0.is_multiple_of(unit)
    }
}

impl BlockIndex {
    /// The block `count` further on.
    pub fn checked_add(self, count: BlockCount) -> Option<BlockIndex> {
        self.0.checked_add(count.0).map(BlockIndex)
    }
}

impl fmt::Display for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The shortest exact form, as a configuration would write it: `512M`, `10G`, `4097`.
impl fmt::Display for ByteLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, suffix) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{suffix}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for BlockCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A size that is not written as a whole number with an optional `K`, `M`, `G` or `T`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a size: write a whole number of bytes, or one with K, M, G or T (powers of 1024), such as 512M"
)]
pub struct ParseSizeError {
    text: String,
}

impl FromStr for ByteLen {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<ByteLen, ParseSizeError> {
        let wrong = || ParseSizeError { text: text.chars().take(64).collect() };
        let trimmed = text.trim();
        let digits = trimmed.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match trimmed[digits.len()..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(wrong()),
        };
        let count: u64 = digits.parse().map_err(|_| wrong())?;
        let bytes = count.checked_mul(1 << shift).ok_or_else(wrong)?;
        Ok(ByteLen(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back_as_they_are_written() {
        for text in ["0", "1", "4097", "512M", "10G", "3T", "1K"] {
            assert_eq!(text.parse::<ByteLen>().unwrap().to_string(), text);
        }
        assert_eq!("64 MiB".parse::<ByteLen>().unwrap(), ByteLen::mib(64));
    }

    #[test]
    fn a_size_that_makes_no_sense_is_named_in_the_error() {
        for text in ["", "M", "1.5G", "-1", "10 apples", "99999999999T"] {
            let error = text.parse::<ByteLen>().unwrap_err();
            assert!(error.to_string().contains("is not a size"), "{error}");
        }
    }
}
