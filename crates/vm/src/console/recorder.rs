//! The console's file: complete up to its bound, beyond it the first and the last half.
//!
//! While the machine runs, bytes past the first half go round in the second half of the file, so that the
//! file never grows beyond its bound and holds the newest bytes even when we are killed. [`Recorder::finish`] puts the
//! second half in order and says in one line how much is missing between the two.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Smallest bound worth a file: both halves and the note between them.
const SMALLEST: u64 = 4096;

/// Writes a stream into a file of bounded size.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    path: PathBuf,
    head: u64,
    ring: u64,
    seen: u64,
    broken: bool,
}

impl Recorder {
    /// Creates (or empties) the file. `limit` bounds its size in bytes, but for the note of at most 100 bytes.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(path: &Path, limit: u64) -> io::Result<Recorder> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        let ring = limit.max(SMALLEST) / 2;
        Ok(Recorder { file, path: path.to_owned(), head: ring, ring, seen: 0, broken: false })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many bytes came in, kept or not.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Appends.
    ///
    /// # Errors
    /// The first failure is reported (a full disk), later bytes are dropped in silence: the machine must not stop
    /// because its console cannot be kept.
    pub fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() && !self.broken {
            let (at, room) = self.place();
            let take = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(take);
            if let Err(error) = self.file.write_all_at(now, at) {
                self.broken = true;
                return Err(error);
            }
            self.seen += now.len() as u64;
            bytes = later;
        }
        self.seen += bytes.len() as u64;
        Ok(())
    }

    /// Where the next byte goes, and how many may follow it there.
    fn place(&self) -> (u64, u64) {
        match self.head.checked_sub(self.seen) {
            Some(room) if room > 0 => (self.seen, room),
            _ => {
                let turn = (self.seen - self.head) % self.ring;
                (self.head + turn, self.ring - turn)
            }
        }
    }

    /// Puts the last half in order, behind a note of what was dropped. Without an overflow nothing is left to do.
    ///
    /// # Errors
    /// When the file cannot be read or written; it then holds what it held.
    pub fn finish(self) -> io::Result<()> {
        let kept = self.head + self.ring;
        if self.broken || self.seen <= kept {
            return Ok(());
        }
        let (oldest, _) = self.place();
        let size = usize::try_from(self.ring).map_err(io::Error::other)?;
        let mut tail = vec![0; size];
        let turn = usize::try_from(oldest - self.head).map_err(io::Error::other)?;
        let (newer, older) = tail.split_at_mut(size - turn);
        self.file.read_exact_at(newer, oldest)?;
        self.file.read_exact_at(older, self.head)?;
        let note =
            format!("\n[kiln: {} bytes of console output left out here]\n", self.seen - kept);
        self.file.write_all_at(note.as_bytes(), self.head)?;
        self.file.write_all_at(&tail, self.head + note.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(limit: u64, bytes: &[u8], piece: usize) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut recorder = Recorder::create(&path, limit).unwrap();
        for piece in bytes.chunks(piece) {
            recorder.push(piece).unwrap();
        }
        assert!(std::fs::metadata(&path).unwrap().len() <= limit);
        recorder.finish().unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn what_fits_is_kept_whole_and_unmarked() {
        let bytes: Vec<u8> = (0..8192u32).map(|n| b'a' + u8::try_from(n % 26).unwrap()).collect();
        assert_eq!(record(8192, &bytes, 1000), bytes);
    }

    #[test]
    fn what_does_not_fit_keeps_its_first_and_its_last_half_in_order() {
        let bytes: Vec<u8> =
            (0..100_003u32).map(|n| b'a' + u8::try_from(n * 7 % 23).unwrap()).collect();
        for piece in [1, 999, 4096, 50_000] {
            let kept = record(8192, &bytes, piece);
            assert_eq!(kept[..4096], bytes[..4096]);
            assert_eq!(kept[kept.len() - 4096..], bytes[bytes.len() - 4096..]);
            let note = String::from_utf8_lossy(&kept[4096..kept.len() - 4096]).into_owned();
            assert_eq!(note, "\n[kiln: 91811 bytes of console output left out here]\n");
        }
    }

    #[test]
    fn a_full_disk_is_reported_once_and_then_endured() {
        let mut recorder = Recorder::create(Path::new("/dev/full"), 8192).unwrap();
        let error = recorder.push(b"lost").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        recorder.push(&[0; 100_000]).unwrap();
        recorder.finish().unwrap();
    }
}
