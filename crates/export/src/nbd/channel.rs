//! The stream between a client and the server.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};
use rustix::time::Timespec;

/// A stream of bytes in both directions, used by many threads: one receives, one sends at a time.
pub trait Channel: Send + Sync {
    /// Receives some bytes, as many as there are, and waits while there are none; 0 is the end.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Sends all of the bytes.
    fn send(&self, bytes: &[u8]) -> io::Result<()>;

    /// Ends both directions, so that every thread in a call on this channel comes back.
    fn hang_up(&self);

    /// How long a call may wait for the client; without limit if there is none.
    fn wait_at_most(&self, limit: Option<Duration>) -> io::Result<()>;

    /// Whether something may be there to be received; true where nobody can tell.
    fn may_have_more(&self) -> bool {
        true
    }
}

/// What the kernel is asked to hold of a connection; it may hold less.
const SOCKET_BUFFER: usize = 1 << 20;

/// A connected stream socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Takes over a connected socket.
    pub fn new(fd: impl Into<OwnedFd>) -> Socket {
        let fd = fd.into();
        // All three only make it faster, and the second is for TCP alone.
        let _ = sockopt::set_socket_send_buffer_size(&fd, SOCKET_BUFFER);
        let _ = sockopt::set_tcp_nodelay(&fd, true);
        let _ = sockopt::set_socket_recv_buffer_size(&fd, SOCKET_BUFFER);
        Socket(fd)
    }

    /// Takes no more requests: what was received already is still answered.
    pub(crate) fn stop_receiving(&self) {
        // A client that has left took the connection with it.
        let _ = shutdown(&self.0, Shutdown::Read);
    }
}

impl Channel for Socket {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(&self.0, &mut *buffer, RecvFlags::empty()) {
                Ok((count, _)) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match send(&self.0, bytes, SendFlags::NOSIGNAL) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn hang_up(&self) {
        let _ = shutdown(&self.0, Shutdown::Both);
    }

    fn wait_at_most(&self, limit: Option<Duration>) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Recv, limit)?;
        sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Send, limit)?;
        Ok(())
    }

    fn may_have_more(&self) -> bool {
        let mut socket = [PollFd::new(&self.0, PollFlags::IN)];
        !matches!(poll(&mut socket, Some(&Timespec::default())), Ok(0))
    }
}

/// What was received and not yet used. Many requests arrive with one call.
pub(crate) struct Input {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    pub(crate) fn new(capacity: usize) -> Input {
        Input { buffer: vec![0; capacity].into_boxed_slice(), start: 0, end: 0 }
    }

    /// What is there.
    pub(crate) fn held(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(crate) fn used(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Receives once, so that more is held, with room for `count` bytes in all; false at the end.
    pub(crate) fn receive(&mut self, channel: &impl Channel, count: usize) -> io::Result<bool> {
        let room = self.buffer.len() - self.end;
        // Little is held when more is needed; moving it is cheaper than receiving in small pieces.
        if room < count || room < self.buffer.len() / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let got = channel.receive(&mut self.buffer[self.end..])?;
        self.end += got;
        Ok(got > 0)
    }

    /// Fills a buffer from what is held, then straight from the channel.
    pub(crate) fn read_exact(
        &mut self,
        channel: &impl Channel,
        target: &mut [u8],
    ) -> io::Result<()> {
        let mut done = self.held().len().min(target.len());
        target[..done].copy_from_slice(&self.held()[..done]);
        self.used(done);
        while done < target.len() {
            match channel.receive(&mut target[done..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => done += count,
            }
        }
        Ok(())
    }
}
