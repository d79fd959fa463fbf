//! Files in and out, and whatever else may take its time: each in a thread of its own, so that the
//! agent's loop and its heartbeats never wait for a disk that does not answer.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use kiln_model::protocol::{
    Answer, Done, Entry, EntryKind, ErrorKind, MAX_CHUNK, PullLimits, Push, Stat,
};
use kiln_model::wildcard;
use rustix::fs::OFlags;

use crate::outbox::{Conversation, Gone, Outbox};

/// Folders inside folders that a pull follows.
const MAX_DEPTH: usize = 64;

/// Where a worker's answers go.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) conversation: Conversation,
    pub(crate) channel: u32,
}

impl Line {
    pub(crate) fn finish(&self, result: Result<Answer, Answer>) {
        let answer = result.unwrap_or_else(|error| error);
        self.outbox.finish(self.conversation, self.channel, &answer);
    }

    fn send(&self, answer: &Answer) {
        self.outbox.send(self.conversation, self.channel, answer);
    }

    fn wait_and_send(&self, answer: &Answer) -> Result<(), Gone> {
        self.outbox.wait_and_send(self.conversation, self.channel, answer)
    }
}

/// An error answer: `cannot open /a/b: No such file or directory`.
pub(crate) fn io_error(act: &str, path: &Path, error: &io::Error) -> Answer {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Failed,
    };
    Answer::Error { kind, text: format!("cannot {act} {}: {error}", path.display()).into_bytes() }
}

/// What the host sends while it pushes a file.
#[derive(Debug)]
pub(crate) enum PushPart {
    Data(Vec<u8>),
    End { crc32c: u32, length: u64 },
}

/// Writes a file beside its place and moves it there when it is complete and right.
pub(crate) fn push(
    wanted: &Push,
    parts: &Receiver<PushPart>,
    line: &Line,
) -> Result<Answer, Answer> {
    let path = Path::new(OsStr::from_bytes(&wanted.path));
    let Some(folder) = path.parent().filter(|_| path.is_absolute()) else {
        let text = format!("cannot write {}: not an absolute path of a file", path.display());
        return Err(Answer::Error { kind: ErrorKind::Refused, text: text.into_bytes() });
    };
    fs::create_dir_all(folder).map_err(|error| io_error("make folder", folder, &error))?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".kiln-{}", line.channel));
    let unfinished = folder.join(name);
    let result = receive(wanted, path, &unfinished, parts, line);
    if result.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    result
}

fn receive(
    wanted: &Push,
    path: &Path,
    unfinished: &Path,
    parts: &Receiver<PushPart>,
    line: &Line,
) -> Result<Answer, Answer> {
    let cannot = |error: io::Error| io_error("write", path, &error);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(unfinished)
        .map_err(cannot)?;
    let (mut crc, mut written) = (0, 0_u64);
    // The channel closes without an end when the host cancels or goes away; nobody listens then.
    while let Ok(part) = parts.recv() {
        match part {
            PushPart::Data(bytes) => {
                file.write_all(&bytes).map_err(cannot)?;
                crc = crc32c::crc32c_append(crc, &bytes);
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                written += u64::from(length);
                line.send(&Answer::Credit(length));
            }
            PushPart::End { crc32c, length } if (crc32c, length) == (crc, written) => {
                let mode = fs::Permissions::from_mode(wanted.mode & 0o7777);
                file.set_permissions(mode).map_err(cannot)?;
                drop(file);
                fs::rename(unfinished, path).map_err(cannot)?;
                return Ok(Answer::Done(Done { count: 1, bytes: written, truncated: false }));
            }
            PushPart::End { length, .. } => {
                let text = format!(
                    "cannot write {}: {written} bytes arrived of {length}, or damaged",
                    path.display()
                );
                return Err(Answer::Error { kind: ErrorKind::Failed, text: text.into_bytes() });
            }
        }
    }
    Err(Answer::Error { kind: ErrorKind::Failed, text: b"cancelled".to_vec() })
}

/// Looks at one path.
pub(crate) fn stat(path: &[u8]) -> Result<Answer, Answer> {
    let path = Path::new(OsStr::from_bytes(path));
    let meta = fs::symlink_metadata(path).map_err(|error| io_error("look at", path, &error))?;
    Ok(Answer::Stat(Stat { kind: kind_of(&meta), mode: meta.mode() & 0o7777, size: meta.len() }))
}

fn kind_of(meta: &fs::Metadata) -> EntryKind {
    let kind = meta.file_type();
    if kind.is_file() {
        EntryKind::File
    } else if kind.is_dir() {
        EntryKind::Folder
    } else if kind.is_symlink() {
        EntryKind::Link
    } else {
        let special = kind.is_block_device() || kind.is_char_device();
        debug_assert!(special || kind.is_fifo() || kind.is_socket());
        EntryKind::Special
    }
}

/// Sends all that the patterns name. Links inside a folder are told, not followed; a link that a
/// pattern names itself is followed, because whoever named it wants what it stands for.
pub(crate) fn pull(
    patterns: &[Vec<u8>],
    limits: PullLimits,
    line: &Line,
) -> Result<Answer, Answer> {
    let mut pull = Pull { line, limits, done: Done::default() };
    match pull.send_all(patterns) {
        Ok(()) => {}
        Err(Stop::Limit) => pull.done.truncated = true,
        Err(Stop::Gone) => {
            return Err(Answer::Error { kind: ErrorKind::Failed, text: b"cancelled".to_vec() });
        }
    }
    Ok(Answer::Done(pull.done))
}

struct Pull<'a> {
    line: &'a Line,
    limits: PullLimits,
    done: Done,
}

enum Stop {
    Limit,
    Gone,
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Stop {
        Stop::Gone
    }
}

impl Pull<'_> {
    fn send_all(&mut self, patterns: &[Vec<u8>]) -> Result<(), Stop> {
        for pattern in patterns {
            let pattern = Path::new(OsStr::from_bytes(pattern));
            let found = expand(pattern);
            if found.is_empty() {
                let text = format!("nothing matches {}", pattern.display()).into_bytes();
                self.line.wait_and_send(&Answer::Trouble(text))?;
            }
            found.iter().try_for_each(|path| self.send(path, true, 0))?;
        }
        Ok(())
    }

    fn send(&mut self, path: &Path, follow: bool, depth: usize) -> Result<(), Stop> {
        if depth > MAX_DEPTH {
            return self.trouble("look into", path, "too deep");
        }
        let meta = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
        let meta = match meta {
            Ok(meta) => meta,
            Err(error) => {
                return self.trouble("look at", path, &error.to_string());
            }
        };
        if self.done.count >= u64::from(self.limits.entries) {
            return Err(Stop::Limit);
        }
        let kind = kind_of(&meta);
        // Opened before it is announced, so that what cannot be opened is not announced.
        let file = match kind {
            EntryKind::File => match open_plain(path, follow) {
                Ok(file) => Some(file),
                Err(error) => {
                    return self.trouble("open", path, &error.to_string());
                }
            },
            _ => None,
        };
        let target = match kind {
            EntryKind::Link => fs::read_link(path).unwrap_or_default(),
            _ => PathBuf::new(),
        };
        self.done.count += 1;
        self.line.wait_and_send(&Answer::Entry(Entry {
            path: path.as_os_str().as_bytes().to_vec(),
            kind,
            mode: meta.mode() & 0o7777,
            target: target.as_os_str().as_bytes().to_vec(),
        }))?;
        match (kind, file) {
            (_, Some(file)) => self.send_file(path, file),
            (EntryKind::Folder, None) => self.send_folder(path, depth),
            _ => Ok(()),
        }
    }

    fn send_folder(&mut self, path: &Path, depth: usize) -> Result<(), Stop> {
        let inside = match sorted(path) {
            Ok(inside) => inside,
            Err(error) => {
                return self.trouble("list", path, &error.to_string());
            }
        };
        inside.into_iter().try_for_each(|name| self.send(&path.join(name), false, depth + 1))
    }

    fn send_file(&mut self, path: &Path, mut file: File) -> Result<(), Stop> {
        let (mut crc, mut length) = (0, 0_u64);
        let mut stop = Ok(());
        loop {
            let mut bytes = vec![0; MAX_CHUNK];
            let count = match file.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.trouble("read", path, &error.to_string())?;
                    break;
                }
            };
            let left = self.limits.bytes.saturating_sub(self.done.bytes);
            let take = count.min(usize::try_from(left).unwrap_or(usize::MAX));
            bytes.truncate(take);
            crc = crc32c::crc32c_append(crc, &bytes);
            let taken = u64::try_from(take).unwrap_or(u64::MAX);
            length += taken;
            self.done.bytes += taken;
            if take > 0 {
                self.line.wait_and_send(&Answer::Data(bytes))?;
            }
            if take < count {
                stop = Err(Stop::Limit);
                break;
            }
        }
        self.line.wait_and_send(&Answer::EntryEnd { crc32c: crc, length })?;
        stop
    }

    /// Tells what could not be sent, and goes on.
    fn trouble(&self, act: &str, path: &Path, why: &str) -> Result<(), Stop> {
        let text = format!("cannot {act} {}: {why}", path.display());
        Ok(self.line.wait_and_send(&Answer::Trouble(text.into_bytes()))?)
    }
}

fn open_plain(path: &Path, follow: bool) -> io::Result<File> {
    // Never waits for the other end, should a pipe have taken the file's place meanwhile.
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    if !follow {
        flags |= OFlags::NOFOLLOW;
    }
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a file any more")) }
}

fn sorted(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// All paths a pattern names, sorted. `*` and `?` match within one name and not a leading dot, as in
/// a shell.
fn expand(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for component in pattern.components() {
        let Component::Normal(wanted) = component else { continue };
        let text = wanted.to_string_lossy();
        let is_wild = text.contains(['*', '?']);
        let mut next = Vec::new();
        for folder in found {
            if !is_wild {
                let path = folder.join(wanted);
                if fs::symlink_metadata(&path).is_ok() {
                    next.push(path);
                }
                continue;
            }
            for name in sorted(&folder).unwrap_or_default() {
                let shown = name.to_string_lossy();
                let is_hidden = shown.starts_with('.') && !text.starts_with('.');
                if !is_hidden && wildcard::matches(&text, &shown) {
                    next.push(folder.join(name));
                }
            }
        }
        found = next;
    }
    found
}
