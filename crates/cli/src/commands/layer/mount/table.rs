//! The system's table of mounts.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Where it is mounted.
    pub(super) at: PathBuf,
    /// What is mounted.
    pub(super) source: PathBuf,
}

/// The table of this process.
pub(super) fn lines() -> Vec<Line> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter_map(parse).collect()
}

/// `ID PARENT DEV ROOT AT OPTIONS … - KIND SOURCE OPTIONS`
fn parse(line: &[u8]) -> Option<Line> {
    let mut words = line.split(|byte| *byte == b' ');
    let at = plain(words.nth(4)?);
    words.find(|word| *word == b"-")?;
    let source = plain(words.nth(1)?);
    Some(Line { at, source })
}

/// Spaces and the like are written as a backslash and three octal digits.
fn plain(word: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(word.len());
    let mut at = 0;
    while let Some(byte) = word.get(at) {
        let digits = word.get(at + 1..at + 4).filter(|_| *byte == b'\\');
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(code) => {
                out.push(code);
                at += 4;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// Whether a device is mounted there, on top of whatever else is.
pub(super) fn is_mounted(device: &Path, at: &Path) -> bool {
    let lines = lines();
    lines.iter().rfind(|line| line.at == at).is_some_and(|line| line.source == device)
}

/// Where a device is mounted.
pub(super) fn places_of(device: &Path) -> Vec<PathBuf> {
    lines().into_iter().filter(|line| line.source == device).map(|line| line.at).collect()
}

/// Waits until a device is not mounted there any more.
pub(super) fn wait_until_gone(device: &Path, at: &Path) {
    let Ok(table) = File::open("/proc/self/mountinfo") else { return };
    while places_of(device).iter().any(|place| place == at) {
        // The kernel calls a changed table an exception.
        let mut waiting = [PollFd::new(&table, PollFlags::PRI | PollFlags::ERR)];
        if poll(&mut waiting, None).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_table_are_read_with_spaces_in_paths() {
        let text = b"36 35 7:0 / /mnt/a\\040b rw,noatime master:1 - ext4 /dev/loop0 ro,x";
        let line = Line { at: "/mnt/a b".into(), source: "/dev/loop0".into() };
        assert_eq!(parse(text), Some(line));
        assert_eq!(parse(b"36 35 7:0 / /mnt"), None);
        assert_eq!(plain(b"a\\04"), PathBuf::from("a\\04"));
    }
}
