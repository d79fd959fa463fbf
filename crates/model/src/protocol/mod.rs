//! How host and guest talk: frames on a byte stream, and the messages inside them
//! (`docs/formats/agent-protocol.md` is normative).
//!
//! The host asks, the guest answers. Each operation (a program that runs, a file that travels) has a
//! channel of its own, chosen by the host and never used twice in a conversation; channel 0 belongs to
//! the conversation itself. A conversation begins with a [`Request::Hello`] that carries a nonce and is
//! sent again and again until the guest welcomes that nonce; whatever arrives before is of an earlier
//! conversation and ignored. Bulk data flows only within credit the receiver granted, so that neither
//! side can wedge the other and heartbeats always get through.

mod answer;
mod frame;
mod kind;
mod message;
mod request;
#[cfg(test)]
mod tests;
mod wire;

pub use frame::{Decoder, Frame, HEADER_LEN, MAGIC, MAX_PAYLOAD, VERSION, encode_frame};
pub use message::{
    Answer, Done, Entry, EntryKind, ErrorKind, Exec, ExitStatus, Heartbeat, MessageError, Pty,
    PullLimits, Push, Renewal, Request, SignalTarget, Stat, Stream, Welcome,
};

/// Version of the messages, told in hello and welcome; both sides must have the same.
pub const PROTOCOL: u16 = 2;

/// The channel of the conversation itself.
pub const CONTROL: u32 = 0;

/// Credit every channel starts with, in each direction. Metered are the payloads of
/// [`Request::Stdin`], [`Request::PushData`] and the answers of which [`Answer::is_metered`] says so.
pub const INITIAL_CREDIT: u32 = 256 * 1024;

/// How often the host repeats its hello, in milliseconds.
pub const HELLO_EVERY_MS: u64 = 100;

/// How often the guest sends a heartbeat, in milliseconds.
pub const HEARTBEAT_EVERY_MS: u64 = 1000;

/// Bytes of data that travel in one frame at most; leaves room for what else a message carries.
pub const MAX_CHUNK: usize = 32 * 1024;

/// Name of the virtio-serial port the agent answers on.
pub const PORT_NAME: &str = "kiln.agent";
