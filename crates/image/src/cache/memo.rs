//! The memo of a request: which files were looked at, and which image that led to. A later request
//! looks at them again and is done, if nothing has changed.
//!
//! A memo is a hint. Whatever is wrong with one, it is the same as having none.
//!
//! | field | form                                                                               |
//! |-------|------------------------------------------------------------------------------------|
//! | magic | `kiln image memo 1` and a newline                                                  |
//! | key   | 64 hexadecimal digits and a newline                                                |
//! | seen  | blake3 over what was seen, in the order of the paths; 64 digits and a newline      |
//! | paths | each `L` (a directory that was listed) or `.`, the path, and a NUL                 |

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::closure::host::{Input, is_absence};
use crate::inventory::Stamp;

const MAGIC: &[u8] = b"kiln image memo 1\n";
/// Fewer paths than this are not worth a thread.
const SHARE: usize = 1000;
/// A million paths; larger memos are somebody else's.
const SIZE_LIMIT: u64 = 256 << 20;

/// The key a memo leads to, if all it looked at is as it was.
pub(super) fn recall(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(SIZE_LIMIT).read_to_end(&mut bytes).ok()?;
    let rest = bytes.strip_prefix(MAGIC)?;
    let (key, rest) = line(rest)?;
    let (seen, mut rest) = line(rest)?;
    let mut looked_at = Vec::new();
    while let Some((&kind, after)) = rest.split_first() {
        let end = after.iter().position(|&byte| byte == 0)?;
        looked_at.push((kind == b'L', Path::new(OsStr::from_bytes(&after[..end]))));
        rest = &after[end + 1..];
    }
    let mut digest = blake3::Hasher::new();
    for input in look_again(&looked_at)? {
        input.feed(&mut digest);
    }
    (digest.finalize().to_hex().as_str() == seen).then_some(key)
}

/// Looks at all paths, on all processors where they are many: it is the kernel's work, mostly.
fn look_again(paths: &[(bool, &Path)]) -> Option<Vec<Input>> {
    let look = |paths: &[(bool, &Path)]| -> Option<Vec<Input>> {
        let mut folder = Folder::default();
        paths.iter().map(|(listed, path)| folder.look(path, *listed)).collect()
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = paths.len().div_ceil(threads).max(SHARE);
    if paths.len() <= share {
        return look(paths);
    }
    std::thread::scope(|scope| {
        let lookers: Vec<_> =
            paths.chunks(share).map(|share| scope.spawn(move || look(share))).collect();
        let mut all = Vec::with_capacity(paths.len());
        for looker in lookers {
            // One that panicked has told why; to have no memo is always right.
            all.extend(looker.join().ok()??);
        }
        Some(all)
    })
}

/// The folder of the path that was looked at last, open: the next one lies in it, most likely, and is found in one step.
#[derive(Default)]
struct Folder<'p> {
    path: Option<&'p Path>,
    open: Option<OwnedFd>,
}

impl<'p> Folder<'p> {
    fn look(&mut self, path: &'p Path, listed: bool) -> Option<Input> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Input::look(path, listed).ok();
        };
        if self.path != Some(parent) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            self.open = rustix::fs::open(parent, flags, Mode::empty()).ok();
            self.path = Some(parent);
        }
        // One that cannot be opened may still tell why there is nothing.
        let Some(folder) = &self.open else { return Input::look(path, listed).ok() };
        let stamp = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(Stamp::of_stat(&stat)?),
            Err(error) if is_absence(&error.into()) => None,
            Err(_) => return None,
        };
        Some(Input { path: path.to_owned(), listed, stamp })
    }
}

/// The text of a memo.
pub(super) fn write(key: &str, inputs: &[Input]) -> Vec<u8> {
    let mut digest = blake3::Hasher::new();
    for input in inputs {
        input.feed(&mut digest);
    }
    let mut text = MAGIC.to_vec();
    for word in [key, digest.finalize().to_hex().as_str()] {
        text.extend_from_slice(word.as_bytes());
        text.push(b'\n');
    }
    for input in inputs {
        text.push(if input.listed { b'L' } else { b'.' });
        text.extend_from_slice(input.path.as_os_str().as_bytes());
        text.push(0);
    }
    text
}

fn line(text: &[u8]) -> Option<(String, &[u8])> {
    let (line, rest) = text.split_at_checked(64)?;
    let rest = rest.strip_prefix(b"\n")?;
    Some((String::from_utf8(line.to_vec()).ok()?, rest))
}
