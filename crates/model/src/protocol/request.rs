//! Requests as they lie in a frame.

use super::frame::Frame;
use super::kind;
use super::message::{Exec, MessageError, Pty, PullLimits, Push, Renewal, Request, SignalTarget};
use super::wire::{Reader, Writer, finish};

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
            Request::Rest => kind::REST,
            Request::Renew(renewal) => {
                w.u64(renewal.since_epoch);
                w.bytes(&renewal.hostname);
                w.bytes(&renewal.machine_id);
                w.bytes(&renewal.entropy);
                kind::RENEW
            }
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
            kind::REST => Request::Rest,
            kind::RENEW => Request::Renew(Renewal {
                since_epoch: r.u64()?,
                hostname: r.bytes()?,
                machine_id: r.bytes()?,
                entropy: r.bytes()?,
            }),
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
