//! Answers as they lie in a frame.

use super::frame::Frame;
use super::kind;
use super::message::{
    Answer, Done, Entry, EntryKind, ErrorKind, ExitStatus, Heartbeat, MessageError, Stat, Stream,
    Welcome,
};
use super::wire::{Reader, Writer, finish};

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
