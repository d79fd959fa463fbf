//! Quantities with bounds: what a machine may have, and how long things may take.

use std::fmt;
use std::num::NonZeroU8;
use std::str::FromStr;
use std::time::Duration;

use kiln_block::ByteLen;

/// A quantity that was refused; the text says the rule and the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct QuantityError(String);

/// Memory of a machine: 64M to 1T, whole mebibytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(ByteLen);

/// Size of a disk: 1M to 8T (a sparse file must be able to hold it), whole sectors of 4096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskSize(ByteLen);

/// Processors of a machine: 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuCount(NonZeroU8);

/// How many machines run at once: 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MachineCount(NonZeroU8);

/// How long something may take: 1ms to 7d, written `500ms`, `90s`, `10m`, `1h30m`, `2d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeLimit(Duration);

const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

fn bounded(
    text: &str,
    (low, high): (ByteLen, ByteLen),
    unit: ByteLen,
    what: &str,
) -> Result<ByteLen, QuantityError> {
    let size: ByteLen =
        text.parse().map_err(|e: kiln_block::ParseSizeError| QuantityError(e.to_string()))?;
    if size < low || size > high {
        return Err(QuantityError(format!("{what} of {size} is out of bounds: {low} to {high}")));
    }
    if !size.is_aligned(unit.get()) {
        return Err(QuantityError(format!("{what} of {size} is not a whole number of {unit}")));
    }
    Ok(size)
}

impl MemorySize {
    /// What a machine gets when nobody says otherwise.
    pub const DEFAULT: MemorySize = MemorySize(ByteLen::gib(1));

    /// The size.
    pub fn get(self) -> ByteLen {
        self.0
    }
}

impl FromStr for MemorySize {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<MemorySize, QuantityError> {
        bounded(text, (ByteLen::mib(64), ByteLen::gib(1024)), ByteLen::mib(1), "memory")
            .map(MemorySize)
    }
}

impl DiskSize {
    /// The size.
    pub fn get(self) -> ByteLen {
        self.0
    }
}

impl FromStr for DiskSize {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<DiskSize, QuantityError> {
        bounded(text, (ByteLen::mib(1), ByteLen::gib(8 << 10)), ByteLen::kib(4), "a disk")
            .map(DiskSize)
    }
}

impl CpuCount {
    /// What a machine gets when nobody says otherwise: one boots fastest where instructions are translated.
    pub const DEFAULT: CpuCount = CpuCount(NonZeroU8::MIN);

    /// The count, 1 to 64.
    pub fn get(self) -> u8 {
        self.0.get()
    }
}

impl FromStr for CpuCount {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<CpuCount, QuantityError> {
        match text.trim().parse::<NonZeroU8>() {
            Ok(count) if count.get() <= 64 => Ok(CpuCount(count)),
            _ => {
                let text: String = text.chars().take(32).collect();
                Err(QuantityError(format!("{text:?} processors: a machine has 1 to 64")))
            }
        }
    }
}

impl MachineCount {
    /// One after the other.
    pub const DEFAULT: MachineCount = MachineCount(NonZeroU8::MIN);

    /// The count, 1 to 64.
    pub fn get(self) -> u8 {
        self.0.get()
    }
}

impl FromStr for MachineCount {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<MachineCount, QuantityError> {
        match text.trim().parse::<NonZeroU8>() {
            Ok(count) if count.get() <= 64 => Ok(MachineCount(count)),
            _ => {
                let text: String = text.chars().take(32).collect();
                Err(QuantityError(format!("{text:?} machines: 1 to 64 run at once")))
            }
        }
    }
}

impl TimeLimit {
    /// A limit from a duration within the bounds.
    pub fn new(duration: Duration) -> Result<TimeLimit, QuantityError> {
        if duration < Duration::from_millis(1) {
            return Err(QuantityError(
                "a time limit of nothing ends everything at once".to_owned(),
            ));
        }
        if duration > LONGEST {
            return Err(QuantityError("a time limit is at most 7d".to_owned()));
        }
        Ok(TimeLimit(duration))
    }

    /// A limit known when the program is built; a number out of bounds is brought within them.
    pub const fn of_secs(secs: u64) -> TimeLimit {
        let most = LONGEST.as_secs();
        TimeLimit(Duration::from_secs(if secs == 0 {
            1
        } else if secs > most {
            most
        } else {
            secs
        }))
    }

    /// The duration.
    pub fn get(self) -> Duration {
        self.0
    }

    /// The same in whole milliseconds, as the job spec keeps it.
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl FromStr for TimeLimit {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<TimeLimit, QuantityError> {
        TimeLimit::new(duration(text)?)
    }
}

/// Reads a duration of any length, written as a [`TimeLimit`] is.
pub fn duration(text: &str) -> Result<Duration, QuantityError> {
    let wrong = || {
        let text: String = text.chars().take(32).collect();
        QuantityError(format!("{text:?} is not a time: write 500ms, 90s, 10m, 1h30m or 2d"))
    };
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total: u64 = 0;
    let mut last_unit = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, tail) = tail.split_at(letters);
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        // Larger units first, each once: `30m1h` and `1s1s` are slips, not times.
        if millis >= last_unit {
            return Err(wrong());
        }
        last_unit = millis;
        let count: u64 = number.parse().map_err(|_| wrong())?;
        total =
            count.checked_mul(millis).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = tail;
    }
    Ok(Duration::from_millis(total))
}

/// The shortest exact form: `1h30m`, `90s` becomes `1m30s`.
impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.as_millis();
        for (unit, millis) in
            [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)]
        {
            if rest >= millis {
                write!(f, "{}{unit}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for MachineCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for CpuCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_back_as_they_are_written() {
        for text in ["1ms", "90ms", "10m", "1h30m", "2d", "1m30s", "1s500ms"] {
            assert_eq!(text.parse::<TimeLimit>().unwrap().to_string(), text);
        }
        assert_eq!("90s".parse::<TimeLimit>().unwrap().get(), Duration::from_secs(90));
    }

    #[test]
    fn a_time_that_makes_no_sense_is_refused() {
        for text in [
            "",
            "0s",
            "10",
            "m",
            "-1s",
            "1.5h",
            "30m1h",
            "1s1s",
            "8d",
            "99999999999999999999s",
            "1 h",
        ] {
            assert!(text.parse::<TimeLimit>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn machines_and_disks_have_bounds() {
        for text in ["0", "1M", "63M", "2T", "100000001"] {
            assert!(text.parse::<MemorySize>().is_err(), "{text:?}");
        }
        for text in ["0", "4K", "9T", "1048577"] {
            assert!(text.parse::<DiskSize>().is_err(), "{text:?}");
        }
        for text in ["0", "65", "-1", "two"] {
            assert!(text.parse::<CpuCount>().is_err(), "{text:?}");
        }
    }
}
