//! What an output was built from, kept in it: looking again at all of that tells whether it is still right.
//!
//! | field   | form                                                                                    |
//! |---------|-----------------------------------------------------------------------------------------|
//! | magic   | `kiln supermin 2` and a newline                                                         |
//! | request | blake3 over what was asked for; 64 hexadecimal digits and a newline                     |
//! | outputs | for each file of the output its name, a blank, its length, a newline; then an empty line |
//! | witness | of everything that was looked at ([`witness`])                                          |
//!
//! A record is a hint. Whatever is wrong with one, it is the same as having none.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::closure::host::Input;
use crate::witness;

/// In the output.
pub(super) const NAME: &str = ".kiln-supermin";
const MAGIC: &[u8] = b"kiln supermin 2\n";
const SIZE_LIMIT: u64 = 256 << 20;
/// File systems stamp changes with a clock that ticks this often at the slowest.
const TICK: Duration = Duration::from_millis(20);

/// Everything that was looked at.
#[derive(Debug, Default)]
pub(super) struct Seen(Vec<Input>);

impl Seen {
    pub(super) fn add(&mut self, input: Input) {
        self.0.push(input);
    }

    /// Looks at a path; `listed` says that a directory's names matter.
    pub(super) fn look(&mut self, path: &Path, listed: bool) -> io::Result<()> {
        self.0.push(Input::look(path, listed)?);
        Ok(())
    }

    /// Waits until whatever changes next has other times than what was seen, and looks again at what is too young
    /// to tell.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        let now = SystemTime::now();
        let young = |input: &&mut Input| input.age(now).is_some_and(|age| age < TICK);
        let mut young: Vec<&mut Input> = self.0.iter_mut().filter(young).collect();
        if young.is_empty() {
            return Ok(());
        }
        std::thread::sleep(TICK);
        for input in &mut young {
            **input = Input::look(&input.path, input.listed)?;
        }
        Ok(())
    }

    /// The record of an output.
    pub(super) fn record(&self, request: &blake3::Hash, outputs: &[(&str, u64)]) -> Vec<u8> {
        let mut text = MAGIC.to_vec();
        text.extend_from_slice(request.to_hex().as_bytes());
        text.push(b'\n');
        for (name, len) in outputs {
            text.extend_from_slice(format!("{name} {len}\n").as_bytes());
        }
        text.push(b'\n');
        witness::write(&self.0, &mut text);
        text
    }
}

/// Whether an output is whole, was asked for in the same way, and nothing it was made of has changed since.
pub(super) fn still_holds(output: &Path, request: &blake3::Hash) -> bool {
    holds(output, request).is_some_and(|holds| holds)
}

fn holds(output: &Path, request: &blake3::Hash) -> Option<bool> {
    let mut bytes = Vec::new();
    fs::File::open(output.join(NAME)).ok()?.take(SIZE_LIMIT).read_to_end(&mut bytes).ok()?;
    let (asked, rest) = bytes.strip_prefix(MAGIC)?.split_at_checked(64)?;
    let mut rest = rest.strip_prefix(b"\n")?;
    if asked != request.to_hex().as_bytes() {
        return Some(false);
    }
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let (line, after) = (std::str::from_utf8(&rest[..end]).ok()?, &rest[end + 1..]);
        rest = after;
        if line.is_empty() {
            break;
        }
        let (name, len) = line.rsplit_once(' ')?;
        // A link to the kernel counts as what it leads to.
        if fs::metadata(output.join(name)).ok()?.len() != len.parse::<u64>().ok()? {
            return Some(false);
        }
    }
    Some(witness::holds(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_holds_until_something_changes() {
        let here = tempfile::tempdir().unwrap();
        let path = |name: &str| here.path().join(name);
        for (name, text) in [("file", "1"), ("out/root", "image"), ("other", "")] {
            fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            fs::write(path(name), text).unwrap();
        }
        let request = blake3::hash(b"this");
        let write = || {
            let mut seen = Seen::default();
            seen.look(&path("file"), false).unwrap();
            seen.look(&path("absent"), false).unwrap();
            seen.settle().unwrap();
            fs::write(path("out").join(NAME), seen.record(&request, &[("root", 5)])).unwrap();
        };
        let holds = || still_holds(&path("out"), &request);
        write();
        assert!(holds());
        assert!(!still_holds(&path("out"), &blake3::hash(b"that")), "asked for otherwise");
        fs::write(path("out/root"), "im").unwrap();
        assert!(!holds(), "the output is cut");
        fs::write(path("out/root"), "IMAGE").unwrap();
        assert!(holds());
        fs::write(path("file"), "2").unwrap();
        assert!(!holds(), "an input was edited, though it is as long as before");
        write();
        fs::write(path("absent"), "").unwrap();
        assert!(!holds(), "what was not there is there");
        write();
        let record = path("out").join(NAME);
        let bytes = fs::read(&record).unwrap();
        for len in 0..bytes.len() {
            fs::write(&record, &bytes[..len]).unwrap();
            assert!(!holds(), "a record of {len} bytes");
        }
    }
}
