//! The system's table of mounts, as far as it is about one folder.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    /// Its number among the mounts; numbers of mounts that went are used again.
    number: u64,
    /// What `stat` calls the device; the second half is the number of a FUSE connection.
    device: (u32, u32),
    /// Kind of file system.
    pub(super) kind: String,
}

impl Mounted {
    /// Ends a FUSE connection, so that whoever waits for it gets an error. The user who mounted may do so.
    pub(super) fn abort(&self) -> bool {
        let (_, connection) = self.device;
        fs::write(format!("/sys/fs/fuse/connections/{connection}/abort"), "1").is_ok()
    }
}

/// The topmost mount on exactly this folder, whose path has no links in it.
pub(super) fn mounted_at(folder: &Path) -> io::Result<Option<Mounted>> {
    let table = fs::read("/proc/self/mountinfo")?;
    let mut lines = table.split(|byte| *byte == b'\n').filter_map(parse);
    Ok(lines.rfind(|(path, _)| path == folder).map(|(_, mounted)| mounted))
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`, fields of any number before the dash.
fn parse(line: &[u8]) -> Option<(PathBuf, Mounted)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut text = || fields.next().and_then(|field| str::from_utf8(field).ok());
    let number = text()?.parse().ok()?;
    let (major, minor) = {
        text()?;
        text()?.split_once(':')?
    };
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let path = fields.nth(1)?;
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    let kind = String::from_utf8_lossy(kind).into_owned();
    Some((PathBuf::from(OsString::from_vec(unescape(path))), Mounted { number, device, kind }))
}

/// Blanks and backslashes are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let escaped = (*byte == b'\\').then(|| after.get(..3)).flatten();
        let code = escaped.and_then(|digits| str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_understood() {
        let line = b"36 35 0:57 / /mnt/a\\040b rw,nosuid shared:1 master:2 - fuse.kiln kiln rw";
        let (path, mounted) = parse(line).unwrap();
        assert_eq!(path, Path::new("/mnt/a b"));
        assert_eq!(mounted, Mounted { number: 36, device: (0, 57), kind: "fuse.kiln".to_owned() });
    }

    #[test]
    fn other_lines_are_passed_over() {
        for line in ["", "36", "a b c d e f - g", "36 35 0:57 / /mnt rw", "1 2 3 / / rw - ext4 x"] {
            assert!(parse(line.as_bytes()).is_none(), "{line}");
        }
    }
}
