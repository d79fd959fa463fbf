//! What each command does to a disk, and the bytes of its reply.

use std::error::Error as _;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, Extent, ExtentKind};

use super::buffers::{Buffer, Buffers};
use super::wire::{
    ALLOCATION_ID, CHUNK_LEN, Chunk, Command, DATA_CHUNK_LEN, Errno, HOLE_CHUNK_LEN,
    LARGEST_PAYLOAD, Request, SIMPLE_LEN, STATE_HOLE, STATE_ZERO, error_chunk, flag, put_chunk,
    put_data, put_hole, put_simple,
};

/// From this length on, a read looks for zeros that need not be sent.
const SPARSE_FROM: u32 = 128 << 10;
/// Shorter zeros within a read are sent: a chunk of its own costs more.
const SHORTEST_HOLE: u64 = 32 << 10;
/// How far one question about extents reaches: a device answers with a list in memory.
const STATUS_WINDOW: u64 = 64 << 20;
/// Extents in one reply; a client asks again from where the reply ends.
const MOST_EXTENTS: usize = 2048;

/// A disk and what was agreed about it.
#[derive(Clone, Copy)]
pub(crate) struct Disk<'a> {
    pub(crate) device: &'a dyn BlockDevice,
    pub(crate) read_only: bool,
    pub(crate) structured: bool,
    pub(crate) allocation: bool,
}

/// Why a request failed: a number for programs and a sentence for people.
#[derive(Debug)]
pub(crate) struct Failure {
    errno: Errno,
    sentence: String,
}

impl Failure {
    fn new(errno: Errno, sentence: &str) -> Failure {
        Failure { errno, sentence: sentence.to_owned() }
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Failure {
        let mut sentence = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            sentence = format!("{sentence}: {cause}");
            source = cause.source();
        }
        Failure { errno: Errno::from(&error), sentence }
    }
}

/// What is sent when a request went well.
pub(crate) enum Reply<'a> {
    /// A simple reply that says so.
    Done,
    /// The front of a buffer.
    Buffer(Buffer<'a>, usize),
    /// These bytes.
    Bytes(Vec<u8>),
}

impl Disk<'_> {
    /// Whether a request makes sense for this disk, whatever the disk holds.
    pub(crate) fn check(&self, request: &Request) -> Result<(), Failure> {
        let invalid = |sentence| Err(Failure::new(Errno::Invalid, sentence));
        let (mut known, mut changes) = (flag::FUA, false);
        match request.command {
            Command::Read => {
                known |= flag::DF;
                if request.len > LARGEST_PAYLOAD {
                    return Err(if request.has(flag::DF) {
                        Failure::new(Errno::Overflow, "more than 32 MiB do not fit in one chunk")
                    } else {
                        Failure::new(Errno::Invalid, "a read may have 32 MiB")
                    });
                }
                if request.has(flag::DF) && !self.structured {
                    return invalid("DF needs structured replies");
                }
            }
            Command::Write | Command::Trim => changes = true,
            Command::WriteZeroes => {
                changes = true;
                known |= flag::NO_HOLE | flag::FAST_ZERO;
            }
            Command::BlockStatus => {
                known |= flag::REQ_ONE;
                if !self.allocation {
                    return invalid("base:allocation was not negotiated");
                }
                if request.len == 0 {
                    return invalid("nothing was asked about");
                }
            }
            Command::Flush => return self.check_flags(request, known),
            Command::Cache | Command::Disconnect => {}
            Command::Unknown(_) => return invalid("this command is not known"),
        }
        self.check_flags(request, known)?;
        if changes && self.read_only {
            return Err(Failure::new(Errno::NotPermitted, "the disk is read-only"));
        }
        let size = self.device.size().get();
        match request.offset.checked_add(u64::from(request.len)) {
            Some(end) if end <= size => Ok(()),
            _ => {
                // A write past the end finds no space there; anything else makes no sense.
                let errno = match request.command {
                    Command::Write | Command::WriteZeroes => Errno::NoSpace,
                    _ => Errno::Invalid,
                };
                let at = request.offset;
                let sentence = format!(
                    "{} bytes at byte {at} reach past the end of a disk of {size} bytes",
                    request.len
                );
                Err(Failure { errno, sentence })
            }
        }
    }

    fn check_flags(&self, request: &Request, known: u16) -> Result<(), Failure> {
        if request.flags & !known == 0 {
            Ok(())
        } else {
            Err(Failure::new(Errno::Invalid, "the command does not have one of these flags"))
        }
    }

    /// Length of what comes before the data in the reply to a read.
    pub(crate) fn read_head(&self) -> usize {
        if self.structured { DATA_CHUNK_LEN } else { SIMPLE_LEN }
    }

    /// Writes the head of the only chunk of a reply to a read.
    pub(crate) fn put_read_head(&self, target: &mut [u8], request: &Request) {
        if self.structured {
            put_data(target, true, request.cookie, request.offset, request.len);
        } else {
            put_simple(target, None, request.cookie);
        }
    }

    /// The reply that says that a request failed.
    pub(crate) fn failure(&self, request: &Request, failure: &Failure) -> Vec<u8> {
        if self.structured {
            return error_chunk(failure.errno, request.cookie, &failure.sentence);
        }
        let mut bytes = vec![0; SIMPLE_LEN];
        put_simple(&mut bytes, Some(failure.errno), request.cookie);
        bytes
    }

    /// Reads, in one chunk or, where there are large holes, in several.
    pub(crate) fn read<'b>(
        &self,
        request: &Request,
        buffers: &'b Buffers,
    ) -> Result<Reply<'b>, Failure> {
        let (at, len) = (ByteOffset::new(request.offset), ByteLen::new(request.len.into()));
        if request.len == 0 {
            return Ok(self.empty_read(request));
        }
        if self.structured && request.len >= SPARSE_FROM && !request.has(flag::DF) {
            let stretches = stretches(&self.device.extents(at, len)?);
            if stretches.len() > 1 || stretches.first().is_some_and(|first| first.is_hole) {
                return self.sparse_read(request, &stretches, buffers);
            }
        }
        let head = self.read_head();
        let len = usize::try_from(request.len).unwrap_or(0);
        let mut buffer = buffers.take(head + len);
        self.device.read_at(at, &mut buffer[head..head + len])?;
        self.put_read_head(&mut buffer, request);
        Ok(Reply::Buffer(buffer, head + len))
    }

    fn empty_read(&self, request: &Request) -> Reply<'static> {
        if !self.structured {
            return Reply::Done;
        }
        let mut bytes = vec![0; CHUNK_LEN];
        put_chunk(&mut bytes, Chunk::Nothing, true, request.cookie, 0);
        Reply::Bytes(bytes)
    }

    fn sparse_read<'b>(
        &self,
        request: &Request,
        stretches: &[Stretch],
        buffers: &'b Buffers,
    ) -> Result<Reply<'b>, Failure> {
        let size = |stretch: &Stretch| match stretch.is_hole {
            true => HOLE_CHUNK_LEN,
            false => DATA_CHUNK_LEN + usize::try_from(stretch.len).unwrap_or(0),
        };
        let total = stretches.iter().map(size).sum();
        let mut buffer = buffers.take(total);
        let (mut done, mut at) = (0, request.offset);
        for (index, stretch) in stretches.iter().enumerate() {
            let last = index + 1 == stretches.len();
            let target = &mut buffer[done..done + size(stretch)];
            if stretch.is_hole {
                put_hole(target, last, request.cookie, at, stretch.len);
            } else {
                self.device.read_at(ByteOffset::new(at), &mut target[DATA_CHUNK_LEN..])?;
                put_data(target, last, request.cookie, at, stretch.len);
            }
            done += size(stretch);
            at += u64::from(stretch.len);
        }
        Ok(Reply::Buffer(buffer, total))
    }

    /// Everything but reads and writes.
    pub(crate) fn carry_out<'b>(
        &self,
        request: &Request,
        buffers: &'b Buffers,
    ) -> Result<Reply<'b>, Failure> {
        let (at, len) = (ByteOffset::new(request.offset), ByteLen::new(request.len.into()));
        match request.command {
            Command::Flush => {
                self.device.flush()?;
                Ok(Reply::Done)
            }
            Command::Trim => {
                self.device.discard(at, len)?;
                self.make_durable(request)
            }
            Command::WriteZeroes => {
                let keep_allocated = request.has(flag::NO_HOLE);
                // A client that wants it fast or not at all does better by itself: nobody knows here
                // whether reserving space means writing it.
                if request.has(flag::FAST_ZERO) && keep_allocated {
                    let sentence = "zeros that keep their space may take as long as a write";
                    return Err(Failure::new(Errno::NotSupported, sentence));
                }
                self.device.write_zeroes(at, len, keep_allocated)?;
                self.make_durable(request)
            }
            Command::Cache => self.read_ahead(at.get(), len.get(), buffers),
            Command::BlockStatus => self.block_status(request),
            _ => Err(Failure::new(Errno::Invalid, "this command is not known")),
        }
    }

    /// The end of a command that may ask to be durable before it is answered.
    pub(crate) fn make_durable(&self, request: &Request) -> Result<Reply<'static>, Failure> {
        if request.has(flag::FUA) {
            self.device.flush()?;
        }
        Ok(Reply::Done)
    }

    /// Reads and forgets, so that whatever lies below has it at hand.
    fn read_ahead(
        &self,
        mut at: u64,
        len: u64,
        buffers: &Buffers,
    ) -> Result<Reply<'static>, Failure> {
        // A client that asks for more than a read may have only hopes.
        let end = at + len.min(LARGEST_PAYLOAD.into());
        let mut scratch = buffers.take(256 << 10);
        while at < end {
            let take = usize::try_from(end - at).unwrap_or(usize::MAX).min(scratch.len());
            self.device.read_at(ByteOffset::new(at), &mut scratch[..take])?;
            at += take as u64;
        }
        Ok(Reply::Done)
    }

    fn block_status(&self, request: &Request) -> Result<Reply<'static>, Failure> {
        let most = if request.has(flag::REQ_ONE) { 1 } else { MOST_EXTENTS };
        let mut found: Vec<(u32, u32)> = Vec::new();
        let (mut at, end) = (request.offset, request.offset + u64::from(request.len));
        'windows: while at < end {
            let window = ByteLen::new((end - at).min(STATUS_WINDOW));
            for extent in self.device.extents(ByteOffset::new(at), window)? {
                let state = match extent.kind {
                    ExtentKind::Data => 0,
                    ExtentKind::Zero => STATE_ZERO,
                    ExtentKind::Hole => STATE_HOLE | STATE_ZERO,
                };
                // All of them lie within the request, whose length is 32 bits wide.
                let len = u32::try_from(extent.len.get()).unwrap_or(0);
                let is_full = found.len() == most;
                match found.last_mut() {
                    Some((total, last)) if *last == state => *total += len,
                    _ if is_full => break 'windows,
                    _ => found.push((len, state)),
                }
            }
            at += window.get();
        }
        let payload = u32::try_from(4 + found.len() * 8).unwrap_or(0);
        let mut bytes = vec![0; CHUNK_LEN];
        put_chunk(&mut bytes, Chunk::BlockStatus, true, request.cookie, payload);
        bytes.extend(ALLOCATION_ID.to_be_bytes());
        for (len, state) in found {
            bytes.extend(len.to_be_bytes());
            bytes.extend(state.to_be_bytes());
        }
        Ok(Reply::Bytes(bytes))
    }
}

/// A part of a read that is sent as one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    len: u32,
    is_hole: bool,
}

/// Extents as few stretches: what lies side by side is one, and short holes are data.
fn stretches(extents: &[Extent]) -> Vec<Stretch> {
    let zeros = |extent: &Extent| extent.kind != ExtentKind::Data;
    let mut joined: Vec<(u64, bool)> = Vec::new();
    for extent in extents {
        match joined.last_mut() {
            Some((len, is_hole)) if *is_hole == zeros(extent) => *len += extent.len.get(),
            _ => joined.push((extent.len.get(), zeros(extent))),
        }
    }
    let mut stretches: Vec<Stretch> = Vec::new();
    for (len, is_hole) in joined {
        let is_hole = is_hole && len >= SHORTEST_HOLE;
        // A read has 32 MiB at most.
        let len = u32::try_from(len).unwrap_or(0);
        match stretches.last_mut() {
            Some(last) if last.is_hole == is_hole => last.len += len,
            _ => stretches.push(Stretch { len, is_hole }),
        }
    }
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_holes_are_data_and_neighbours_are_one_stretch() {
        let kinds = [
            (64 << 10, ExtentKind::Hole),
            (4096, ExtentKind::Data),
            (4096, ExtentKind::Hole),
            (4096, ExtentKind::Data),
            (32 << 10, ExtentKind::Zero),
            (32 << 10, ExtentKind::Hole),
        ];
        let mut at = 0;
        let extents = kinds.map(|(len, kind)| {
            let extent = Extent { at: ByteOffset::new(at), len: ByteLen::new(len), kind };
            at += len;
            extent
        });
        let stretch = |len, is_hole| Stretch { len, is_hole };
        assert_eq!(
            stretches(&extents),
            [stretch(64 << 10, true), stretch(12288, false), stretch(64 << 10, true)]
        );
    }
}
