//! What the frames say (`docs/formats/agent-protocol.md`): requests of the host, answers of the guest. How
//! they lie in a frame is told in `request` and `answer`.
//!
//! Paths, arguments and names are bytes, as Linux has them. Everything the guest says is hostile until
//! proven otherwise; decoding checks shapes and bounds, the receiver checks the meaning.

use std::fmt;

use super::frame::MAX_PAYLOAD;

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
    /// Say nothing more, once this is answered, until the next hello: the machine is about to be saved.
    Rest,
    /// Become a machine of your own after a restore.
    Renew(Renewal),
}

/// What tells a machine from others that were restored from the same instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The wall clock, in nanoseconds since 1970.
    pub since_epoch: u64,
    /// The host's name, unless the kernel's command line says one.
    pub hostname: Vec<u8>,
    /// What `/etc/machine-id` says, as 32 hexadecimal digits; empty where it stays as it is.
    pub machine_id: Vec<u8>,
    /// Random bytes; the kernel's generator starts from them anew.
    pub entropy: Vec<u8>,
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

/// `exit status 3`, `killed by signal 11`.
impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitStatus::Code(code) => write!(f, "exit status {code}"),
            ExitStatus::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}
