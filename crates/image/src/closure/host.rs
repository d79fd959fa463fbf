//! The host's files as a closure sees them: looked at once, and remembered, so that a later build can
//! tell by looking again whether anything has changed.

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::inventory::Stamp;

/// The type bits of `st_mode`, and the types.
pub(crate) const TYPE: u32 = 0o170_000;
pub(crate) const DIRECTORY: u32 = 0o040_000;
pub(crate) const REGULAR: u32 = 0o100_000;
pub(crate) const SYMLINK: u32 = 0o120_000;
pub(crate) const CHAR_DEVICE: u32 = 0o020_000;
pub(crate) const BLOCK_DEVICE: u32 = 0o060_000;
pub(crate) const FIFO: u32 = 0o010_000;

/// The kernel follows no more symbolic links than this on one path.
const LINK_LIMIT: usize = 40;

/// A directory taken for `/`. Paths handed in and out are absolute below it: a symbolic link to
/// `/usr` stays inside.
#[derive(Debug)]
pub(crate) struct Host {
    root: PathBuf,
    seen: HashMap<PathBuf, Seen>,
    listed: HashMap<PathBuf, Vec<OsString>>,
}

#[derive(Clone, Debug)]
enum Seen {
    Absent,
    Link(Stamp, PathBuf),
    Other(Stamp),
}

/// A path followed to its end.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// Where it is: no component is a symbolic link.
    pub(crate) path: PathBuf,
    /// What it is; never a symbolic link.
    pub(crate) stamp: Stamp,
    /// Directories and links passed on the way, in order.
    pub(crate) trail: Vec<Step>,
}

/// One thing passed on the way.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Directory(PathBuf, Stamp),
    Link(PathBuf, PathBuf),
}

/// The host could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act} {path}", path = path.display())]
pub struct HostError {
    /// `look at`, `read`, `list`.
    pub act: &'static str,
    /// What.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

/// Something that was looked at, and what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Input {
    /// Where it really is on this machine.
    pub(crate) path: PathBuf,
    /// Whether a directory's list of names mattered, so that its times count.
    pub(crate) listed: bool,
    /// What was seen; none if there was nothing.
    pub(crate) stamp: Option<Stamp>,
}

impl Input {
    /// Looks at a path of this machine.
    pub(crate) fn look(path: &Path, listed: bool) -> io::Result<Input> {
        let stamp = match std::fs::symlink_metadata(path) {
            Ok(meta) => Some(Stamp::of(&meta)),
            Err(error) if is_absence(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(Input { path: path.to_owned(), listed, stamp })
    }

    /// Appends what was seen, as far as it matters.
    pub(crate) fn put(stamp: Option<&Stamp>, listed: bool, out: &mut Vec<u8>) {
        match stamp {
            None => out.push(b'-'),
            // Whatever else comes and goes in a directory that was only passed through.
            Some(stamp) if stamp.kind() == DIRECTORY && !listed => {
                out.push(b'/');
                out.extend_from_slice(&stamp.mode.to_le_bytes());
                out.extend_from_slice(&stamp.device.to_le_bytes());
                out.extend_from_slice(&stamp.inode.to_le_bytes());
            }
            Some(stamp) => {
                out.push(b'+');
                out.extend_from_slice(&stamp.bytes());
            }
        }
    }

    /// How long ago what was seen last changed, if that matters.
    pub(crate) fn age(&self, now: std::time::SystemTime) -> Option<std::time::Duration> {
        let stamp = self.stamp?;
        (stamp.kind() != DIRECTORY || self.listed).then(|| stamp.age(now))
    }
}

impl Host {
    pub(crate) fn new(root: &Path) -> Host {
        Host { root: root.to_owned(), seen: HashMap::new(), listed: HashMap::new() }
    }

    /// Where a path really is on this machine.
    pub(crate) fn real(&self, path: &Path) -> PathBuf {
        if self.root == Path::new("/") {
            return path.to_owned();
        }
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Follows a path through all symbolic links; none if there is nothing at its end.
    pub(crate) fn follow(&mut self, path: &Path) -> Result<Option<Found>, HostError> {
        let mut ahead: VecDeque<OsString> = parts(path).map(OsStr::to_owned).collect();
        let mut at = PathBuf::from("/");
        let mut trail = Vec::new();
        let mut links = 0;
        while let Some(part) = ahead.pop_front() {
            if part == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&part);
            match self.look(&next)? {
                Seen::Absent => return Ok(None),
                Seen::Link(_, target) => {
                    links += 1;
                    if links > LINK_LIMIT {
                        let source =
                            io::Error::from_raw_os_error(rustix::io::Errno::LOOP.raw_os_error());
                        return Err(HostError { act: "look at", path: path.to_owned(), source });
                    }
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    for part in parts(&target).rev() {
                        ahead.push_front(part.to_owned());
                    }
                    trail.push(Step::Link(next, target));
                }
                Seen::Other(stamp) if stamp.kind() == DIRECTORY => {
                    trail.push(Step::Directory(next.clone(), stamp));
                    at = next;
                }
                Seen::Other(stamp) if ahead.is_empty() => {
                    return Ok(Some(Found { path: next, stamp, trail }));
                }
                Seen::Other(_) => return Ok(None),
            }
        }
        match trail.iter().rev().find_map(|step| match step {
            Step::Directory(path, stamp) if *path == at => Some(*stamp),
            _ => None,
        }) {
            Some(stamp) => Ok(Some(Found { path: at, stamp, trail })),
            None => match self.look(&at)? {
                Seen::Other(stamp) => Ok(Some(Found { path: at, stamp, trail })),
                Seen::Absent | Seen::Link(..) => Ok(None),
            },
        }
    }

    /// Looks at a path itself: its stamp, and what it says if it is a symbolic link.
    pub(crate) fn at(
        &mut self,
        path: &Path,
    ) -> Result<Option<(Stamp, Option<PathBuf>)>, HostError> {
        Ok(match self.look(path)? {
            Seen::Absent => None,
            Seen::Link(stamp, target) => Some((stamp, Some(target))),
            Seen::Other(stamp) => Some((stamp, None)),
        })
    }

    /// The names in a directory, sorted.
    pub(crate) fn list(&mut self, path: &Path) -> Result<Vec<OsString>, HostError> {
        if let Some(names) = self.listed.get(path) {
            return Ok(names.clone());
        }
        let failed = |source| HostError { act: "list", path: path.to_owned(), source };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.real(path)).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name());
        }
        names.sort();
        self.listed.insert(path.to_owned(), names.clone());
        Ok(names)
    }

    pub(crate) fn open(&self, path: &Path) -> Result<std::fs::File, HostError> {
        std::fs::File::open(self.real(path)).map_err(|source| HostError {
            act: "read",
            path: path.to_owned(),
            source,
        })
    }

    /// Reads at most `limit` bytes of a file.
    pub(crate) fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, HostError> {
        use io::Read as _;
        let mut bytes = Vec::new();
        let file = self.open(path)?;
        file.take(limit).read_to_end(&mut bytes).map_err(|source| HostError {
            act: "read",
            path: path.to_owned(),
            source,
        })?;
        Ok(bytes)
    }

    /// Everything that was looked at, found or not, sorted by path.
    pub(crate) fn inputs(&self) -> Vec<Input> {
        let input = |(path, seen): (&PathBuf, &Seen)| Input {
            path: self.real(path),
            listed: self.listed.contains_key(path),
            stamp: match seen {
                Seen::Absent => None,
                Seen::Link(stamp, _) | Seen::Other(stamp) => Some(*stamp),
            },
        };
        let mut inputs: Vec<Input> = self.seen.iter().map(input).collect();
        inputs.sort_by(|one, other| one.path.cmp(&other.path));
        inputs
    }

    fn look(&mut self, path: &Path) -> Result<Seen, HostError> {
        if let Some(seen) = self.seen.get(path) {
            return Ok(seen.clone());
        }
        let real = self.real(path);
        let failed = |source| HostError { act: "look at", path: path.to_owned(), source };
        let seen = match std::fs::symlink_metadata(&real) {
            Ok(meta) => {
                let stamp = Stamp::of(&meta);
                if stamp.kind() == SYMLINK {
                    Seen::Link(stamp, std::fs::read_link(&real).map_err(failed)?)
                } else {
                    Seen::Other(stamp)
                }
            }
            Err(error) if is_absence(&error) => Seen::Absent,
            Err(error) => return Err(failed(error)),
        };
        self.seen.insert(path.to_owned(), seen.clone());
        Ok(seen)
    }
}

/// Whether an error says that there is nothing of that name.
pub(crate) fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | InvalidFilename)
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = &OsStr> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// Bytes as a piece of a path.
pub(crate) fn os_str(bytes: &[u8]) -> &OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}
