//! What is sent as a blob: a file, perhaps with bytes before and behind it that are in no file.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::error::failed;
use crate::{Digest, RegistryError};

/// A file's bytes, between others. It must not change until it is sent.
#[derive(Debug)]
pub struct Content {
    head: Vec<u8>,
    file: File,
    /// Bytes of the file.
    len: u64,
    tail: Vec<u8>,
}

impl Content {
    /// A file as it is.
    pub fn of_file(path: &Path) -> Result<Content, RegistryError> {
        let file = File::open(path).map_err(failed("open", path))?;
        let len = file.metadata().map_err(failed("look at", path))?.len();
        Ok(Content { head: Vec::new(), file, len, tail: Vec::new() })
    }

    /// The same between `head` and `tail`.
    #[must_use]
    pub fn between(self, head: Vec<u8>, tail: Vec<u8>) -> Content {
        Content { head, tail, ..self }
    }

    /// How many bytes that are together.
    pub fn size(&self) -> u64 {
        (self.head.len() + self.tail.len()) as u64 + self.len
    }

    /// What they are called.
    pub fn digest(&self) -> io::Result<Digest> {
        Ok(Digest::of_reader(self.part(0, self.size()))?.0)
    }

    /// Bytes of it, to be read once.
    pub(crate) fn part(&self, at: u64, len: u64) -> Part<'_> {
        Part { content: self, at, left: len }
    }

    /// Reads some bytes, at least one if the buffer has room and it is not the end.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let head = self.head.len() as u64;
        let from = |bytes: &[u8], at: u64, buffer: &mut [u8]| {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            bytes.get(at..).unwrap_or_default().read(buffer)
        };
        if at < head {
            return from(&self.head, at, buffer);
        }
        let within = at - head;
        if within >= self.len {
            return from(&self.tail, within - self.len, buffer);
        }
        let most = usize::try_from(self.len - within).unwrap_or(usize::MAX).min(buffer.len());
        match self.file.read_at(&mut buffer[..most], within)? {
            0 if most > 0 => Err(io::Error::other("the file became shorter while it was sent")),
            read => Ok(read),
        }
    }
}

/// A part of a content, being read.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    content: &'a Content,
    at: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.content.read_at(&mut buffer[..most], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_content_are_the_same_wherever_they_are_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"in the middle").unwrap();
        let content =
            Content::of_file(&path).unwrap().between(b"head ".to_vec(), b" tail".to_vec());
        let all = b"head in the middle tail";
        assert_eq!(content.size(), all.len() as u64);
        assert_eq!(content.digest().unwrap(), Digest::of(all));
        for at in 0..=all.len() {
            for len in 0..=all.len() - at {
                let mut read = Vec::new();
                let mut part = content.part(at as u64, len as u64);
                part.read_to_end(&mut read).unwrap();
                assert_eq!(read, all[at..at + len]);
            }
        }
        std::fs::write(&path, b"in").unwrap();
        let told = content.digest().unwrap_err().to_string();
        assert!(told.contains("became shorter"), "{told}");
    }
}
