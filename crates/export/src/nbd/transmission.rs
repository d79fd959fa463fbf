//! Requests and their replies, after the handshake.
//!
//! A connection's threads take turns at one *role*: whoever has it receives requests and carries out
//! the brief ones at once, from the receive buffer and into a buffer of replies that leaves with one
//! call. A request that may take long is carried out without the role: the thread passes it on
//! first, so others are received and answered meanwhile, and replies go out in whatever order the
//! disk finishes. What is brief is measured, not guessed: reads and writes are while recent ones were. A flush is not,
//! but a client that waits for its flushes and asks nothing meanwhile is not worth another thread.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};
use std::time::Instant;

use kiln_block::ByteOffset;

use super::buffers::{Buffer, Buffers};
use super::channel::{Channel, Input};
use super::execution::{Disk, Failure, Reply};
use super::negotiation::Agreement;
use super::wire::{
    Command, DATA_CHUNK_LEN, LARGEST_PAYLOAD, REQUEST_LEN, Request, SIMPLE_LEN, flag, put_simple,
};
use crate::pace::{BRIEF_READ, BRIEF_WRITE, Pace};

/// Threads of a connection, and so requests of it that can wait for the disk at once.
const MOST_THREADS: usize = 16;
/// The largest read or write that is carried out while others wait.
const BRIEF_LEN: u32 = 64 << 10;
/// Flushes in a row during which a client asked for nothing else, from which on it is believed to wait for them.
const PATIENT: u32 = 8;
/// Replies that may wait for each other, so that the client and the server work at the same time.
const STAGED_REPLIES: u32 = 16;

/// Room for received requests: the largest brief write and what follows it.
pub(crate) const INPUT_LEN: usize = 192 << 10;
const STAGE_LEN: usize = 192 << 10;
// Replies that leave together may fill this before the next one no longer fits.
const STAGE_FULL: usize = 96 << 10;
const _: () = assert!(STAGE_FULL + DATA_CHUNK_LEN + BRIEF_LEN as usize <= STAGE_LEN);
const _: () = assert!(REQUEST_LEN + BRIEF_LEN as usize <= INPUT_LEN);

/// Answers requests until the client leaves, breaks the protocol or can no longer be reached. Nothing of
/// the connection is under way when this returns.
pub(crate) fn transmit<C: Channel>(channel: &C, input: Input, agreement: &Agreement) {
    let connection = Connection {
        channel,
        disk: Disk {
            device: agreement.export.device().as_ref(),
            read_only: agreement.export.is_read_only(),
            structured: agreement.structured,
            allocation: agreement.allocation,
        },
        role: Mutex::new(Role {
            input,
            stage: Stage { bytes: vec![0; STAGE_LEN].into_boxed_slice(), len: 0, replies: 0 },
            ended: false,
        }),
        sending: Mutex::new(()),
        buffers: Buffers::default(),
        idle: AtomicUsize::new(0),
        threads: AtomicUsize::new(1),
        reads: Pace::of(BRIEF_READ),
        writes: Pace::of(BRIEF_WRITE),
        received: AtomicU64::new(0),
        alone: AtomicU32::new(0),
    };
    thread::scope(|scope| connection.attend(scope));
}

/// One client with one disk.
struct Connection<'a, C> {
    channel: &'a C,
    disk: Disk<'a>,
    role: Mutex<Role>,
    /// Held while a reply is sent, so that replies do not mix.
    sending: Mutex<()>,
    buffers: Buffers,
    /// Threads that wait for the role.
    idle: AtomicUsize,
    threads: AtomicUsize,
    reads: Pace,
    writes: Pace,
    /// Requests so far.
    received: AtomicU64,
    /// Flushes in a row during which nothing else came.
    alone: AtomicU32,
}

/// What the thread in charge of receiving works with.
struct Role {
    input: Input,
    stage: Stage,
    ended: bool,
}

/// Replies that leave together.
struct Stage {
    bytes: Box<[u8]>,
    len: usize,
    replies: u32,
}

/// A request that is carried out without the role. The payload of a write starts the buffer.
struct Work<'a> {
    request: Request,
    payload: Option<Buffer<'a>>,
}

/// Hangs up when a device panics, so that neither the client nor the other threads wait for a
/// reply that will never come.
struct HangUpOnPanic<'a, C: Channel>(&'a C);

impl<C: Channel> Drop for HangUpOnPanic<'_, C> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.hang_up();
        }
    }
}

impl<C: Channel> Connection<'_, C> {
    /// What every thread of the connection does.
    fn attend<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let _guard = HangUpOnPanic(self.channel);
        loop {
            self.idle.fetch_add(1, Ordering::SeqCst);
            let mut role = self.role.lock().unwrap_or_else(PoisonError::into_inner);
            self.idle.fetch_sub(1, Ordering::SeqCst);
            let work = match self.receive(&mut role) {
                Ok(Some(work)) => work,
                Ok(None) | Err(_) => {
                    role.ended = true;
                    return;
                }
            };
            // Only the thread in charge passes the role on, so nobody else starts one meanwhile.
            if self.idle.load(Ordering::SeqCst) == 0
                && self.threads.load(Ordering::SeqCst) < MOST_THREADS
            {
                let name = "nbd".to_owned();
                let spawned =
                    thread::Builder::new().name(name).spawn_scoped(scope, || self.attend(scope));
                // Without another thread, requests wait for this one: slower, and still right.
                if spawned.is_ok() {
                    self.threads.fetch_add(1, Ordering::SeqCst);
                }
            }
            drop(role);
            if self.carry_out(work).is_err() {
                self.channel.hang_up();
            }
        }
    }

    /// Carries out brief requests, up to the first that is not; `None` when there are no more.
    fn receive<'s>(&'s self, role: &mut Role) -> io::Result<Option<Work<'s>>> {
        if role.ended {
            return Ok(None);
        }
        loop {
            let Some(request) = self.next_request(role)? else {
                self.send_stage(&mut role.stage)?;
                return Ok(None);
            };
            let work = match request.command {
                Command::Disconnect => None,
                Command::Read => match self.read_at_once(role, &request)? {
                    true => continue,
                    false => Some(Work { request, payload: None }),
                },
                Command::Write => match self.write_at_once(role, &request)? {
                    true => continue,
                    false => {
                        let payload = self.receive_payload(role, &request)?;
                        Some(Work { request, payload: Some(payload) })
                    }
                },
                Command::Flush => match self.flush_at_once(role, &request)? {
                    true => continue,
                    false => Some(Work { request, payload: None }),
                },
                _ => Some(Work { request, payload: None }),
            };
            self.send_stage(&mut role.stage)?;
            return Ok(work);
        }
    }

    fn next_request(&self, role: &mut Role) -> io::Result<Option<Request>> {
        if !self.hold(role, REQUEST_LEN)? {
            return if role.input.held().is_empty() {
                Ok(None)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        let head = role.input.held().first_chunk::<REQUEST_LEN>();
        let request = head.and_then(Request::parse);
        let Some(request) = request else { return Err(io::ErrorKind::InvalidData.into()) };
        // What follows a write that breaks the limit the client was told cannot be told from requests.
        if request.command == Command::Write && request.len > LARGEST_PAYLOAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        role.input.used(REQUEST_LEN);
        self.received.fetch_add(1, Ordering::Relaxed);
        Ok(Some(request))
    }

    /// Waits until so many bytes were received; before it waits, replies are sent. False at the end.
    fn hold(&self, role: &mut Role, count: usize) -> io::Result<bool> {
        while role.input.held().len() < count {
            self.send_stage(&mut role.stage)?;
            if !role.input.receive(self.channel, count)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Answers a read from the role's own memory, if that is brief.
    fn read_at_once(&self, role: &mut Role, request: &Request) -> io::Result<bool> {
        if request.len > BRIEF_LEN || request.len == 0 || !self.reads.is_brisk() {
            return Ok(false);
        }
        self.make_room(&mut role.stage)?;
        let head = self.disk.read_head();
        let len = usize::try_from(request.len).unwrap_or(0);
        let stage = &mut role.stage;
        let slot = &mut stage.bytes[stage.len..stage.len + head + len];
        let started = Instant::now();
        let result = self.disk.check(request).and_then(|()| {
            let at = ByteOffset::new(request.offset);
            Ok(self.disk.device.read_at(at, &mut slot[head..])?)
        });
        self.reads.note(started.elapsed());
        match result {
            Ok(()) => {
                self.disk.put_read_head(slot, request);
                stage.len += head + len;
                stage.replies += 1;
            }
            Err(failure) => self.stage_failure(stage, request, &failure),
        }
        Ok(true)
    }

    /// Writes straight from the receive buffer, if that is brief.
    fn write_at_once(&self, role: &mut Role, request: &Request) -> io::Result<bool> {
        if request.len > BRIEF_LEN || request.has(flag::FUA) || !self.writes.is_brisk() {
            return Ok(false);
        }
        let len = usize::try_from(request.len).unwrap_or(0);
        if !self.hold(role, len)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.make_room(&mut role.stage)?;
        let payload = &role.input.held()[..len];
        let started = Instant::now();
        let result = self.disk.check(request).and_then(|()| {
            Ok(self.disk.device.write_at(ByteOffset::new(request.offset), payload)?)
        });
        self.writes.note(started.elapsed());
        role.input.used(len);
        let stage = &mut role.stage;
        match result {
            Ok(()) => {
                put_simple(&mut stage.bytes[stage.len..], None, request.cookie);
                stage.len += SIMPLE_LEN;
                stage.replies += 1;
            }
            Err(failure) => self.stage_failure(stage, request, &failure),
        }
        Ok(true)
    }

    /// Flushes with the role, if the client does nothing but wait: handing the role to another thread and back takes
    /// as long as a flush of a fast disk.
    fn flush_at_once(&self, role: &mut Role, request: &Request) -> io::Result<bool> {
        let idle = self.idle.load(Ordering::SeqCst);
        let busy = self.threads.load(Ordering::SeqCst).saturating_sub(idle) > 1;
        let patient = self.alone.load(Ordering::Relaxed) >= PATIENT;
        if !patient || busy || !role.input.held().is_empty() {
            return Ok(false);
        }
        self.send_stage(&mut role.stage)?;
        let checked = self.disk.check(request);
        let done = checked.and_then(|()| self.disk.carry_out(request, &self.buffers));
        self.note_flush(!self.channel.may_have_more());
        self.answer(request, done)?;
        Ok(true)
    }

    /// Whether nothing else came during a flush.
    fn note_flush(&self, alone: bool) {
        // Threads may overwrite each other's note: those of a client that has several are none the worse.
        let before = self.alone.load(Ordering::Relaxed);
        self.alone.store(if alone { before.saturating_add(1) } else { 0 }, Ordering::Relaxed);
    }

    fn receive_payload(&self, role: &mut Role, request: &Request) -> io::Result<Buffer<'_>> {
        let len = usize::try_from(request.len).unwrap_or(usize::MAX);
        // Both may wait, for memory and for the client, who may be waiting for these replies.
        self.send_stage(&mut role.stage)?;
        let mut payload = self.buffers.take(len);
        role.input.read_exact(self.channel, &mut payload[..len])?;
        Ok(payload)
    }

    fn make_room(&self, stage: &mut Stage) -> io::Result<()> {
        if stage.replies >= STAGED_REPLIES || stage.len >= STAGE_FULL {
            self.send_stage(stage)?;
        }
        Ok(())
    }

    fn stage_failure(&self, stage: &mut Stage, request: &Request, failure: &Failure) {
        let reply = self.disk.failure(request, failure);
        stage.bytes[stage.len..stage.len + reply.len()].copy_from_slice(&reply);
        stage.len += reply.len();
        stage.replies += 1;
    }

    fn send_stage(&self, stage: &mut Stage) -> io::Result<()> {
        if stage.len == 0 {
            return Ok(());
        }
        let sent = self.send(&stage.bytes[..stage.len]);
        (stage.len, stage.replies) = (0, 0);
        sent
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let _sending: MutexGuard<'_, ()> =
            self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        self.channel.send(bytes)
    }

    /// Does what may take long, and sends the reply.
    fn carry_out(&self, work: Work<'_>) -> io::Result<()> {
        let Work { request, payload } = work;
        let checked = self.disk.check(&request);
        let done = checked.and_then(|()| match request.command {
            Command::Read => {
                let started = Instant::now();
                let reply = self.disk.read(&request, &self.buffers)?;
                // Larger ones take longer and would say that small ones are not brief.
                if request.len <= BRIEF_LEN {
                    self.reads.note(started.elapsed());
                }
                Ok(reply)
            }
            Command::Write => {
                let len = usize::try_from(request.len).unwrap_or(0);
                let bytes = payload.as_deref().and_then(|bytes| bytes.get(..len));
                let at = ByteOffset::new(request.offset);
                let started = Instant::now();
                self.disk.device.write_at(at, bytes.unwrap_or_default())?;
                if request.len <= BRIEF_LEN {
                    self.writes.note(started.elapsed());
                }
                self.disk.make_durable(&request)
            }
            Command::Flush => {
                let before = self.received.load(Ordering::Relaxed);
                let done = self.disk.carry_out(&request, &self.buffers);
                self.note_flush(self.received.load(Ordering::Relaxed) == before);
                done
            }
            _ => self.disk.carry_out(&request, &self.buffers),
        });
        // The memory of a write is free for the next one before its reply is out.
        drop(payload);
        self.answer(&request, done)
    }

    fn answer(&self, request: &Request, done: Result<Reply<'_>, Failure>) -> io::Result<()> {
        match done {
            Ok(Reply::Done) => {
                let mut bytes = [0; SIMPLE_LEN];
                put_simple(&mut bytes, None, request.cookie);
                self.send(&bytes)
            }
            Ok(Reply::Buffer(bytes, len)) => self.send(&bytes[..len]),
            Ok(Reply::Bytes(bytes)) => self.send(&bytes),
            Err(failure) => self.send(&self.disk.failure(request, &failure)),
        }
    }
}
