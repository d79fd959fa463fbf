//! One stream to one guest: who may write to it, and where its answers go.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kiln_model::protocol::{
    Answer, CONTROL, Decoder, Frame, HELLO_EVERY_MS, Heartbeat, INITIAL_CREDIT, MAX_PAYLOAD,
    PROTOCOL, Request, Welcome,
};
use rustix::rand::{GetRandomFlags, getrandom};

use super::{AgentError, printable};

/// Answers that are not metered come one per request or step; more than this is a flood.
const MAX_UNMETERED: usize = 64;

/// After so many hellos without an answer, whatever frame an earlier host left cut is brought to its
/// end with padding.
const HELLOS_BEFORE_PADDING: u32 = 30;

/// Why the connection is over.
#[derive(Clone, Debug)]
enum End {
    Disconnected,
    Broken(String),
}

#[derive(Debug, Default)]
struct Inbox {
    answers: VecDeque<(Answer, u32)>,
    unmetered: usize,
    /// What the guest may still send.
    window: u32,
    /// What we took and have not granted anew.
    owed: u32,
    /// What we may still send.
    credit: u64,
}

#[derive(Debug)]
struct State {
    nonce: u64,
    welcome: Option<Welcome>,
    end: Option<End>,
    inboxes: HashMap<u32, Inbox>,
    last_channel: u32,
    sign_of_life: Instant,
    heartbeat: Option<Heartbeat>,
}

/// Shared by the agent, its sessions and the thread that reads.
#[derive(Debug)]
pub(super) struct Connection {
    writer: Mutex<UnixStream>,
    stream: UnixStream,
    state: Mutex<State>,
    changed: Condvar,
}

impl Connection {
    pub(super) fn greet(
        stream: UnixStream,
        deadline: Instant,
    ) -> Result<(Arc<Connection>, Welcome), AgentError> {
        let broken = |error: io::Error| AgentError::Protocol { found: error.to_string() };
        let nonce = u64::from_le_bytes(random()?);
        let state = State {
            nonce,
            welcome: None,
            end: None,
            inboxes: HashMap::new(),
            last_channel: 0,
            sign_of_life: Instant::now(),
            heartbeat: None,
        };
        let mut reader = stream.try_clone().map_err(broken)?;
        let connection = Arc::new(Connection {
            writer: Mutex::new(stream.try_clone().map_err(broken)?),
            stream,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let for_reader = Arc::clone(&connection);
        thread::Builder::new()
            .name("agent".into())
            .spawn(move || for_reader.read_all(&mut reader))
            .map_err(broken)?;
        let greeted = connection.say_hello(nonce, deadline);
        if greeted.is_err() {
            connection.close();
        }
        Ok((connection, greeted?))
    }

    /// Another conversation with the same guest. Nothing that the last one left is waited for any more.
    pub(super) fn greet_again(&self, deadline: Instant) -> Result<Welcome, AgentError> {
        let nonce = u64::from_le_bytes(random()?);
        {
            let mut state = self.state();
            state.nonce = nonce;
            state.welcome = None;
            state.inboxes.clear();
            state.heartbeat = None;
        }
        self.say_hello(nonce, deadline)
    }

    fn say_hello(&self, nonce: u64, deadline: Instant) -> Result<Welcome, AgentError> {
        let hello = frame_of(&Request::Hello { nonce, protocol: PROTOCOL }, CONTROL)?;
        for count in 0_u32.. {
            // While nobody reads, the socket may fill; hellos that do not fit are no loss.
            // The first after a restore may get stuck in the port, and that guest is there at once.
            let pause = HELLO_EVERY_MS >> 2_u32.saturating_sub(count);
            let soon = Instant::now() + Duration::from_millis(pause);
            match self.write(&hello, soon.min(deadline)) {
                Ok(()) | Err(AgentError::Timeout { .. }) => {}
                Err(error) => return Err(self.end_or(error)),
            }
            if count == HELLOS_BEFORE_PADDING {
                let _ = self.write(&[0; MAX_PAYLOAD], soon.min(deadline));
            }
            let waited =
                self.wait(soon.min(deadline), "hello", |state| state.welcome.clone().map(Ok));
            match waited {
                Ok(welcome) if welcome.protocol == PROTOCOL => return Ok(welcome),
                Ok(welcome) => {
                    return Err(AgentError::Version { guest: welcome.protocol, host: PROTOCOL });
                }
                Err(AgentError::Timeout { .. }) if Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
        }
        Err(AgentError::Timeout { waiting_for: "hello" })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something, the connection ends, or the deadline passes.
    fn wait<T>(
        &self,
        deadline: Instant,
        waiting_for: &'static str,
        mut look: impl FnMut(&mut State) -> Option<Result<T, AgentError>>,
    ) -> Result<T, AgentError> {
        let mut state = self.state();
        loop {
            // What arrived before the end still counts.
            if let Some(found) = look(&mut state) {
                return found;
            }
            if let Some(end) = &state.end {
                return Err(error_of(end));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AgentError::Timeout { waiting_for });
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn end_or(&self, error: AgentError) -> AgentError {
        self.state().end.as_ref().map_or(error, error_of)
    }

    fn end(&self, end: End) {
        self.state().end.get_or_insert(end);
        self.changed.notify_all();
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    pub(super) fn close(&self) {
        self.end(End::Disconnected);
    }

    pub(super) fn is_connected(&self) -> bool {
        self.state().end.is_none()
    }

    pub(super) fn heartbeat(&self) -> (Instant, Option<Heartbeat>) {
        let state = self.state();
        (state.sign_of_life, state.heartbeat)
    }

    fn write(&self, bytes: &[u8], deadline: Instant) -> Result<(), AgentError> {
        self.write_locked(&mut self.writer(), bytes, deadline)
    }

    fn writer(&self) -> MutexGuard<'_, UnixStream> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes whole or, for good, not at all: a frame cut short would be taken for damage.
    fn write_locked(
        &self,
        writer: &mut UnixStream,
        mut bytes: &[u8],
        deadline: Instant,
    ) -> Result<(), AgentError> {
        let begun = bytes.len();
        while !bytes.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Some(left.max(Duration::from_millis(1)));
            let written = writer.set_write_timeout(timeout).and_then(|()| writer.write(bytes));
            match written {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() < deadline {
                        continue;
                    }
                    if bytes.len() < begun && self.state().welcome.is_some() {
                        self.end(End::Broken("the guest stopped reading".into()));
                    }
                    return Err(AgentError::Timeout { waiting_for: "the guest to read" });
                }
                Err(_) => {
                    self.end(End::Disconnected);
                    return Err(AgentError::Disconnected);
                }
            }
        }
        Ok(())
    }

    pub(super) fn send(
        &self,
        request: &Request,
        channel: u32,
        deadline: Instant,
    ) -> Result<(), AgentError> {
        self.write(&frame_of(request, channel)?, deadline).map_err(|error| self.end_or(error))
    }

    /// Sends an operation's first message on a channel of its own.
    pub(super) fn open(&self, request: &Request, deadline: Instant) -> Result<u32, AgentError> {
        frame_of(request, CONTROL)?;
        // Channels must arrive in the order of their numbers: taken and sent under one lock.
        let mut writer = self.writer();
        let channel = self.new_inbox()?;
        match self.write_locked(&mut writer, &frame_of(request, channel)?, deadline) {
            Ok(()) => Ok(channel),
            Err(error) => {
                self.forget(channel);
                Err(self.end_or(error))
            }
        }
    }

    fn new_inbox(&self) -> Result<u32, AgentError> {
        let mut state = self.state();
        if let Some(end) = &state.end {
            return Err(error_of(end));
        }
        state.last_channel += 1;
        let channel = state.last_channel;
        let inbox =
            Inbox { window: INITIAL_CREDIT, credit: u64::from(INITIAL_CREDIT), ..Inbox::default() };
        state.inboxes.insert(channel, inbox);
        Ok(channel)
    }

    /// The channel is of no interest any more; whatever still comes on it is dropped.
    pub(super) fn forget(&self, channel: u32) {
        self.state().inboxes.remove(&channel);
    }

    /// The next answer on a channel. An error the guest answers is an error.
    pub(super) fn next(
        &self,
        channel: u32,
        deadline: Instant,
        waiting_for: &'static str,
    ) -> Result<Answer, AgentError> {
        let (answer, owed) = self.wait(deadline, waiting_for, |state| {
            let inbox = state.inboxes.get_mut(&channel)?;
            let (answer, cost) = inbox.answers.pop_front()?;
            if cost == 0 {
                inbox.unmetered -= 1;
            }
            inbox.owed += cost;
            let mut owed = 0;
            if inbox.owed >= INITIAL_CREDIT / 4 {
                owed = std::mem::take(&mut inbox.owed);
                inbox.window += owed;
            }
            Some(Ok((answer, owed)))
        })?;
        if owed > 0 {
            // A guest that does not take even this is found out by whoever sends it something next.
            let soon = Instant::now() + Duration::from_secs(1);
            let _ = self.send(&Request::Credit(owed), channel, deadline.max(soon));
        }
        match answer {
            Answer::Error { kind, text } => Err(AgentError::Guest { kind, text: printable(&text) }),
            answer => Ok(answer),
        }
    }

    /// Waits until something may be sent on a channel and takes credit for up to `wanted` bytes. An
    /// operation that has ended already yields none.
    pub(super) fn take_credit(
        &self,
        channel: u32,
        wanted: usize,
        deadline: Instant,
    ) -> Result<usize, AgentError> {
        self.wait(deadline, "the guest to take data", |state| {
            let Some(inbox) = state.inboxes.get_mut(&channel) else { return Some(Ok(0)) };
            if inbox.answers.back().is_some_and(|(answer, _)| is_last(answer)) {
                return Some(Ok(0));
            }
            let take = wanted.min(usize::try_from(inbox.credit).unwrap_or(usize::MAX));
            inbox.credit -= u64::try_from(take).unwrap_or(u64::MAX);
            (take > 0).then_some(Ok(take))
        })
    }

    /// An operation with one answer.
    pub(super) fn call(
        &self,
        request: &Request,
        deadline: Instant,
        waiting_for: &'static str,
    ) -> Result<Answer, AgentError> {
        let channel = self.open(request, deadline)?;
        let answer = self.next(channel, deadline, waiting_for);
        self.forget(channel);
        answer
    }

    /// The reading thread: until the stream ends or the guest breaks the rules.
    fn read_all(&self, reader: &mut UnixStream) {
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return self.end(End::Disconnected),
                Ok(count) => decoder.feed(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.end(End::Disconnected),
            }
            while let Some(frame) = decoder.next_frame() {
                if let Err(found) = self.sort(&frame) {
                    return self.end(End::Broken(found));
                }
            }
        }
    }

    fn sort(&self, frame: &Frame) -> Result<(), String> {
        let mut state = self.state();
        let answer = match Answer::decode(frame) {
            Ok(answer) => answer,
            // Before the welcome it may be anybody's.
            Err(_) if state.welcome.is_none() => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        if let Answer::Welcome(welcome) = answer {
            if welcome.nonce == state.nonce && state.welcome.is_none() {
                state.welcome = Some(welcome);
                state.sign_of_life = Instant::now();
                self.changed.notify_all();
            }
            return Ok(());
        }
        if state.welcome.is_none() {
            return Ok(());
        }
        if let Answer::Heartbeat(heartbeat) = answer {
            state.heartbeat = Some(heartbeat);
            state.sign_of_life = Instant::now();
            self.changed.notify_all();
            return Ok(());
        }
        let Some(inbox) = state.inboxes.get_mut(&frame.channel) else { return Ok(()) };
        if let Answer::Credit(bytes) = answer {
            inbox.credit = inbox.credit.saturating_add(u64::from(bytes));
            self.changed.notify_all();
            return Ok(());
        }
        let mut cost = 0;
        if answer.is_metered() {
            cost = u32::try_from(frame.payload.len()).unwrap_or(u32::MAX);
            inbox.window = inbox
                .window
                .checked_sub(cost)
                .ok_or_else(|| "the guest sent more than it may".to_owned())?;
        }
        if cost == 0 {
            inbox.unmetered += 1;
            if inbox.unmetered > MAX_UNMETERED {
                return Err("the guest sends answers nobody asked for".to_owned());
            }
        }
        inbox.answers.push_back((answer, cost));
        self.changed.notify_all();
        Ok(())
    }
}

/// Bytes nobody can foresee.
pub(super) fn random<const COUNT: usize>() -> Result<[u8; COUNT], AgentError> {
    let mut bytes = [0; COUNT];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(AgentError::Protocol { found: io::Error::from(error).to_string() }),
    }
}

/// Whether nothing follows on its channel.
fn is_last(answer: &Answer) -> bool {
    use Answer::{Done, Error, Exited, Pong, Stat};
    matches!(answer, Error { .. } | Done(_) | Exited(_) | Stat(_) | Pong(_))
}

fn error_of(end: &End) -> AgentError {
    match end {
        End::Disconnected => AgentError::Disconnected,
        End::Broken(found) => AgentError::Protocol { found: found.clone() },
    }
}

fn frame_of(request: &Request, channel: u32) -> Result<Vec<u8>, AgentError> {
    let mut frame = Vec::new();
    request
        .encode(channel, &mut frame)
        .map_err(|error| AgentError::Protocol { found: error.to_string() })?;
    Ok(frame)
}
