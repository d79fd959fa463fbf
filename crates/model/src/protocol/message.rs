//! What the frames say (`docs/formats/agent-protocol.md`): requests of the host, answers of the guest.
//!
//! Paths, arguments and names are bytes, as Linux has them. Everything the guest says is hostile until
//! proven otherwise; decoding checks shapes and bounds, the receiver checks the meaning.

use std::fmt;

use super::frame::{Frame, MAX_PAYLOAD, encode_frame};
use super::wire::{Reader, Writer};

/// Why a frame is no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The payload ended early.
    #[error("payload ends early")]
    Short,
    /// The payload goes on after the message.
    #[error("payload has {count} bytes too many")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// No message has this number.
    #[error("unknown message kind {kind}")]
    Kind {
        /// The number.
        kind: u8,
    },
    /// A field has a value it cannot have.
    #[error("{what} cannot be {value}")]
    Value {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u32,
    },
    /// The message does not fit one frame.
    #[error("message of {length} bytes is longer than a frame's {MAX_PAYLOAD}")]
    TooLong {
        /// How long it is.
        length: usize,
    },
}

/// A program to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    /// Program and arguments; the program is looked up in PATH when it has no `/`.
    pub argv: Vec<Vec<u8>>,
    /// Set on top of the guest's own environment.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where it starts; `/` when empty.
    pub cwd: Vec<u8>,
    /// A terminal of this size, or pipes.
    pub pty: Option<Pty>,
    /// Whether processes it leaves behind are killed when it ends.
    pub kill_leftovers: bool,
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pty {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// Whom a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalTarget {
    /// The process group of the program that was started, or of the terminal's foreground job.
    Foreground,
    /// Every process of the session, however far it has strayed.
    Everything,
}

/// A file about to arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// Absolute; folders that are missing are made.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// How much a pull may bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullLimits {
    /// Files, folders and links together.
    pub entries: u32,
    /// Bytes of all files together.
    pub bytes: u64,
}

/// What the host says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Begin a conversation, forget any other.
    Hello {
        /// Names the conversation.
        nonce: u64,
        /// [`PROTOCOL`](super::PROTOCOL) of the host.
        protocol: u16,
    },
    /// Run a program; the channel becomes its session.
    Exec(Exec),
    /// Bytes for its standard input or terminal.
    Stdin(Vec<u8>),
    /// End of its standard input; on a terminal, the end-of-file character.
    CloseStdin,
    /// Its terminal has another size now.
    Resize(Pty),
    /// A signal for it.
    Signal {
        /// Linux's number on this architecture.
        signal: u8,
        /// For whom.
        target: SignalTarget,
    },
    /// More credit for data on this channel.
    Credit(u32),
    /// Write a file; data follow on the same channel.
    Push(Push),
    /// The next bytes of it.
    PushData(Vec<u8>),
    /// It is complete.
    PushEnd {
        /// Of all its bytes.
        crc32c: u32,
        /// How many there were.
        length: u64,
    },
    /// Send files: paths, or patterns with `*` and `?`; folders with all they hold.
    Pull {
        /// What to look for.
        patterns: Vec<Vec<u8>>,
        /// When to stop.
        limits: PullLimits,
    },
    /// Load kernel modules with all they need.
    LoadModules(Vec<Vec<u8>>),
    /// Look at a path without following a last symbolic link.
    Stat(Vec<u8>),
    /// Write all dirty data to the disks.
    Sync,
    /// Sync, unmount, switch the machine off.
    PowerOff,
    /// Set the wall clock, in nanoseconds since 1970.
    SetClock(u64),
    /// Stir bytes into the kernel's random pool.
    SeedEntropy(Vec<u8>),
    /// Answer with the same number.
    Ping(u64),
    /// Stop what this channel does; a session is killed with everything in it.
    Cancel,
    /// Bring `/dev/disk/by-id` up to date.
    RescanDisks,
}

/// The guest introduces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Of the hello it answers.
    pub nonce: u64,
    /// [`PROTOCOL`](super::PROTOCOL) of the guest.
    pub protocol: u16,
    /// Release of the kernel that runs.
    pub release: Vec<u8>,
    /// Milliseconds since that kernel started.
    pub uptime_ms: u64,
}

/// A sign of life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Milliseconds since the kernel started.
    pub uptime_ms: u64,
    /// Load average over one minute, in hundredths.
    pub load_centi: u32,
    /// Memory in bytes.
    pub memory_total: u64,
    /// Memory a program could still get, in bytes.
    pub memory_available: u64,
    /// Programs running for the host.
    pub sessions: u32,
}

/// Where output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The terminal, which mixes them.
    Terminal,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// By itself, with this status.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, a pipe or a socket; never sent.
    Special,
}

/// Something a pull found; the data of a file follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Absolute, in the guest.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Where a link points to; empty otherwise.
    pub target: Vec<u8>,
}

/// What a path looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// In bytes.
    pub size: u64,
}

/// An operation is complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// How many things it was about: entries pulled, modules loaded, disks found.
    pub count: u64,
    /// How many bytes it moved.
    pub bytes: u64,
    /// Whether a limit cut it short.
    pub truncated: bool,
}

/// What kind of no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such path, program or module.
    NotFound,
    /// The request makes no sense where it was made.
    Refused,
    /// It was tried and failed.
    Failed,
}

/// What the guest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The conversation has begun.
    Welcome(Welcome),
    /// The program runs, as this process.
    Started(u32),
    /// It wrote.
    Output {
        /// Where.
        stream: Stream,
        /// What.
        bytes: Vec<u8>,
    },
    /// It ended and all it wrote was sent; last on its channel.
    Exited(ExitStatus),
    /// More credit for data on this channel.
    Credit(u32),
    /// A pull found this.
    Entry(Entry),
    /// The next bytes of the file found last.
    Data(Vec<u8>),
    /// That file is complete.
    EntryEnd {
        /// Of all its bytes.
        crc32c: u32,
        /// How many there were.
        length: u64,
    },
    /// A part of the operation failed, the rest goes on.
    Trouble(Vec<u8>),
    /// The operation is complete; last on its channel.
    Done(Done),
    /// Answer to a stat; last on its channel.
    Stat(Stat),
    /// Answer to a ping; last on its channel.
    Pong(u64),
    /// A sign of life; on the control channel.
    Heartbeat(Heartbeat),
    /// The operation failed; last on its channel.
    Error {
        /// What kind of no.
        kind: ErrorKind,
        /// What, where and why, for a person. Hostile text.
        text: Vec<u8>,
    },
}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const EXEC: u8 = 2;
    pub(super) const STDIN: u8 = 3;
    pub(super) const CLOSE_STDIN: u8 = 4;
    pub(super) const RESIZE: u8 = 5;
    pub(super) const SIGNAL: u8 = 6;
    pub(super) const HOST_CREDIT: u8 = 7;
    pub(super) const PUSH: u8 = 8;
    pub(super) const PUSH_DATA: u8 = 9;
    pub(super) const PUSH_END: u8 = 10;
    pub(super) const PULL: u8 = 11;
    pub(super) const LOAD_MODULES: u8 = 12;
    pub(super) const STAT: u8 = 13;
    pub(super) const SYNC: u8 = 14;
    pub(super) const POWER_OFF: u8 = 15;
    pub(super) const SET_CLOCK: u8 = 16;
    pub(super) const SEED_ENTROPY: u8 = 17;
    pub(super) const PING: u8 = 18;
    pub(super) const CANCEL: u8 = 19;
    pub(super) const RESCAN_DISKS: u8 = 20;

    pub(super) const WELCOME: u8 = 129;
    pub(super) const STARTED: u8 = 130;
    pub(super) const OUTPUT: u8 = 131;
    pub(super) const EXITED: u8 = 132;
    pub(super) const GUEST_CREDIT: u8 = 133;
    pub(super) const ENTRY: u8 = 134;
    pub(super) const DATA: u8 = 135;
    pub(super) const ENTRY_END: u8 = 136;
    pub(super) const TROUBLE: u8 = 137;
    pub(super) const DONE: u8 = 138;
    pub(super) const STAT_IS: u8 = 139;
    pub(super) const PONG: u8 = 140;
    pub(super) const HEARTBEAT: u8 = 141;
    pub(super) const ERROR: u8 = 142;
}

fn finish(kind: u8, channel: u32, body: &Writer, out: &mut Vec<u8>) -> Result<(), MessageError> {
    if body.0.len() > MAX_PAYLOAD {
        return Err(MessageError::TooLong { length: body.0.len() });
    }
    encode_frame(kind, channel, &body.0, out);
    Ok(())
}

impl Request {
    /// Appends the message as a frame.
    ///
    /// # Errors
    /// [`MessageError::TooLong`], with `out` as it was.
    pub fn encode(&self, channel: u32, out: &mut Vec<u8>) -> Result<(), MessageError> {
        let mut w = Writer::default();
        let kind = match self {
            Request::Hello { nonce, protocol } => {
                w.u64(*nonce);
                w.u16(*protocol);
                kind::HELLO
            }
            Request::Exec(exec) => {
                write_exec(exec, &mut w);
                kind::EXEC
            }
            Request::Stdin(bytes) => {
                w.0.extend_from_slice(bytes);
                kind::STDIN
            }
            Request::CloseStdin => kind::CLOSE_STDIN,
            Request::Resize(size) => {
                w.u16(size.rows);
                w.u16(size.cols);
                kind::RESIZE
            }
            Request::Signal { signal, target } => {
                w.u8(*signal);
                w.u8(match target {
                    SignalTarget::Foreground => 0,
                    SignalTarget::Everything => 1,
                });
                kind::SIGNAL
            }
            Request::Credit(bytes) => {
                w.u32(*bytes);
                kind::HOST_CREDIT
            }
            Request::Push(push) => {
                w.u32(push.mode);
                w.bytes(&push.path);
                kind::PUSH
            }
            Request::PushData(bytes) => {
                w.0.extend_from_slice(bytes);
                kind::PUSH_DATA
            }
            Request::PushEnd { crc32c, length } => {
                w.u32(*crc32c);
                w.u64(*length);
                kind::PUSH_END
            }
            Request::Pull { patterns, limits } => {
                w.u32(limits.entries);
                w.u64(limits.bytes);
                w.count(patterns.len());
                patterns.iter().for_each(|pattern| w.bytes(pattern));
                kind::PULL
            }
            Request::LoadModules(names) => {
                w.count(names.len());
                names.iter().for_each(|name| w.bytes(name));
                kind::LOAD_MODULES
            }
            Request::Stat(path) => {
                w.bytes(path);
                kind::STAT
            }
            Request::Sync => kind::SYNC,
            Request::PowerOff => kind::POWER_OFF,
            Request::SetClock(nanoseconds) => {
                w.u64(*nanoseconds);
                kind::SET_CLOCK
            }
            Request::SeedEntropy(bytes) => {
                w.0.extend_from_slice(bytes);
                kind::SEED_ENTROPY
            }
            Request::Ping(number) => {
                w.u64(*number);
                kind::PING
            }
            Request::Cancel => kind::CANCEL,
            Request::RescanDisks => kind::RESCAN_DISKS,
        };
        finish(kind, channel, &w, out)
    }

    /// Understands a frame from the host.
    ///
    /// # Errors
    /// The frame is no request, or not shaped like one.
    pub fn decode(frame: &Frame) -> Result<Request, MessageError> {
        let mut r = Reader(&frame.payload);
        let request = match frame.kind {
            kind::HELLO => Request::Hello { nonce: r.u64()?, protocol: r.u16()? },
            kind::EXEC => Request::Exec(read_exec(&mut r)?),
            kind::STDIN => Request::Stdin(r.rest()),
            kind::CLOSE_STDIN => Request::CloseStdin,
            kind::RESIZE => Request::Resize(read_pty(&mut r)?),
            kind::SIGNAL => Request::Signal {
                signal: r.u8()?,
                target: match r.u8()? {
                    0 => SignalTarget::Foreground,
                    1 => SignalTarget::Everything,
                    other => {
                        return Err(MessageError::Value {
                            what: "signal target",
                            value: u32::from(other),
                        });
                    }
                },
            },
            kind::HOST_CREDIT => Request::Credit(r.u32()?),
            kind::PUSH => {
                let mode = r.u32()?;
                Request::Push(Push { path: r.bytes()?, mode })
            }
            kind::PUSH_DATA => Request::PushData(r.rest()),
            kind::PUSH_END => Request::PushEnd { crc32c: r.u32()?, length: r.u64()? },
            kind::PULL => {
                let limits = PullLimits { entries: r.u32()?, bytes: r.u64()? };
                Request::Pull { patterns: r.list(Reader::bytes)?, limits }
            }
            kind::LOAD_MODULES => Request::LoadModules(r.list(Reader::bytes)?),
            kind::STAT => Request::Stat(r.bytes()?),
            kind::SYNC => Request::Sync,
            kind::POWER_OFF => Request::PowerOff,
            kind::SET_CLOCK => Request::SetClock(r.u64()?),
            kind::SEED_ENTROPY => Request::SeedEntropy(r.rest()),
            kind::PING => Request::Ping(r.u64()?),
            kind::CANCEL => Request::Cancel,
            kind::RESCAN_DISKS => Request::RescanDisks,
            kind => return Err(MessageError::Kind { kind }),
        };
        r.end()?;
        Ok(request)
    }
}

fn write_exec(exec: &Exec, w: &mut Writer) {
    w.count(exec.argv.len());
    exec.argv.iter().for_each(|argument| w.bytes(argument));
    w.count(exec.env.len());
    for (name, value) in &exec.env {
        w.bytes(name);
        w.bytes(value);
    }
    w.bytes(&exec.cwd);
    w.flag(exec.pty.is_some());
    let size = exec.pty.unwrap_or(Pty { rows: 0, cols: 0 });
    w.u16(size.rows);
    w.u16(size.cols);
    w.flag(exec.kill_leftovers);
}

fn read_exec(r: &mut Reader<'_>) -> Result<Exec, MessageError> {
    let argv = r.list(Reader::bytes)?;
    let env = r.list(|r| Ok((r.bytes()?, r.bytes()?)))?;
    let cwd = r.bytes()?;
    let on_terminal = r.flag()?;
    let size = read_pty(r)?;
    if !on_terminal && size != (Pty { rows: 0, cols: 0 }) {
        return Err(MessageError::Value { what: "rows of no terminal", value: size.rows.into() });
    }
    Ok(Exec { argv, env, cwd, pty: on_terminal.then_some(size), kill_leftovers: r.flag()? })
}

fn read_pty(r: &mut Reader<'_>) -> Result<Pty, MessageError> {
    Ok(Pty { rows: r.u16()?, cols: r.u16()? })
}

impl Answer {
    /// Whether its payload counts against the credit of its channel.
    pub fn is_metered(&self) -> bool {
        matches!(
            self,
            Answer::Output { .. }
                | Answer::Data(_)
                | Answer::Entry(_)
                | Answer::EntryEnd { .. }
                | Answer::Trouble(_)
        )
    }

    /// Appends the message as a frame.
    ///
    /// # Errors
    /// [`MessageError::TooLong`], with `out` as it was.
    pub fn encode(&self, channel: u32, out: &mut Vec<u8>) -> Result<(), MessageError> {
        let mut w = Writer::default();
        let kind = match self {
            Answer::Welcome(welcome) => {
                w.u64(welcome.nonce);
                w.u16(welcome.protocol);
                w.bytes(&welcome.release);
                w.u64(welcome.uptime_ms);
                kind::WELCOME
            }
            Answer::Started(pid) => {
                w.u32(*pid);
                kind::STARTED
            }
            Answer::Output { stream, bytes } => {
                w.u8(match stream {
                    Stream::Stdout => 1,
                    Stream::Stderr => 2,
                    Stream::Terminal => 3,
                });
                w.0.extend_from_slice(bytes);
                kind::OUTPUT
            }
            Answer::Exited(status) => {
                let (by_signal, number) = match status {
                    ExitStatus::Code(code) => (false, *code),
                    ExitStatus::Signal(signal) => (true, *signal),
                };
                w.flag(by_signal);
                w.i32(number);
                kind::EXITED
            }
            Answer::Credit(bytes) => {
                w.u32(*bytes);
                kind::GUEST_CREDIT
            }
            Answer::Entry(entry) => {
                w.u8(entry_kind_number(entry.kind));
                w.u32(entry.mode);
                w.bytes(&entry.path);
                w.bytes(&entry.target);
                kind::ENTRY
            }
            Answer::Data(bytes) => {
                w.0.extend_from_slice(bytes);
                kind::DATA
            }
            Answer::EntryEnd { crc32c, length } => {
                w.u32(*crc32c);
                w.u64(*length);
                kind::ENTRY_END
            }
            Answer::Trouble(text) => {
                w.bytes(text);
                kind::TROUBLE
            }
            Answer::Done(done) => {
                w.u64(done.count);
                w.u64(done.bytes);
                w.flag(done.truncated);
                kind::DONE
            }
            Answer::Stat(stat) => {
                w.u8(entry_kind_number(stat.kind));
                w.u32(stat.mode);
                w.u64(stat.size);
                kind::STAT_IS
            }
            Answer::Pong(number) => {
                w.u64(*number);
                kind::PONG
            }
            Answer::Heartbeat(beat) => {
                w.u64(beat.uptime_ms);
                w.u32(beat.load_centi);
                w.u64(beat.memory_total);
                w.u64(beat.memory_available);
                w.u32(beat.sessions);
                kind::HEARTBEAT
            }
            Answer::Error { kind, text } => {
                w.u8(match kind {
                    ErrorKind::NotFound => 1,
                    ErrorKind::Refused => 2,
                    ErrorKind::Failed => 3,
                });
                w.bytes(text);
                kind::ERROR
            }
        };
        finish(kind, channel, &w, out)
    }

    /// Understands a frame from the guest.
    ///
    /// # Errors
    /// The frame is no answer, or not shaped like one.
    pub fn decode(frame: &Frame) -> Result<Answer, MessageError> {
        let mut r = Reader(&frame.payload);
        let answer = match frame.kind {
            kind::WELCOME => Answer::Welcome(Welcome {
                nonce: r.u64()?,
                protocol: r.u16()?,
                release: r.bytes()?,
                uptime_ms: r.u64()?,
            }),
            kind::STARTED => Answer::Started(r.u32()?),
            kind::OUTPUT => Answer::Output {
                stream: match r.u8()? {
                    1 => Stream::Stdout,
                    2 => Stream::Stderr,
                    3 => Stream::Terminal,
                    other => {
                        return Err(MessageError::Value {
                            what: "stream",
                            value: u32::from(other),
                        });
                    }
                },
                bytes: r.rest(),
            },
            kind::EXITED => {
                let by_signal = r.flag()?;
                let number = r.i32()?;
                Answer::Exited(match by_signal {
                    true => ExitStatus::Signal(number),
                    false => ExitStatus::Code(number),
                })
            }
            kind::GUEST_CREDIT => Answer::Credit(r.u32()?),
            kind::ENTRY => {
                let kind = read_entry_kind(&mut r)?;
                let mode = r.u32()?;
                Answer::Entry(Entry { path: r.bytes()?, kind, mode, target: r.bytes()? })
            }
            kind::DATA => Answer::Data(r.rest()),
            kind::ENTRY_END => Answer::EntryEnd { crc32c: r.u32()?, length: r.u64()? },
            kind::TROUBLE => Answer::Trouble(r.bytes()?),
            kind::DONE => {
                Answer::Done(Done { count: r.u64()?, bytes: r.u64()?, truncated: r.flag()? })
            }
            kind::STAT_IS => {
                let kind = read_entry_kind(&mut r)?;
                Answer::Stat(Stat { kind, mode: r.u32()?, size: r.u64()? })
            }
            kind::PONG => Answer::Pong(r.u64()?),
            kind::HEARTBEAT => Answer::Heartbeat(Heartbeat {
                uptime_ms: r.u64()?,
                load_centi: r.u32()?,
                memory_total: r.u64()?,
                memory_available: r.u64()?,
                sessions: r.u32()?,
            }),
            kind::ERROR => Answer::Error {
                kind: match r.u8()? {
                    1 => ErrorKind::NotFound,
                    2 => ErrorKind::Refused,
                    3 => ErrorKind::Failed,
                    other => {
                        return Err(MessageError::Value {
                            what: "error kind",
                            value: u32::from(other),
                        });
                    }
                },
                text: r.bytes()?,
            },
            kind => return Err(MessageError::Kind { kind }),
        };
        r.end()?;
        Ok(answer)
    }
}

fn entry_kind_number(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::File => 1,
        EntryKind::Folder => 2,
        EntryKind::Link => 3,
        EntryKind::Special => 4,
    }
}

fn read_entry_kind(r: &mut Reader<'_>) -> Result<EntryKind, MessageError> {
    match r.u8()? {
        1 => Ok(EntryKind::File),
        2 => Ok(EntryKind::Folder),
        3 => Ok(EntryKind::Link),
        4 => Ok(EntryKind::Special),
        other => Err(MessageError::Value { what: "entry kind", value: u32::from(other) }),
    }
}

/// `exit status 3`, `killed by signal 11`.
impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitStatus::Code(code) => write!(f, "exit status {code}"),
            ExitStatus::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::Decoder;
    use super::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..40)
    }

    fn list() -> impl Strategy<Value = Vec<Vec<u8>>> {
        proptest::collection::vec(bytes(), 0..5)
    }

    fn pty() -> impl Strategy<Value = Pty> {
        (any::<u16>(), any::<u16>()).prop_map(|(rows, cols)| Pty { rows, cols })
    }

    fn exec() -> impl Strategy<Value = Exec> {
        let env = proptest::collection::vec((bytes(), bytes()), 0..4);
        (list(), env, bytes(), proptest::option::of(pty()), any::<bool>()).prop_map(
            |(argv, env, cwd, pty, kill_leftovers)| Exec { argv, env, cwd, pty, kill_leftovers },
        )
    }

    fn request() -> impl Strategy<Value = Request> {
        let target =
            proptest::sample::select(&[SignalTarget::Foreground, SignalTarget::Everything][..]);
        prop_oneof![
            (any::<u64>(), any::<u16>())
                .prop_map(|(nonce, protocol)| Request::Hello { nonce, protocol }),
            exec().prop_map(Request::Exec),
            bytes().prop_map(Request::Stdin),
            pty().prop_map(Request::Resize),
            (any::<u8>(), target).prop_map(|(signal, target)| Request::Signal { signal, target }),
            any::<u32>().prop_map(Request::Credit),
            (bytes(), any::<u32>()).prop_map(|(path, mode)| Request::Push(Push { path, mode })),
            bytes().prop_map(Request::PushData),
            (any::<u32>(), any::<u64>())
                .prop_map(|(crc32c, length)| Request::PushEnd { crc32c, length }),
            (list(), any::<u32>(), any::<u64>()).prop_map(|(patterns, entries, bytes)| {
                Request::Pull { patterns, limits: PullLimits { entries, bytes } }
            }),
            list().prop_map(Request::LoadModules),
            bytes().prop_map(Request::Stat),
            any::<u64>().prop_map(Request::SetClock),
            bytes().prop_map(Request::SeedEntropy),
            any::<u64>().prop_map(Request::Ping),
            proptest::sample::select(vec![
                Request::CloseStdin,
                Request::Sync,
                Request::PowerOff,
                Request::Cancel,
                Request::RescanDisks,
            ]),
        ]
    }

    fn entry_kind() -> impl Strategy<Value = EntryKind> {
        use EntryKind::{File, Folder, Link, Special};
        proptest::sample::select(vec![File, Folder, Link, Special])
    }

    fn answer() -> impl Strategy<Value = Answer> {
        let stream =
            proptest::sample::select(vec![Stream::Stdout, Stream::Stderr, Stream::Terminal]);
        let error_kind = proptest::sample::select(vec![
            ErrorKind::NotFound,
            ErrorKind::Refused,
            ErrorKind::Failed,
        ]);
        prop_oneof![
            (any::<u64>(), any::<u16>(), bytes(), any::<u64>()).prop_map(
                |(nonce, protocol, release, uptime_ms)| Answer::Welcome(Welcome {
                    nonce,
                    protocol,
                    release,
                    uptime_ms
                })
            ),
            any::<u32>().prop_map(Answer::Started),
            (stream, bytes()).prop_map(|(stream, bytes)| Answer::Output { stream, bytes }),
            any::<i32>().prop_map(|n| Answer::Exited(ExitStatus::Code(n))),
            any::<i32>().prop_map(|n| Answer::Exited(ExitStatus::Signal(n))),
            any::<u32>().prop_map(Answer::Credit),
            (bytes(), entry_kind(), any::<u32>(), bytes()).prop_map(
                |(path, kind, mode, target)| Answer::Entry(Entry { path, kind, mode, target })
            ),
            bytes().prop_map(Answer::Data),
            (any::<u32>(), any::<u64>())
                .prop_map(|(crc32c, length)| Answer::EntryEnd { crc32c, length }),
            bytes().prop_map(Answer::Trouble),
            (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(count, bytes, truncated)| {
                Answer::Done(Done { count, bytes, truncated })
            }),
            (entry_kind(), any::<u32>(), any::<u64>())
                .prop_map(|(kind, mode, size)| Answer::Stat(Stat { kind, mode, size })),
            any::<u64>().prop_map(Answer::Pong),
            (any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>(), any::<u32>()).prop_map(
                |(uptime_ms, load_centi, memory_total, memory_available, sessions)| {
                    Answer::Heartbeat(Heartbeat {
                        uptime_ms,
                        load_centi,
                        memory_total,
                        memory_available,
                        sessions,
                    })
                }
            ),
            (error_kind, bytes()).prop_map(|(kind, text)| Answer::Error { kind, text }),
        ]
    }

    fn only_frame(bytes: &[u8]) -> Frame {
        let mut decoder = Decoder::new();
        decoder.feed(bytes);
        decoder.next_frame().unwrap()
    }

    proptest! {
        #[test]
        fn a_request_survives_the_wire(request in request(), channel in any::<u32>()) {
            let mut bytes = Vec::new();
            request.encode(channel, &mut bytes).unwrap();
            let frame = only_frame(&bytes);
            prop_assert_eq!(frame.channel, channel);
            prop_assert_eq!(Request::decode(&frame).unwrap(), request);
            prop_assert!(Answer::decode(&frame).is_err(), "a request is never taken for an answer");
        }

        #[test]
        fn an_answer_survives_the_wire(answer in answer(), channel in any::<u32>()) {
            let mut bytes = Vec::new();
            answer.encode(channel, &mut bytes).unwrap();
            let frame = only_frame(&bytes);
            prop_assert_eq!(Answer::decode(&frame).unwrap(), answer);
            prop_assert!(Request::decode(&frame).is_err(), "an answer is never taken for a request");
        }

        #[test]
        fn whatever_a_reader_understands_has_one_form_and_nothing_makes_it_panic(
            kind in prop_oneof![1_u8..25, 129_u8..145, any::<u8>()],
            payload in proptest::collection::vec(prop_oneof![0_u8..4, any::<u8>()], 0..40),
        ) {
            let frame = Frame { kind, channel: 1, payload };
            let mut again = Vec::new();
            if let Ok(request) = Request::decode(&frame) {
                request.encode(1, &mut again).unwrap();
                prop_assert_eq!(&only_frame(&again), &frame);
            } else if let Ok(answer) = Answer::decode(&frame) {
                answer.encode(1, &mut again).unwrap();
                prop_assert_eq!(&only_frame(&again), &frame);
            }
        }
    }

    #[test]
    fn a_message_too_long_for_a_frame_is_refused_and_nothing_is_written() {
        let exec = Exec { argv: vec![vec![b'x'; MAX_PAYLOAD]], ..Exec::default() };
        let mut out = vec![1, 2, 3];
        let error = Request::Exec(exec).encode(1, &mut out).unwrap_err();
        assert!(matches!(error, MessageError::TooLong { .. }), "{error}");
        assert_eq!(out, [1, 2, 3]);
    }
}
