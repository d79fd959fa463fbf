//! Large files written past the page cache: what is written is hardly read again soon, and filling the cache with it
//! costs several times what writing it does.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::mpsc;

use kiln_block::{BlockSource, ByteLen, ByteOffset, ExtentKind};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::SuperminError;

/// What is handled at once.
const CHUNK: usize = 1 << 20;
/// What disks and memory want addresses and lengths to be multiples of.
const PAGE: usize = 4096;
/// Chunks that wait to be written while others are read.
const CHUNKS: usize = 4;

/// Writes a disk into a new file, with holes where it has none of its own or zeros. Fails with what the disk says when
/// it cannot be read.
pub(super) fn write_disk(
    disk: &dyn BlockSource,
    path: &Path,
    unreadable: &dyn Fn(kiln_block::DeviceError) -> SuperminError,
) -> Result<(), SuperminError> {
    let len = disk.size();
    let extents = disk.extents(ByteOffset::new(0), len).map_err(unreadable)?;
    let data = extents.iter().filter(|extent| extent.kind == ExtentKind::Data);
    let ranges = data.map(|extent| (extent.at.get(), extent.len.get()));
    write(path, len, ranges, &mut |at, buffer| disk.read(at, buffer).map_err(unreadable))
}

/// Copies a file into a new one, with holes where there are only zeros.
pub(super) fn copy_file(from: &Path, to: &Path) -> Result<(), SuperminError> {
    let failed = |error| SuperminError::host("read", from, error);
    let file = File::open(from).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    write(to, ByteLen::new(len), [(0, len)].into_iter(), &mut |at, buffer| {
        file.read_exact_at(buffer, at).map_err(failed)
    })
}

/// Fills a buffer from a place on.
type Read<'r> = dyn FnMut(u64, &mut [u8]) -> Result<(), SuperminError> + 'r;

/// A part of the file, on its way to the disk.
struct Chunk {
    buffer: Vec<u8>,
    /// Where in the buffer a page begins.
    start: usize,
    at: u64,
    len: usize,
}

impl Chunk {
    fn new() -> Chunk {
        let buffer = vec![0; CHUNK + PAGE];
        let start = buffer.as_ptr().align_offset(PAGE).min(PAGE);
        Chunk { buffer, start, at: 0, len: 0 }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.start + CHUNK]
    }
}

fn write(
    path: &Path,
    len: ByteLen,
    ranges: impl Iterator<Item = (u64, u64)>,
    read: &mut Read<'_>,
) -> Result<(), SuperminError> {
    let failed = |error| SuperminError::host("write", path, error);
    let out = create(path).map_err(failed)?;
    // Beyond its end nothing is written but whole pages.
    out.set_len(len.get()).map_err(failed)?;
    let written = std::thread::scope(|scope| {
        let (full, to_write) = mpsc::sync_channel::<Chunk>(CHUNKS);
        let (written, empty) = mpsc::channel::<Chunk>();
        for _ in 0..CHUNKS {
            // The other end lives in this function.
            let _ = written.send(Chunk::new());
        }
        let out = &out;
        let writer = scope.spawn(move || -> io::Result<()> {
            for mut chunk in to_write {
                let (at, len) = (chunk.at, chunk.len);
                put(out, at, &chunk.bytes()[..len])?;
                let _ = written.send(chunk);
            }
            Ok(())
        });
        let mut outcome = Ok(());
        'all: for (start, count) in ranges {
            let mut done = 0;
            while done < count {
                // The writer has failed and says why below.
                let Ok(mut chunk) = empty.recv() else { break 'all };
                let part = usize::try_from(count - done).unwrap_or(CHUNK).min(CHUNK);
                (chunk.at, chunk.len) = (start + done, part.next_multiple_of(PAGE));
                let bytes = chunk.bytes();
                bytes[part..part.next_multiple_of(PAGE)].fill(0);
                if let Err(error) = read(start + done, &mut bytes[..part]) {
                    outcome = Err(error);
                    break 'all;
                }
                done += part as u64;
                if full.send(chunk).is_err() {
                    break 'all;
                }
            }
        }
        drop(full);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        outcome.and(written.map_err(failed))
    });
    written?;
    out.set_len(len.get()).map_err(failed)
}

/// Opens a new file past the page cache, or through it on file systems where that is the only way.
fn create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true);
    let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
    match options.clone().custom_flags(flags).open(path) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
            // Some file systems make the file before they refuse.
            let _ = std::fs::remove_file(path);
            options.open(path)
        }
        opened => opened,
    }
}

/// Writes the pages that hold anything.
fn put(out: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    let is_empty = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let mut start = 0;
    while start < bytes.len() {
        if is_empty(&bytes[start..start + PAGE]) {
            start += PAGE;
            continue;
        }
        let mut end = start + PAGE;
        while end < bytes.len() && !is_empty(&bytes[end..end + PAGE]) {
            end += PAGE;
        }
        put_all(out, at + start as u64, &bytes[start..end])?;
        start = end;
    }
    Ok(())
}

fn put_all(out: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    match out.write_all_at(bytes, at) {
        // A disk that wants more than pages: through the cache from here on.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
            let flags = rustix::fs::fcntl_getfl(out)?;
            if !flags.contains(OFlags::DIRECT) {
                return Err(error);
            }
            rustix::fs::fcntl_setfl(out, flags - OFlags::DIRECT)?;
            out.write_all_at(bytes, at)
        }
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_no_zeros_on_the_disk() {
        let here = tempfile::tempdir().unwrap();
        let (from, to) = (here.path().join("from"), here.path().join("to"));
        for len in [0, 1, 4095, 4096, 5000, CHUNK, 3 * CHUNK + 17] {
            let bytes: Vec<u8> = (0..len)
                .map(|at| if at / PAGE % 3 == 1 { 0 } else { 1 + u8::try_from(at % 251).unwrap() })
                .collect();
            std::fs::write(&from, &bytes).unwrap();
            copy_file(&from, &to).unwrap();
            assert!(std::fs::read(&to).unwrap() == bytes, "{len} bytes");
            let stored = std::fs::metadata(&to).unwrap().blocks() * 512;
            assert!(len < 2 * PAGE || stored < bytes.len() as u64, "{stored} of {len} bytes");
            std::fs::remove_file(&to).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_read_ends_the_writing() {
        let here = tempfile::tempdir().unwrap();
        let range = [(0, 64 << 20)].into_iter();
        let mut left = 6;
        let result = write(&here.path().join("to"), ByteLen::mib(64), range, &mut |_, _| {
            left -= 1;
            if left > 0 { Ok(()) } else { Err(SuperminError::NoPackage { names: Vec::new() }) }
        });
        assert!(matches!(result, Err(SuperminError::NoPackage { .. })), "{result:?}");
    }
}
