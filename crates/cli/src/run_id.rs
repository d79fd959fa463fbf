//! Making the name of a run: when it began, in UTC, and four random digits.

use std::time::{SystemTime, UNIX_EPOCH};

use kiln_model::RunId;

/// A name nobody has used.
pub(crate) fn fresh() -> Option<RunId> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    let mut random = [0; 2];
    // Where the kernel has no randomness yet, the process id still tells two runs of one second apart.
    if rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK) != Ok(2) {
        random.copy_from_slice(&std::process::id().to_le_bytes()[..2]);
    }
    text(seconds, u16::from_le_bytes(random)).parse().ok()
}

fn text(seconds: u64, random: u16) -> String {
    let (year, month, day) = date(seconds / 86_400);
    let clock = seconds % 86_400;
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}-{random:04x}")
}

/// Year, month and day of a day counted from 1970-01-01, by the proleptic Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, leap days come last in their year, and every month has its fixed offset.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates_across_leap_years() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(11_017), (2000, 3, 1));
        assert_eq!(date(20_778), (2026, 11, 21));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
    }

    #[test]
    fn a_fresh_name_is_a_name() {
        assert_eq!(text(1_795_271_130, 0x7f3a), "20261121-142530-7f3a");
        assert!(fresh().is_some());
    }
}
