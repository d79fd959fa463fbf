//! What each request of the kernel's does to the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError};
use rustix::io::Errno;

use super::wire::{Operation, Request, data_at};
use crate::errno::errno_of;
use crate::pace::{BRIEF_READ, BRIEF_WRITE, Pace};

const SECTOR: u64 = 512;

/// The disk behind a queue, and the way data takes to the kernel.
pub(super) struct Work<'a> {
    file: &'a File,
    device: &'a dyn BlockDevice,
    /// Which queue.
    number: u16,
    largest_io: u32,
    reads: Pace,
    writes: Pace,
    flushes: Pace,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        file: &'a File,
        device: &'a dyn BlockDevice,
        number: u16,
        largest_io: u32,
    ) -> Work<'a> {
        Work {
            file,
            device,
            number,
            largest_io,
            reads: Pace::of(BRIEF_READ),
            writes: Pace::of(BRIEF_WRITE),
            flushes: Pace::of(BRIEF_READ),
        }
    }

    /// Memory for one request at a time.
    pub(super) fn memory(&self) -> Vec<u8> {
        vec![0; usize::try_from(self.largest_io).unwrap_or(0)]
    }

    /// Whether whoever carries it out can be expected to be back soon.
    pub(super) fn is_brief(&self, request: Request) -> bool {
        self.pace_of(request).is_none_or(Pace::is_brisk)
    }

    /// Does what the kernel wants; the bytes that were done, or a negative error number.
    pub(super) fn carry_out(&self, tag: u16, request: Request, memory: &mut [u8]) -> i32 {
        let started = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(|| self.try_to(tag, request, memory)));
        if let Some(pace) = self.pace_of(request) {
            pace.note(started.elapsed());
        }
        match done {
            Ok(Ok(count)) => i32::try_from(count).unwrap_or(0),
            Ok(Err(errno)) => -errno,
            Err(_) => -Errno::IO.raw_os_error(),
        }
    }

    fn pace_of(&self, request: Request) -> Option<&Pace> {
        match request.operation {
            Operation::Flush => Some(&self.flushes),
            Operation::Read => Some(&self.reads),
            Operation::Write | Operation::WriteZeroes if request.fua => Some(&self.flushes),
            Operation::Write | Operation::WriteZeroes | Operation::Discard => Some(&self.writes),
            Operation::Unknown(_) => None,
        }
    }

    fn try_to(&self, tag: u16, request: Request, memory: &mut [u8]) -> Result<usize, i32> {
        let failed = |error: DeviceError| errno_of(&error);
        let broken = |error: io::Error| error.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
        let invalid = || Errno::INVAL.raw_os_error();
        if request.operation == Operation::Flush {
            // Where it starts means nothing, and is no sector either.
            return self.device.flush().map(|()| 0).map_err(failed);
        }
        let at = request.start.checked_mul(SECTOR).map(ByteOffset::new).ok_or_else(invalid)?;
        let len = ByteLen::new(u64::from(request.sectors) * SECTOR);
        let count = len.to_usize().unwrap_or(usize::MAX);
        let data = data_at(self.number, tag);
        let done = match request.operation {
            Operation::Read => {
                let memory = memory.get_mut(..count).ok_or_else(invalid)?;
                self.device.read_at(at, memory).map_err(failed)?;
                self.file.write_all_at(memory, data).map_err(broken)?;
                count
            }
            Operation::Write => {
                let memory = memory.get_mut(..count).ok_or_else(invalid)?;
                self.file.read_exact_at(memory, data).map_err(broken)?;
                self.device.write_at(at, memory).map_err(failed)?;
                count
            }
            Operation::Discard => {
                self.device.discard(at, len).map_err(failed)?;
                0
            }
            Operation::WriteZeroes => {
                self.device.write_zeroes(at, len, request.keep_allocated).map_err(failed)?;
                0
            }
            Operation::Flush | Operation::Unknown(_) => return Err(Errno::OPNOTSUPP.raw_os_error()),
        };
        if request.fua && matches!(request.operation, Operation::Write | Operation::WriteZeroes) {
            self.device.flush().map_err(failed)?;
        }
        Ok(done)
    }
}
