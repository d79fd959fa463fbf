//! The memory of a machine as a file: how it is made, kept without what is zero, and copied for a machine that shares it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::thread;

use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek, sendfile};
use rustix::io::Errno;

/// What is zero is left out in pieces of this size.
const PAGE: usize = 4096;
/// How much is read at once.
const STEP: usize = 1 << 20;
/// The most threads that copy memory; more only wait for the host's memory.
const COPIERS: usize = 4;
/// The smallest piece worth a thread.
const SHARE: u64 = 8 << 20;

/// Memory without a name: gone with the last process that has it open.
pub(crate) fn anonymous(size: u64) -> io::Result<File> {
    let file = File::from(memfd_create("kiln-memory", MemfdFlags::CLOEXEC)?);
    file.set_len(size)?;
    Ok(file)
}

/// The same file under a descriptor, and so an offset, of its own.
fn again(file: &File, writable: bool) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().read(true).write(writable).open(path)
}

/// Where a file holds data, as (start, length), in order.
fn extents(file: &File) -> io::Result<Vec<(u64, u64)>> {
    let end = file.metadata()?.len();
    let mut found = Vec::new();
    let mut at = 0;
    while at < end {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = seek(file, SeekFrom::Hole(start))?;
        found.push((start, at - start));
    }
    Ok(found)
}

/// Writes what is not zero in `memory` to `file`, which is empty; returns how many bytes that are. Whoever can change the
/// memory stands still meanwhile.
pub(crate) fn keep(memory: &File, file: &File) -> io::Result<u64> {
    let memory = again(memory, false)?;
    file.set_len(memory.metadata()?.len())?;
    let mut buffer = vec![0; STEP];
    let mut kept = 0;
    for (start, length) in extents(&memory)? {
        let mut at = start;
        while at < start + length {
            let step = (start + length - at).min(STEP as u64);
            let piece = &mut buffer[..usize::try_from(step).unwrap_or(STEP)];
            memory.read_exact_at(piece, at)?;
            kept += write_what_is_not_zero(piece, at, file)?;
            at += step;
        }
    }
    Ok(kept)
}

fn write_what_is_not_zero(piece: &[u8], at: u64, file: &File) -> io::Result<u64> {
    const ZEROS: [u8; PAGE] = [0; PAGE];
    let is_zero = |page: &[u8]| *page == ZEROS[..page.len()];
    let mut written = 0;
    let mut start = 0;
    while start < piece.len() {
        let pages = || piece[start..].chunks(PAGE);
        let zeros: usize = pages().take_while(|page| is_zero(page)).map(<[u8]>::len).sum();
        let from = start + zeros;
        let data = piece[from..].chunks(PAGE).take_while(|page| !is_zero(page));
        let data: usize = data.map(<[u8]>::len).sum();
        file.write_all_at(&piece[from..from + data], at + from as u64)?;
        written += data as u64;
        start = from + data;
    }
    Ok(written)
}

/// Copies memory that was kept into memory of that size that nobody wrote to.
pub(crate) fn copy(kept: &File, copy: &File) -> io::Result<()> {
    let pieces: Vec<(u64, u64)> = extents(&again(kept, false)?)?
        .into_iter()
        .flat_map(|(start, length)| {
            let end = start + length;
            (start..end).step_by(STEP).map(move |at| (at, (end - at).min(STEP as u64)))
        })
        .collect();
    let bytes: u64 = pieces.iter().map(|(_, length)| length).sum();
    let threads = thread::available_parallelism().map_or(1, usize::from).min(COPIERS);
    let threads = threads.min(usize::try_from(bytes / SHARE).unwrap_or(COPIERS)).max(1);
    let share = pieces.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let copiers: Vec<_> = pieces
            .chunks(share)
            .map(|pieces| scope.spawn(|| copy_pieces(kept, copy, pieces)))
            .collect();
        let panicked = |_| Err(io::Error::other("a thread that copies memory ended"));
        copiers.into_iter().try_for_each(|copier| copier.join().unwrap_or_else(panicked))
    })
}

fn copy_pieces(from: &File, to: &File, pieces: &[(u64, u64)]) -> io::Result<()> {
    let to = again(to, true)?;
    for &(start, length) in pieces {
        seek(&to, SeekFrom::Start(start))?;
        let mut at = start;
        while at < start + length {
            let left = usize::try_from(start + length - at).unwrap_or(STEP);
            if sendfile(&to, from, Some(&mut at), left)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 64 << 20;

    /// Data at both ends, across pages and in pages that were touched and are zero.
    fn memory() -> File {
        let memory = anonymous(SIZE).unwrap();
        memory.write_all_at(&[7; 3], 0).unwrap();
        memory.write_all_at(&vec![9; 12 << 20], (5 << 20) - 17).unwrap();
        memory.write_all_at(&[0; 3 * PAGE], 40 << 20).unwrap();
        memory.write_all_at(&[1], SIZE - 1).unwrap();
        memory
    }

    fn all(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn memory_that_was_kept_and_copied_is_the_same_and_takes_no_space_for_zeros() {
        let memory = memory();
        let kept = tempfile::tempfile().unwrap();
        let bytes = keep(&memory, &kept).unwrap();
        assert_eq!(bytes, (PAGE + (12 << 20) + PAGE + PAGE) as u64);
        assert!(all(&kept) == all(&memory), "what was kept differs");
        let shared = anonymous(SIZE).unwrap();
        copy(&kept, &shared).unwrap();
        assert!(all(&shared) == all(&memory), "the copy differs");
        let taken: u64 = extents(&shared).unwrap().iter().map(|(_, length)| length).sum();
        assert!(taken <= 13 << 20, "the copy takes {taken} bytes");
    }
}
