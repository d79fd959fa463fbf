//! One queue of a device: its thread receives requests and carries them out.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::mpsc::SyncSender;

use io_uring::{IoUring, opcode, types};
use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::wire::{Io, Operation, Request, data_at, io, requests_at};
use crate::errno::errno_of;

const SECTOR: u64 = 512;

/// A queue and what is behind it.
pub(super) struct Queue<'a> {
    pub(super) file: &'a File,
    pub(super) device: &'a dyn BlockDevice,
    pub(super) number: u16,
    pub(super) depth: u16,
    pub(super) largest_io: u32,
}

impl Queue<'_> {
    /// Attends the queue until the device is stopped. Says when it is ready, or why it will never be.
    /// Everything has to happen on one thread: the kernel knows a queue by it.
    pub(super) fn attend(&self, ready: SyncSender<io::Result<()>>) {
        match self.prepare() {
            Ok((ring, requests)) => {
                // Nobody listens any more when another queue has failed; then this one is ended soon.
                let _ = ready.send(Ok(()));
                drop(ready);
                self.serve(ring, &requests);
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    }

    fn prepare(&self) -> io::Result<(IoUring, Requests)> {
        let requests = Requests::map(self.file, self.number, self.depth)?;
        let mut ring = IoUring::new(u32::from(self.depth))?;
        for tag in 0..self.depth {
            self.push(&mut ring, tag, Io::Fetch, 0);
        }
        ring.submit()?;
        Ok((ring, requests))
    }

    fn push(&self, ring: &mut IoUring, tag: u16, what: Io, result: i32) {
        let entry = opcode::UringCmd16::new(types::Fd(self.file.as_raw_fd()), what.code())
            .cmd(io(self.number, tag, result))
            .build()
            .user_data(u64::from(tag));
        // SAFETY: the command names no memory of this process.
        let pushed = unsafe { ring.submission().push(&entry) };
        debug_assert!(pushed.is_ok(), "the ring has an entry for every tag");
    }

    fn serve(&self, mut ring: IoUring, requests: &Requests) {
        let mut memory = vec![0; usize::try_from(self.largest_io).unwrap_or(0)];
        let mut awaited = self.depth;
        let mut arrived = Vec::with_capacity(usize::from(self.depth));
        while awaited > 0 {
            match ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Without the ring there is nothing to be done; the kernel ends the device.
                Err(_) => return,
            }
            arrived.extend(ring.completion().map(|done| (done.user_data(), done.result())));
            for (tag, result) in arrived.drain(..) {
                let Ok(tag) = u16::try_from(tag) else { continue };
                if result < 0 {
                    // The device is being stopped: this tag has had its last request.
                    awaited -= 1;
                    continue;
                }
                let result = self.carry_out(tag, requests.get(tag), &mut memory);
                self.push(&mut ring, tag, Io::CommitAndFetch, result);
            }
        }
    }

    /// Does what the kernel wants; the bytes that were done, or a negative error number.
    fn carry_out(&self, tag: u16, request: Request, memory: &mut [u8]) -> i32 {
        let done = catch_unwind(AssertUnwindSafe(|| self.try_to(tag, request, memory)));
        match done {
            Ok(Ok(count)) => i32::try_from(count).unwrap_or(0),
            Ok(Err(errno)) => -errno,
            Err(_) => -Errno::IO.raw_os_error(),
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

/// The memory in which the kernel says what it wants; one request for each tag.
struct Requests {
    start: NonNull<u8>,
    len: usize,
}

impl Requests {
    fn map(file: &File, queue: u16, depth: u16) -> io::Result<Requests> {
        let len = (usize::from(depth) * Request::LEN).next_multiple_of(4096);
        let (access, flags) = (ProtFlags::READ, MapFlags::SHARED | MapFlags::POPULATE);
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nobody.
        let start =
            unsafe { mmap(std::ptr::null_mut(), len, access, flags, file, requests_at(queue)) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Requests { start, len })
    }

    /// What is wanted for a tag whose request has arrived.
    fn get(&self, tag: u16) -> Request {
        let at = usize::from(tag) * Request::LEN;
        // SAFETY: a tag is below the depth for which the memory was mapped.
        let place = unsafe { self.start.as_ptr().add(at) }.cast::<[u8; Request::LEN]>();
        // SAFETY: within the mapping, and bytes need no alignment. The kernel writes a tag's request before
        // it says that it has arrived, and not again until it was answered.
        let bytes = unsafe { place.read_volatile() };
        Request::parse(&bytes)
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's alone, and nothing points into it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}
