//! A witness of what was looked at: asked again, it says whether all of that is still the same.
//!
//! | field   | form                                                                                              |
//! |---------|---------------------------------------------------------------------------------------------------|
//! | seen    | blake3 over what was seen, in the order below; 64 hexadecimal digits and a newline                |
//! | folders | the folder's path, a NUL; for each thing in it `L` (a directory that was listed) or `.`, its name, a NUL; then one more NUL |
//!
//! Things lie by folder, so that one step of the kernel finds each, and nothing is allocated for it: asking is what
//! finding an image again costs.

use std::ffi::CStr;
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Mode, OFlags};

use crate::closure::host::{Input, is_absence};
use crate::inventory::Stamp;

/// Digits and newline of the digest.
const DIGEST: usize = 65;
/// Less text than this, some thousand things, is not worth a thread.
const SHARE: usize = 16 << 10;
/// The kernel's own locks let more gain little.
const MOST_THREADS: usize = 4;
/// A folder with more things comes again, so that others may look at the rest of it.
const LARGEST_GROUP: usize = 512;

/// Appends a witness of some inputs.
pub(crate) fn write(inputs: &[Input], out: &mut Vec<u8>) {
    let mut things: Vec<(&[u8], &[u8], &Input)> = inputs
        .iter()
        .map(|input| {
            let (folder, name) = split(input.path.as_os_str().as_bytes());
            (folder, name, input)
        })
        .collect();
    things.sort_by_key(|(folder, name, _)| (*folder, *name));
    // Seen twice, and the same both times.
    things.dedup_by(|one, other| one.2 == other.2);
    let (mut seen, mut folders) = (Vec::new(), Vec::new());
    for in_folder in things.chunk_by(|one, other| one.0 == other.0) {
        for group in in_folder.chunks(LARGEST_GROUP) {
            for (at, (folder, name, input)) in group.iter().enumerate() {
                if at == 0 {
                    folders.extend_from_slice(folder);
                    folders.push(0);
                }
                folders.push(if input.listed { b'L' } else { b'.' });
                folders.extend_from_slice(name);
                folders.push(0);
                Input::put(input.stamp.as_ref(), input.listed, &mut seen);
            }
            folders.push(0);
        }
    }
    out.extend_from_slice(blake3::hash(&seen).to_hex().as_bytes());
    out.push(b'\n');
    out.append(&mut folders);
}

/// Whether everything a witness names is as it was; no where the witness makes no sense.
pub(crate) fn holds(witness: &[u8]) -> bool {
    ask(witness).is_some_and(|holds| holds)
}

fn ask(witness: &[u8]) -> Option<bool> {
    let (digest, folders) = witness.split_at_checked(DIGEST)?;
    let digest = digest.strip_suffix(b"\n")?;
    let parts = parts(folders, threads());
    let mut now = blake3::Hasher::new();
    std::thread::scope(|scope| {
        let (first, others) = parts.split_first()?;
        let others: Vec<_> = others.iter().map(|part| scope.spawn(|| look(part))).collect();
        now.update(&look(first)?);
        for other in others {
            // One that panicked has told why; not to hold is always right.
            now.update(&other.join().ok()??);
        }
        Some(())
    })?;
    Some(now.finalize().to_hex().as_bytes() == digest)
}

/// On how many processors this process may run. What the control groups say would take longer to find out than to look.
fn threads() -> usize {
    let count = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
    usize::try_from(count).unwrap_or(1).clamp(1, MOST_THREADS)
}

/// The folders in about so many parts of the same length; at least one part.
fn parts(folders: &[u8], wanted: usize) -> Vec<&[u8]> {
    let share = folders.len().div_ceil(wanted).max(SHARE);
    let (mut parts, mut rest) = (Vec::new(), folders);
    while rest.len() > share {
        // No path and no name is empty: two NULs are the end of a folder.
        let Some(end) = rest[share..].windows(2).position(|two| two == [0, 0]) else { break };
        let (part, after) = rest.split_at(share + end + 2);
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    parts
}

/// What is to be seen now.
fn look(folders: &[u8]) -> Option<Vec<u8>> {
    let mut seen = Vec::with_capacity(folders.len() * 4);
    let mut text = folders;
    while !text.is_empty() {
        let folder = word(&mut text)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = match rustix::fs::open(folder, flags, Mode::empty()) {
            Ok(open) => Some(open),
            Err(error) if is_absence(&error.into()) => None,
            Err(_) => return None,
        };
        loop {
            let (&kind, rest) = text.split_first()?;
            text = rest;
            if kind == 0 {
                break;
            }
            let name = word(&mut text)?;
            let stamp = match &open {
                None => None,
                Some(open) => match rustix::fs::statat(open, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => Some(Stamp::of_stat(&stat)?),
                    Err(error) if is_absence(&error.into()) => None,
                    Err(_) => return None,
                },
            };
            Input::put(stamp.as_ref(), kind == b'L', &mut seen);
        }
    }
    Some(seen)
}

/// The text before the next NUL, which is taken away with it.
fn word<'t>(text: &mut &'t [u8]) -> Option<&'t CStr> {
    let word = CStr::from_bytes_until_nul(text).ok()?;
    *text = &text[word.count_bytes() + 1..];
    Some(word)
}

/// A path as a folder and a name in it. Where it has no name, it is itself the folder.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let slash = path.iter().rposition(|byte| *byte == b'/');
    let (folder, name) = match slash {
        Some(0) => (&path[..1], &path[1..]),
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&b"."[..], path),
    };
    if name.is_empty() { (path, b".") } else { (folder, name) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn of(paths: &[&Path], listed: bool) -> Vec<u8> {
        let inputs: Vec<Input> =
            paths.iter().map(|path| Input::look(path, listed).unwrap()).collect();
        let mut text = Vec::new();
        write(&inputs, &mut text);
        text
    }

    #[test]
    fn a_witness_holds_until_something_changes() {
        let here = tempfile::tempdir().unwrap();
        let path = |name: &str| here.path().join(name);
        fs::create_dir_all(path("folder/deep")).unwrap();
        for name in ["file", "folder/file", "folder/deep/file"] {
            fs::write(path(name), "1").unwrap();
        }
        std::os::unix::fs::symlink("folder", path("link")).unwrap();
        let names =
            ["file", "folder", "folder/file", "folder/deep/file", "link", "link/", "link/file"];
        let paths = names.map(path);
        let absent = ["absent", "absent/too", "file/in-a-file"].map(path);
        let all: Vec<&Path> = paths.iter().chain(&absent).map(AsRef::as_ref).collect();
        let all = [&all[..], &[Path::new("/"), Path::new("."), Path::new("/usr")]].concat();
        let before = of(&all, false);
        assert!(holds(&before));
        fs::write(path("folder/deep/file"), "22").unwrap();
        assert!(!holds(&before), "a file was written");
        let before = of(&all, false);
        fs::write(path("absent"), "").unwrap();
        assert!(!holds(&before), "what was not there is there");
        let before = of(&all, false);
        fs::remove_file(path("file")).unwrap();
        assert!(!holds(&before), "what was there is gone");
        let folder = path("folder");
        let (passed, listed) = (of(&[&folder], false), of(&[&folder], true));
        // Filesystems tell times as a coarse clock ticks: until what is made now is later than the directory.
        let changed = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        while fs::write(path("now"), "").is_ok() && changed(&path("now")) <= changed(&folder) {}
        fs::write(folder.join("new"), "").unwrap();
        assert!(holds(&passed), "a directory on the way has another name in it");
        assert!(!holds(&listed), "a directory that was listed has another name in it");
    }

    #[test]
    fn every_thing_is_looked_at_whoever_looks() {
        let here = tempfile::tempdir().unwrap();
        let name = |number: usize| here.path().join(format!("{}/{number:040}", number % 7));
        for folder in 0..7 {
            fs::create_dir(here.path().join(folder.to_string())).unwrap();
        }
        let paths: Vec<_> = (0..6 * LARGEST_GROUP).map(name).collect();
        let all: Vec<&Path> = paths.iter().map(AsRef::as_ref).collect();
        let before = of(&all, false);
        let folders = &before[DIGEST..];
        for wanted in 1..9 {
            let parts = parts(folders, wanted);
            assert!(parts.len() <= wanted);
            assert_eq!(parts.concat(), folders);
            let seen: Vec<Vec<u8>> = parts.iter().map(|part| look(part).unwrap()).collect();
            assert!(seen.concat() == look(folders).unwrap(), "{wanted}");
        }
        assert!(parts(folders, 3).len() > 1);
        assert!(holds(&before));
        for path in [&paths[0], &paths[1500], &paths[paths.len() - 1]] {
            fs::write(path, "").unwrap();
            assert!(!holds(&before), "{}", path.display());
            fs::remove_file(path).unwrap();
            assert!(holds(&before));
        }
    }

    #[test]
    fn a_witness_that_is_cut_off_holds_nothing() {
        let here = tempfile::tempdir().unwrap();
        let text = of(&[here.path(), &here.path().join("absent")], true);
        for len in 0..text.len() {
            assert!(!holds(&text[..len]), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn hostile_witnesses_never_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut witness = vec![b'0'; DIGEST - 1];
            witness.push(b'\n');
            witness.extend(text);
            prop_assert!(!holds(&witness));
        }
    }
}
