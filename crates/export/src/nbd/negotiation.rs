//! The handshake: a client finds out what there is and chooses an export.

use std::io;

use super::channel::{Channel, Input};
use super::wire::{
    ALLOCATION, ALLOCATION_ID, FIXED_NEWSTYLE, Fields, GREETING, LARGEST_PAYLOAD, NO_ZEROES,
    OPTION_MAGIC, OPTION_REPLY_MAGIC, answer, can, info, option,
};
use crate::exports::LONGEST_STRING;
use crate::{Export, Exports};

/// The longest data of an option that is read: two names and a row of queries fit.
const LONGEST_OPTION: usize = 64 << 10;
/// How many options a client may send. Real ones send a handful.
const MOST_OPTIONS: u32 = 256;
/// The queries for metadata contexts that are looked at.
const MOST_QUERIES: u32 = 256;

/// What was agreed upon.
#[derive(Debug)]
pub(crate) struct Agreement {
    pub(crate) export: Export,
    /// Reads are answered in chunks.
    pub(crate) structured: bool,
    /// Block status may be asked for.
    pub(crate) allocation: bool,
}

/// How a handshake ends other than by agreement.
#[derive(Debug, thiserror::Error)]
pub enum NegotiationError {
    /// The connection broke or was too slow.
    #[error("the client went away while it negotiated")]
    Io(#[from] io::Error),
    /// What the client said is not NBD.
    #[error("the client broke the protocol: {what}")]
    Broken {
        /// What it did.
        what: &'static str,
    },
}

fn broken(what: &'static str) -> NegotiationError {
    NegotiationError::Broken { what }
}

/// Whether what is said is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protection {
    /// It is not, and need not be.
    None,
    /// It will be, or nothing is said about disks.
    Wanted,
    /// It is.
    Tls,
}

/// How a handshake ends.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The client has an export.
    Agreed(Agreement),
    /// The client wants to go on in TLS, and was told that it may.
    StartTls,
    /// The client has left.
    Left,
}

/// Who asks, and what was agreed so far.
struct Handshake<'a, C> {
    channel: &'a C,
    exports: &'a Exports,
    protection: Protection,
    structured: bool,
    /// The export for which block status was asked.
    allocation_of: Option<String>,
}

/// The first words; returns whether the client can do without 124 zeros that follow the oldest answer.
pub(crate) fn greet<C: Channel>(channel: &C, input: &mut Input) -> Result<bool, NegotiationError> {
    let mut hello = Vec::with_capacity(18);
    hello.extend(GREETING.to_be_bytes());
    hello.extend(OPTION_MAGIC.to_be_bytes());
    hello.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    channel.send(&hello)?;
    let mut flags = [0; 4];
    input.read_exact(channel, &mut flags)?;
    let flags = u32::from_be_bytes(flags);
    if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
        return Err(broken("it set handshake flags that do not exist"));
    }
    Ok(flags & u32::from(NO_ZEROES) != 0)
}

/// Talks until the client has an export, starts TLS or has left.
pub(crate) fn negotiate<C: Channel>(
    channel: &C,
    input: &mut Input,
    exports: &Exports,
    protection: Protection,
    no_zeroes: bool,
) -> Result<Outcome, NegotiationError> {
    let mut shake =
        Handshake { channel, exports, protection, structured: false, allocation_of: None };
    for _ in 0..MOST_OPTIONS {
        let mut head = [0; 16];
        input.read_exact(channel, &mut head)?;
        let mut fields = Fields(&head);
        let (Some(OPTION_MAGIC), Some(number), Some(len)) =
            (fields.u64(), fields.u32(), fields.u32())
        else {
            return Err(broken("an option does not start with IHAVEOPT"));
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > LONGEST_OPTION {
            return Err(broken("an option is longer than 64 KiB"));
        }
        let mut data = vec![0; len];
        input.read_exact(channel, &mut data)?;
        match number {
            option::STARTTLS if shake.start_tls(&data)? => return Ok(Outcome::StartTls),
            option::STARTTLS => {}
            option::EXPORT_NAME if protection == Protection::Wanted => {
                return Err(broken("it chose an export without TLS"));
            }
            option::EXPORT_NAME => {
                return shake.export_name(&data, no_zeroes).map(Outcome::Agreed);
            }
            option::ABORT => {
                // The client may have closed already; it is told all the same.
                let _ = shake.answer(number, answer::ACK, &[]);
                return Ok(Outcome::Left);
            }
            _ if protection == Protection::Wanted => {
                shake.answer(number, answer::TLS_REQUIRED, b"start TLS first")?;
            }
            option::GO | option::INFO => {
                if let Some(agreement) = shake.go(number, &data)? {
                    return Ok(Outcome::Agreed(agreement));
                }
            }
            option::LIST => shake.list(&data)?,
            option::STRUCTURED_REPLY => shake.structured_reply(&data)?,
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                shake.meta_context(number, &data)?;
            }
            _ => shake.answer(number, answer::UNSUPPORTED, b"this option is not supported")?,
        }
    }
    Err(broken("it sent more than 256 options"))
}

impl<C: Channel> Handshake<'_, C> {
    fn answer(&self, option: u32, kind: u32, data: &[u8]) -> Result<(), NegotiationError> {
        let len = u32::try_from(data.len()).map_err(|_| broken("an answer is too long"))?;
        let mut bytes = Vec::with_capacity(20 + data.len());
        bytes.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        bytes.extend(option.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(data);
        Ok(self.channel.send(&bytes)?)
    }

    /// Whether TLS comes next.
    fn start_tls(&self, data: &[u8]) -> Result<bool, NegotiationError> {
        let (kind, sentence): (u32, &[u8]) = match self.protection {
            Protection::None => {
                (answer::POLICY, b"TLS is not offered: this server has no certificate")
            }
            Protection::Wanted if data.is_empty() => (answer::ACK, b""),
            Protection::Wanted => (answer::INVALID, b"starting TLS takes no data"),
            Protection::Tls => (answer::INVALID, b"this is TLS already"),
        };
        self.answer(option::STARTTLS, kind, sentence)?;
        Ok(kind == answer::ACK)
    }

    /// The oldest way to choose: there is no way to say no but to hang up.
    fn export_name(&self, name: &[u8], no_zeroes: bool) -> Result<Agreement, NegotiationError> {
        let found = std::str::from_utf8(name).ok().and_then(|name| self.exports.find(name));
        let Some((name, export)) = found else {
            return Err(broken("it chose an export that is not there"));
        };
        let agreement = self.agreement(&name, export);
        let mut bytes = agreement.export.device().size().get().to_be_bytes().to_vec();
        bytes.extend(self.flags(&agreement.export).to_be_bytes());
        if !no_zeroes {
            bytes.extend([0; 124]);
        }
        self.channel.send(&bytes)?;
        Ok(agreement)
    }

    fn agreement(&self, name: &str, export: Export) -> Agreement {
        let allocation = self.structured && self.allocation_of.as_deref() == Some(name);
        Agreement { export, structured: self.structured, allocation }
    }

    fn flags(&self, export: &Export) -> u16 {
        // A flush of a `BlockDevice` covers every write that returned before, whoever made it: that
        // is what several connections need.
        let mut flags = can::HAS_FLAGS | can::FLUSH | can::MULTI_CONN | can::CACHE;
        flags |= if export.is_read_only() {
            can::READ_ONLY
        } else {
            can::FUA | can::TRIM | can::WRITE_ZEROES | can::FAST_ZERO
        };
        if self.structured {
            flags |= can::DF;
        }
        flags
    }

    /// `GO` and `INFO`: the same answers, but only the first ends the handshake.
    fn go(&self, option: u32, data: &[u8]) -> Result<Option<Agreement>, NegotiationError> {
        let Some((name, wanted)) = parse_go(data) else {
            self.answer(option, answer::INVALID, b"the option's data has another length")?;
            return Ok(None);
        };
        let Some((name, export)) = self.find(option, name)? else { return Ok(None) };
        let mut about = info::EXPORT.to_be_bytes().to_vec();
        about.extend(export.device().size().get().to_be_bytes());
        about.extend(self.flags(&export).to_be_bytes());
        self.answer(option, answer::INFO, &about)?;
        let mut sizes = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [1, 4096, LARGEST_PAYLOAD] {
            sizes.extend(size.to_be_bytes());
        }
        self.answer(option, answer::INFO, &sizes)?;
        for (kind, text) in [(info::NAME, name.as_str()), (info::DESCRIPTION, export.description())]
        {
            if wanted.contains(&kind) && !(kind == info::DESCRIPTION && text.is_empty()) {
                let mut bytes = kind.to_be_bytes().to_vec();
                bytes.extend(text.as_bytes());
                self.answer(option, answer::INFO, &bytes)?;
            }
        }
        self.answer(option, answer::ACK, &[])?;
        Ok((option == option::GO).then(|| self.agreement(&name, export)))
    }

    fn find(&self, option: u32, name: &str) -> Result<Option<(String, Export)>, NegotiationError> {
        let found = self.exports.find(name);
        if found.is_none() {
            self.answer(option, answer::UNKNOWN, b"no disk of that name is served")?;
        }
        Ok(found)
    }

    fn list(&self, data: &[u8]) -> Result<(), NegotiationError> {
        if !data.is_empty() {
            return self.answer(option::LIST, answer::INVALID, b"listing takes no data");
        }
        for (name, description) in self.exports.list() {
            let mut bytes = length_of(&name).to_be_bytes().to_vec();
            bytes.extend(name.as_bytes());
            bytes.extend(description.as_bytes());
            self.answer(option::LIST, answer::SERVER, &bytes)?;
        }
        self.answer(option::LIST, answer::ACK, &[])
    }

    fn structured_reply(&mut self, data: &[u8]) -> Result<(), NegotiationError> {
        if !data.is_empty() {
            let sentence = b"structured replies take no data";
            return self.answer(option::STRUCTURED_REPLY, answer::INVALID, sentence);
        }
        self.structured = true;
        self.answer(option::STRUCTURED_REPLY, answer::ACK, &[])
    }

    fn meta_context(&mut self, option: u32, data: &[u8]) -> Result<(), NegotiationError> {
        let setting = option == option::SET_META_CONTEXT;
        if setting {
            // Whatever comes of this, an earlier choice is gone.
            self.allocation_of = None;
        }
        if !self.structured {
            let sentence = b"metadata contexts need structured replies";
            return self.answer(option, answer::INVALID, sentence);
        }
        let Some((name, queries)) = parse_queries(data) else {
            return self.answer(option, answer::INVALID, b"the queries have another length");
        };
        let Some(queries) = queries else {
            return self.answer(option, answer::TOO_BIG, b"more than 256 queries");
        };
        let Some((name, _)) = self.find(option, name)? else { return Ok(()) };
        let found = if setting {
            queries.contains(&ALLOCATION)
        } else {
            queries.is_empty() || queries.iter().any(|query| [ALLOCATION, "base:"].contains(query))
        };
        if found {
            let mut bytes = if setting { ALLOCATION_ID } else { 0 }.to_be_bytes().to_vec();
            bytes.extend(ALLOCATION.as_bytes());
            self.answer(option, answer::META_CONTEXT, &bytes)?;
            if setting {
                self.allocation_of = Some(name);
            }
        }
        self.answer(option, answer::ACK, &[])
    }
}

fn length_of(text: &str) -> u32 {
    u32::try_from(text.len()).unwrap_or(0)
}

/// A name, and the kinds of information that are wanted.
fn parse_go(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.string().filter(|name| name.len() <= LONGEST_STRING)?;
    let count = fields.u16()?;
    let wanted = (0..count).map(|_| fields.u16()).collect::<Option<Vec<u16>>>()?;
    fields.0.is_empty().then_some((name, wanted))
}

/// A name and a row of queries; the row is `None` when it is too long to look at.
fn parse_queries(data: &[u8]) -> Option<(&str, Option<Vec<&str>>)> {
    let mut fields = Fields(data);
    let name = fields.string().filter(|name| name.len() <= LONGEST_STRING)?;
    let count = fields.u32()?;
    if count > MOST_QUERIES {
        return Some((name, None));
    }
    let queries = (0..count).map(|_| fields.string()).collect::<Option<Vec<&str>>>()?;
    fields.0.is_empty().then_some((name, Some(queries)))
}
