//! Files to the guest, and out of it into a folder of ours, whatever names the guest gives them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_model::protocol::{Answer, Entry, EntryKind, MAX_CHUNK, PullLimits, Push, Request};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, mkdirat, open, openat};
use rustix::io::Errno;

use super::connection::Connection;
use super::{AgentError, printable, unexpected};

const MAX_NAME: usize = 255;
const MAX_DEPTH: usize = 80;
/// What is told about troubles, at most.
const MAX_TROUBLES: usize = 100;

/// What a pull brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullReport {
    /// The files that are here now.
    pub files: Vec<Pulled>,
    /// Links that were found, and where they point; none is made here. Hostile text, escaped.
    pub links: Vec<(String, String)>,
    /// What could not be had, and why. Hostile text, escaped.
    pub troubles: Vec<String>,
    /// Whether a limit cut it short.
    pub truncated: bool,
}

/// One file that was brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Below the folder that was given, with the guest's absolute path.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
}

pub(super) fn bytes_of(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

pub(super) fn push(
    connection: &Connection,
    path: &Path,
    mode: u32,
    source: &mut dyn Read,
    deadline: Instant,
) -> Result<u64, AgentError> {
    let request = Request::Push(Push { path: bytes_of(path), mode });
    let channel = connection.open(&request, deadline)?;
    let result = send_file(connection, channel, path, source, deadline);
    if matches!(result, Err(ref error) if !matches!(error, AgentError::Guest { .. })) {
        cancel(connection, channel);
    }
    connection.forget(channel);
    result
}

fn send_file(
    connection: &Connection,
    channel: u32,
    path: &Path,
    source: &mut dyn Read,
    deadline: Instant,
) -> Result<u64, AgentError> {
    let mut buffer = vec![0; MAX_CHUNK];
    let (mut crc, mut length) = (0, 0_u64);
    'file: loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => {
                let path = path.to_owned();
                return Err(AgentError::Io { act: "read what should become", path, source });
            }
        };
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let take = connection.take_credit(channel, rest.len(), deadline)?;
            if take == 0 {
                // The guest has given up; its answer says why.
                break 'file;
            }
            let (now, later) = rest.split_at(take);
            crc = crc32c::crc32c_append(crc, now);
            length += u64::try_from(now.len()).unwrap_or(u64::MAX);
            connection.send(&Request::PushData(now.to_vec()), channel, deadline)?;
            rest = later;
        }
    }
    connection.send(&Request::PushEnd { crc32c: crc, length }, channel, deadline)?;
    match connection.next(channel, deadline, "the file to be written")? {
        Answer::Done(done) => Ok(done.bytes),
        other => Err(unexpected(&other)),
    }
}

fn cancel(connection: &Connection, channel: u32) {
    let soon = Instant::now() + Duration::from_secs(1);
    let _ = connection.send(&Request::Cancel, channel, soon);
}

pub(super) fn pull(
    connection: &Arc<Connection>,
    patterns: &[String],
    to: &Path,
    limits: PullLimits,
    deadline: Instant,
) -> Result<PullReport, AgentError> {
    let patterns = patterns.iter().map(|pattern| pattern.clone().into_bytes()).collect();
    let root = Root::open(to)?;
    let channel = connection.open(&Request::Pull { patterns, limits }, deadline)?;
    let mut receiver =
        Receiver { root, limits, report: PullReport::default(), bytes: 0, file: None };
    let result = loop {
        match connection.next(channel, deadline, "files") {
            Ok(answer) => match receiver.take(answer) {
                Ok(true) => break Ok(()),
                Ok(false) => {}
                Err(error) => break Err(error),
            },
            Err(error) => break Err(error),
        }
    };
    if matches!(result, Err(ref error) if !matches!(error, AgentError::Guest { .. })) {
        cancel(connection, channel);
    }
    connection.forget(channel);
    result.map(|()| receiver.report)
}

/// The file that arrives; without a place if its name was refused.
struct Incoming {
    place: Option<(PathBuf, File)>,
    crc: u32,
    length: u64,
}

struct Receiver {
    root: Root,
    limits: PullLimits,
    report: PullReport,
    bytes: u64,
    file: Option<Incoming>,
}

impl Receiver {
    /// True when that was the last answer.
    fn take(&mut self, answer: Answer) -> Result<bool, AgentError> {
        match answer {
            Answer::Entry(entry) => self.entry(&entry)?,
            Answer::Data(bytes) => self.data(&bytes)?,
            Answer::EntryEnd { crc32c, length } => self.end_of_file(crc32c, length),
            Answer::Trouble(text) => self.trouble(printable(&text)),
            Answer::Done(done) => {
                self.report.truncated |= done.truncated;
                return Ok(true);
            }
            other => return Err(unexpected(&other)),
        }
        Ok(false)
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), AgentError> {
        let found = self.report.files.len() + self.report.links.len();
        if u32::try_from(found).is_ok_and(|found| found > self.limits.entries) {
            return Err(AgentError::Protocol { found: "more files than asked for".into() });
        }
        self.file = None;
        let shown = printable(&entry.path);
        let Some(names) = safe_names(&entry.path) else {
            self.trouble(format!("refused the name {shown}"));
            if entry.kind == EntryKind::File {
                self.file = Some(Incoming { place: None, crc: 0, length: 0 });
            }
            return Ok(());
        };
        match entry.kind {
            EntryKind::File => {
                let place = self.root.create(&names)?;
                if place.is_none() {
                    self.trouble(format!("refused {shown}: something else is in its place"));
                }
                self.file = Some(Incoming { place, crc: 0, length: 0 });
            }
            EntryKind::Folder => {
                if self.root.folder(&names)?.is_none() {
                    self.trouble(format!("refused {shown}: something else is in its place"));
                }
            }
            EntryKind::Link => self.report.links.push((shown, printable(&entry.target))),
            EntryKind::Special => self.trouble(format!("left out {shown}: not a file")),
        }
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        let Some(file) = &mut self.file else {
            return Err(AgentError::Protocol { found: "data of no file".into() });
        };
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.bytes += length;
        if self.bytes > self.limits.bytes {
            return Err(AgentError::Protocol { found: "more data than asked for".into() });
        }
        file.crc = crc32c::crc32c_append(file.crc, bytes);
        file.length += length;
        if let Some((path, file)) = &mut file.place {
            file.write_all(bytes).map_err(|source| self.root.error("write", path, source))?;
        }
        Ok(())
    }

    fn end_of_file(&mut self, crc: u32, length: u64) {
        let Some(file) = self.file.take() else { return };
        let Some((path, _)) = file.place else { return };
        if (file.crc, file.length) != (crc, length) {
            self.trouble(format!("{} arrived damaged", path.display()));
        }
        self.report.files.push(Pulled { path, bytes: file.length });
    }

    fn trouble(&mut self, text: String) {
        if self.report.troubles.len() < MAX_TROUBLES {
            self.report.troubles.push(text);
        }
    }
}

/// The names on the way to a guest's absolute path, if every one is a plain name.
fn safe_names(path: &[u8]) -> Option<Vec<&OsStr>> {
    let names: Vec<&[u8]> =
        path.strip_prefix(b"/")?.split(|&byte| byte == b'/').filter(|n| !n.is_empty()).collect();
    let plain =
        |name: &[u8]| name != b"." && name != b".." && name.len() <= MAX_NAME && !name.contains(&0);
    let safe = names.len() <= MAX_DEPTH && names.iter().all(|name| plain(name));
    safe.then(|| names.into_iter().map(OsStr::from_bytes).collect())
}

/// The folder everything lands in. Every step is taken from an open folder and follows no link, so
/// that no name leads outside.
struct Root {
    path: PathBuf,
    fd: OwnedFd,
}

const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Root {
    fn open(path: &Path) -> Result<Root, AgentError> {
        let error = |source| AgentError::Io { act: "open", path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(error)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|errno| error(errno.into()))?;
        Ok(Root { path: path.to_owned(), fd })
    }

    fn error(&self, act: &'static str, path: &Path, source: io::Error) -> AgentError {
        AgentError::Io { act, path: self.path.join(path), source }
    }

    /// Makes a folder and those above it; none if something else is in the way.
    fn folder(&self, names: &[&OsStr]) -> Result<Option<OwnedFd>, AgentError> {
        let duplicate = self.fd.try_clone();
        let mut folder = duplicate.map_err(|source| self.error("open", Path::new(""), source))?;
        let mut path = PathBuf::new();
        for name in names {
            path.push(name);
            match mkdirat(&folder, *name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.error("make folder", &path, errno.into())),
            }
            folder = match openat(&folder, *name, FOLDER, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(errno) => return Err(self.error("open folder", &path, errno.into())),
            };
        }
        Ok(Some(folder))
    }

    /// Makes a file; none if something else is in the way.
    fn create(&self, names: &[&OsStr]) -> Result<Option<(PathBuf, File)>, AgentError> {
        let Some((name, above)) = names.split_last() else { return Ok(None) };
        let Some(folder) = self.folder(above)? else { return Ok(None) };
        let flags = OFlags::WRONLY
            | OFlags::CREATE
            | OFlags::TRUNC
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::CLOEXEC;
        let path: PathBuf = names.iter().collect();
        match openat(&folder, *name, flags, Mode::from_raw_mode(0o644)) {
            Ok(fd) => Ok(Some((path, File::from(fd)))),
            Err(Errno::ISDIR | Errno::LOOP | Errno::NXIO) => Ok(None),
            Err(errno) => Err(self.error("create", &path, errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_folder() {
        for bad in
            ["relative", "/../x", "/a/../../x", "/a/.", "/a\0b", &format!("/{}", "n".repeat(256))]
        {
            assert!(safe_names(bad.as_bytes()).is_none(), "{bad:?}");
        }
        let names = safe_names(b"//a/b.c//d").unwrap();
        assert_eq!(names, ["a", "b.c", "d"]);
    }

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("a")).unwrap();
        let root = Root::open(folder.path()).unwrap();
        assert!(root.create(&[OsStr::new("a"), OsStr::new("b")]).unwrap().is_none());
        assert!(root.create(&[OsStr::new("a")]).unwrap().is_none());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
