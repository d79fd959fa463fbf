//! [`GuestPath`]: where something lies in the guest.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kiln_model::hostile::deceives;

/// An absolute path in the guest, in its one normal form: starts with `/`, has no empty, `.` or `..`
/// component, no NUL, and fits the kernel's limit. Bytes, because file names are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPath(Vec<u8>);

/// Linux's `PATH_MAX` without the closing NUL. The archive stores names without the leading `/`.
const LIMIT: usize = 4095;

/// Why a path cannot lie in the guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestPathError {
    /// It does not start with `/`.
    #[error("{0:?} is not an absolute path: start it with '/'")]
    Relative(String),
    /// It has a `..`.
    #[error("{0:?} has a '..': write the path it means")]
    Parent(String),
    /// It holds a NUL byte or is too long.
    #[error("{0:?} is longer than 4095 bytes or holds a NUL byte")]
    Unusable(String),
}

impl GuestPath {
    /// The root directory.
    pub fn root() -> GuestPath {
        GuestPath(b"/".to_vec())
    }

    /// Checks and normalises a path.
    pub fn new(path: impl AsRef<OsStr>) -> Result<GuestPath, GuestPathError> {
        let bytes = path.as_ref().as_bytes();
        let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        if bytes.first() != Some(&b'/') {
            return Err(GuestPathError::Relative(shown()));
        }
        let mut normal = Vec::with_capacity(bytes.len());
        for part in bytes.split(|&byte| byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(GuestPathError::Parent(shown())),
                part => {
                    normal.push(b'/');
                    normal.extend_from_slice(part);
                }
            }
        }
        if normal.is_empty() {
            normal.push(b'/');
        }
        if normal.len() > LIMIT || normal.contains(&0) {
            return Err(GuestPathError::Unusable(shown()));
        }
        Ok(GuestPath(normal))
    }

    /// The path as bytes, with its leading `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path as the standard library's type.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The directory it lies in; none for the root.
    pub fn parent(&self) -> Option<GuestPath> {
        if self.0.len() == 1 {
            return None;
        }
        let slash = self.0.iter().rposition(|&byte| byte == b'/')?;
        Some(GuestPath(if slash == 0 { b"/".to_vec() } else { self.0[..slash].to_vec() }))
    }

    /// Its last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    }

    /// The path of `name` below it; `name` may be several components.
    pub fn join(&self, name: impl AsRef<OsStr>) -> Result<GuestPath, GuestPathError> {
        let mut path = self.0.clone();
        path.push(b'/');
        path.extend_from_slice(name.as_ref().as_bytes());
        GuestPath::new(OsStr::from_bytes(&path))
    }
}

/// Escaped where it is not plain text, so that a hostile name cannot steer a terminal.
impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if deceives(c) { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
            }
            write!(f, "{}", chunk.invalid().escape_ascii())?;
        }
        Ok(())
    }
}

impl fmt::Debug for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestPath({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_normal_form() {
        let normal = |text: &str| GuestPath::new(text).unwrap().to_string();
        assert_eq!(normal("//usr/./bin//ls/"), "/usr/bin/ls");
        assert_eq!(normal("/"), "/");
        assert_eq!(GuestPath::new("/a").unwrap().parent(), Some(GuestPath::root()));
        assert_eq!(GuestPath::root().parent(), None);
        assert_eq!(GuestPath::new("/a/b").unwrap().name(), b"b");
    }

    #[test]
    fn a_path_that_could_leave_the_guest_is_refused() {
        assert!(matches!(GuestPath::new("etc"), Err(GuestPathError::Relative(_))));
        assert!(matches!(GuestPath::new("/a/../b"), Err(GuestPathError::Parent(_))));
        assert!(matches!(GuestPath::new("/a\0b"), Err(GuestPathError::Unusable(_))));
        let long = format!("/{}", "x".repeat(4095));
        assert!(matches!(GuestPath::new(long), Err(GuestPathError::Unusable(_))));
    }

    #[test]
    fn a_hostile_name_is_shown_without_its_escapes() {
        let path = GuestPath::new(OsStr::from_bytes(b"/a\x1b[2J\xff")).unwrap();
        assert_eq!(path.to_string(), "/a\\u{1b}[2J\\xff");
    }
}
