//! QEMU's machine protocol: one JSON object per line, both ways.
//!
//! [`Client`] gives every command a number, waits for the answer with that number until a deadline, and hands events
//! to a closure on its reader's thread. What QEMU sends is believed as little as anything else: lines are bounded, an
//! unknown message is skipped, a line that is no JSON ends the conversation.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Map, Value, json};

/// The longest line read: the registers of 255 processors need a tenth of it.
pub const MAX_LINE: usize = 4 << 20;
/// How long a command may wait for room in the channel.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);
/// The longest error text kept.
const MAX_TEXT: usize = 1024;

/// What may go wrong in a conversation.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The other side is gone, or was never there.
    #[error("QEMU's control channel is closed")]
    Closed,
    /// It did not answer in time.
    #[error("QEMU did not answer {command:?} within {} ms", waited.as_millis())]
    Silent {
        /// What was asked.
        command: String,
        /// For how long.
        waited: Duration,
    },
    /// It said no.
    #[error("QEMU refused {command:?}: {reason}")]
    Refused {
        /// What was asked.
        command: String,
        /// QEMU's words.
        reason: String,
    },
    /// The thread that reads could not be started.
    #[error("cannot read QEMU's control channel")]
    Io(#[from] io::Error),
}

/// One line from QEMU, understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The first line of a conversation.
    Greeting {
        /// Major, minor and micro version.
        version: [u64; 3],
    },
    /// The answer to the command with this number: a value, or QEMU's words of refusal.
    Answer {
        /// The command's number.
        id: u64,
        /// What came back.
        result: Result<Value, String>,
    },
    /// Something happened.
    Event {
        /// `SHUTDOWN`, `RESET`, …
        name: String,
        /// Its particulars.
        data: Map<String, Value>,
    },
    /// A message of another kind, skipped.
    Other,
}

/// A line that is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a line of QEMU's machine protocol")]
pub struct NotAMessage;

/// Reads one line.
///
/// # Errors
/// When it is not a JSON object.
pub fn parse(line: &[u8]) -> Result<Message, NotAMessage> {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(line) else {
        return Err(NotAMessage);
    };
    if let Some(greeting) = object.get("QMP") {
        let part =
            |name| greeting.pointer(&format!("/version/qemu/{name}")).and_then(Value::as_u64);
        let version = ["major", "minor", "micro"].map(|name| part(name).unwrap_or(0));
        return Ok(Message::Greeting { version });
    }
    if let Some(Value::String(name)) = object.remove("event") {
        let data = match object.remove("data") {
            Some(Value::Object(data)) => data,
            _ => Map::new(),
        };
        return Ok(Message::Event { name, data });
    }
    let Some(id) = object.get("id").and_then(Value::as_u64) else {
        return Ok(Message::Other);
    };
    let result = match (object.remove("return"), object.remove("error")) {
        (Some(value), None) => Ok(value),
        (_, Some(error)) => {
            let text = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
            Err(text.chars().take(MAX_TEXT).collect())
        }
        (None, None) => return Ok(Message::Other),
    };
    Ok(Message::Answer { id, result })
}

type Answer = Result<Value, String>;

struct Shared {
    /// Who waits for which answer; none once the channel has ended.
    waiting: Mutex<Option<HashMap<u64, SyncSender<Answer>>>>,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<u64, SyncSender<Answer>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A conversation with one QEMU; commands may be given from any thread.
pub struct Client {
    writer: Mutex<(UnixStream, u64)>,
    shared: Arc<Shared>,
    stream: UnixStream,
    reader: Option<JoinHandle<()>>,
    version: [u64; 3],
}

impl Client {
    /// Waits for the greeting and agrees on the protocol, both before `deadline`. Events are given to `on_event`, in
    /// order, on the reader's thread; it must not block on this client.
    ///
    /// # Errors
    /// When QEMU is gone or silent.
    pub fn connect(
        stream: UnixStream,
        deadline: Instant,
        on_event: impl FnMut(String, Map<String, Value>) + Send + 'static,
    ) -> Result<Client, QmpError> {
        let (hello, greeted) = mpsc::sync_channel(1);
        let shared = Arc::new(Shared { waiting: Mutex::new(Some(HashMap::new())) });
        let input = stream.try_clone()?;
        // A QEMU that does not even read must not stop the thread that asks.
        stream.set_write_timeout(Some(WRITE_PATIENCE))?;
        let theirs = Arc::clone(&shared);
        let reader = thread::Builder::new().name("qmp".into()).spawn(move || {
            read_until_the_end(input, &theirs, &hello, on_event);
            // Dropping the senders tells everyone who waits.
            *theirs.waiting() = None;
        })?;
        let mut client = Client {
            writer: Mutex::new((stream.try_clone()?, 0)),
            shared,
            stream,
            reader: Some(reader),
            version: [0; 3],
        };
        let wait = deadline.saturating_duration_since(Instant::now());
        client.version = greeted.recv_timeout(wait).map_err(|error| match error {
            RecvTimeoutError::Disconnected => QmpError::Closed,
            RecvTimeoutError::Timeout => {
                QmpError::Silent { command: "greeting".into(), waited: wait }
            }
        })?;
        let wait = deadline.saturating_duration_since(Instant::now());
        client.execute("qmp_capabilities", Value::Null, wait)?;
        Ok(client)
    }

    /// The version QEMU greeted with.
    pub fn version(&self) -> [u64; 3] {
        self.version
    }

    /// Gives one command (`arguments` null for none) and waits for its answer. An answer that comes after the
    /// deadline is thrown away.
    ///
    /// # Errors
    /// When QEMU refuses, is gone, or stays silent for `patience`.
    pub fn execute(
        &self,
        command: &str,
        arguments: Value,
        patience: Duration,
    ) -> Result<Value, QmpError> {
        self.execute_with(command, arguments, None, patience)
    }

    /// Gives QEMU an open file, which later commands name.
    ///
    /// # Errors
    /// As [`execute`](Client::execute).
    pub fn give(
        &self,
        name: &str,
        file: BorrowedFd<'_>,
        patience: Duration,
    ) -> Result<(), QmpError> {
        let arguments = json!({ "fdname": name });
        self.execute_with("getfd", arguments, Some(file), patience).map(|_| ())
    }

    fn execute_with(
        &self,
        command: &str,
        arguments: Value,
        file: Option<BorrowedFd<'_>>,
        patience: Duration,
    ) -> Result<Value, QmpError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let id = self.send(command, arguments, file, sender)?;
        let answer = receiver.recv_timeout(patience);
        if let Some(waiting) = self.shared.waiting().as_mut() {
            waiting.remove(&id);
        }
        match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(reason)) => Err(QmpError::Refused { command: command.into(), reason }),
            Err(RecvTimeoutError::Timeout) => {
                Err(QmpError::Silent { command: command.into(), waited: patience })
            }
            Err(RecvTimeoutError::Disconnected) => Err(QmpError::Closed),
        }
    }

    /// One command of QEMU's monitor for people; its text.
    ///
    /// # Errors
    /// As [`execute`](Client::execute).
    pub fn monitor(&self, line: &str, patience: Duration) -> Result<String, QmpError> {
        let arguments = json!({ "command-line": line });
        match self.execute("human-monitor-command", arguments, patience)? {
            Value::String(text) => Ok(text),
            _ => Ok(String::new()),
        }
    }

    fn send(
        &self,
        command: &str,
        arguments: Value,
        file: Option<BorrowedFd<'_>>,
        answer: SyncSender<Answer>,
    ) -> Result<u64, QmpError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.1 += 1;
        let id = writer.1;
        self.shared.waiting().as_mut().ok_or(QmpError::Closed)?.insert(id, answer);
        let mut message = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        let line = format!("{message}\n");
        let mut bytes = line.as_bytes();
        if let Some(file) = file {
            let sent = send_with(&writer.0, bytes, file).map_err(|_| QmpError::Closed)?;
            bytes = &bytes[sent..];
        }
        writer.0.write_all(bytes).map_err(|_| QmpError::Closed)?;
        Ok(id)
    }
}

/// Sends bytes, as many as fit, and an open file with them.
fn send_with(stream: &UnixStream, bytes: &[u8], file: BorrowedFd<'_>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file];
    // There is room for one, by the line above.
    control.push(SendAncillaryMessage::ScmRights(&files));
    Ok(sendmsg(stream, &[io::IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

fn read_until_the_end(
    input: UnixStream,
    shared: &Shared,
    hello: &SyncSender<[u64; 3]>,
    mut on_event: impl FnMut(String, Map<String, Value>),
) {
    let mut input = BufReader::new(input);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = MAX_LINE as u64;
        match input.by_ref().take(limit).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if line.last() != Some(&b'\n') {
            return;
        }
        match parse(&line) {
            Ok(Message::Greeting { version }) => {
                // Only the first is waited for.
                let _ = hello.try_send(version);
            }
            Ok(Message::Answer { id, result }) => {
                let asker = shared.waiting().as_mut().and_then(|waiting| waiting.remove(&id));
                if let Some(asker) = asker {
                    // Room for one, and only one is ever sent; fails when nobody waits any more.
                    let _ = asker.try_send(result);
                }
            }
            Ok(Message::Event { name, data }) => on_event(name, data),
            Ok(Message::Other) => {}
            Err(NotAMessage) => return,
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Fails only when the other side hung up first.
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("version", &self.version).finish_non_exhaustive()
    }
}
