//! One queue of a device: its thread receives requests, and carries out those that are brief.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::mpsc::SyncSender;
use std::thread;

use io_uring::{IoUring, opcode, types};
use kiln_block::BlockDevice;
use rustix::event::PollFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::helpers::Helpers;
use super::wire::{Io, Request, io, requests_at};
use super::work::Work;

/// What the ring calls the signal of helpers; tags are smaller.
const SIGNAL: u64 = u64::MAX;

/// A queue and what is behind it.
pub(super) struct Queue<'a> {
    pub(super) file: &'a File,
    pub(super) device: &'a dyn BlockDevice,
    pub(super) number: u16,
    pub(super) depth: u16,
    pub(super) largest_io: u32,
}

/// What a queue's thread works with.
struct Tools {
    ring: IoUring,
    requests: Requests,
    helpers: Helpers,
}

/// Lets helpers go however the queue's thread ends.
struct EndAfterwards<'a>(&'a Helpers);

impl Drop for EndAfterwards<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Queue<'_> {
    /// Attends the queue until the device is stopped. Says when it is ready, or why it will never be.
    /// What the kernel is told has to come from one thread: it knows a queue by it.
    pub(super) fn attend(&self, ready: SyncSender<io::Result<()>>) {
        match self.prepare() {
            Ok(tools) => {
                // Nobody listens any more when another queue has failed; then this one is ended soon.
                let _ = ready.send(Ok(()));
                drop(ready);
                self.serve(tools);
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    }

    fn prepare(&self) -> io::Result<Tools> {
        let requests = Requests::map(self.file, self.number, self.depth)?;
        let helpers = Helpers::new()?;
        // An entry for each tag, and one for the signal of helpers.
        let mut ring = IoUring::new(u32::from(self.depth) + 1)?;
        for tag in 0..self.depth {
            self.push(&mut ring, tag, Io::Fetch, 0);
        }
        await_signal(&mut ring, &helpers);
        ring.submit()?;
        Ok(Tools { ring, requests, helpers })
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

    fn serve(&self, tools: Tools) {
        let Tools { mut ring, requests, helpers } = tools;
        let work = Work::new(self.file, self.device, self.number, self.largest_io);
        let mut memory = work.memory();
        let mut awaited = self.depth;
        let mut arrived = Vec::with_capacity(usize::from(self.depth) + 1);
        thread::scope(|scope| {
            let _end = EndAfterwards(&helpers);
            while awaited > 0 {
                match ring.submit_and_wait(1) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // Without the ring there is nothing to be done; the kernel ends the device.
                    Err(_) => return,
                }
                arrived.extend(ring.completion().map(|done| (done.user_data(), done.result())));
                for (event, result) in arrived.drain(..) {
                    if event == SIGNAL {
                        for (tag, result) in helpers.answers() {
                            self.push(&mut ring, tag, Io::CommitAndFetch, result);
                        }
                        await_signal(&mut ring, &helpers);
                        continue;
                    }
                    let Ok(tag) = u16::try_from(event) else { continue };
                    if result < 0 {
                        // The device is being stopped: this tag has had its last request.
                        awaited -= 1;
                        continue;
                    }
                    let request = requests.get(tag);
                    if !work.is_brief(request) && helpers.hand(scope, &work, tag, request) {
                        continue;
                    }
                    let result = work.carry_out(tag, request, &mut memory);
                    self.push(&mut ring, tag, Io::CommitAndFetch, result);
                }
            }
        });
    }
}

fn await_signal(ring: &mut IoUring, helpers: &Helpers) {
    let readable = u32::from(PollFlags::IN.bits());
    let entry =
        opcode::PollAdd::new(types::Fd(helpers.signal()), readable).build().user_data(SIGNAL);
    // SAFETY: the command names no memory of this process.
    let pushed = unsafe { ring.submission().push(&entry) };
    debug_assert!(pushed.is_ok(), "the ring has an entry for it");
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
