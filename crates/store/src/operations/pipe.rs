//! [`Pipe`]: a file that is read or written front to back, and may keep one waiting.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::request::Stop;

/// After this long without a byte, it is looked whether anybody still wants it.
const PATIENCE: Duration = Duration::from_millis(200);

/// A pipe, a socket, a terminal or a file of somebody else.
pub(super) struct Pipe<'a> {
    file: File,
    stop: &'a Stop,
}

impl<'a> Pipe<'a> {
    pub(super) fn new(file: OwnedFd, stop: &'a Stop) -> Pipe<'a> {
        Pipe { file: File::from(file), stop }
    }

    /// Waits until something can be done; nobody's wish to end is overheard meanwhile.
    fn wait(&self, what: PollFlags) -> io::Result<()> {
        let patience = Timespec { tv_sec: 0, tv_nsec: i64::from(PATIENCE.subsec_nanos()) };
        loop {
            if self.stop.is_stopped() {
                return Err(io::Error::other("interrupted"));
            }
            match poll(&mut [PollFd::new(&self.file, what)], Some(&patience)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Read for Pipe<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait(PollFlags::IN)?;
        self.file.read(buffer)
    }
}

impl Write for Pipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(PollFlags::OUT)?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
