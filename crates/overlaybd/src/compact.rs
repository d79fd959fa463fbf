//! Writing a sealed layer: only what shows, in the order of the disk, then the index.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use kiln_block::DeviceError;

use crate::lsmt::{
    ENTRY_SIZE, HEADER_SIZE, Header, INVALID_ENTRY, Kind, SECTOR, Segment, TAG_LEN, compress,
};
use crate::stack::to_index;
use crate::zfile::{Packing, ZFileWriter};
use crate::{Input, LayerError, Uuid, tar};

/// How a layer is to be sealed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sealing {
    /// Which layer it becomes.
    pub uuid: Uuid,
    /// Which layer it is to lie on.
    pub parent: Uuid,
    /// Up to 256 bytes for whoever made it.
    pub user_tag: Vec<u8>,
    /// How it is compressed, if it is.
    pub packing: Option<Packing>,
    /// Whether it is wrapped in a tar, as registries want it.
    pub in_tar: bool,
}

/// A layer that was written.
#[derive(Debug)]
pub struct Written<W> {
    /// The output, positioned behind the layer.
    pub out: W,
    /// How many bytes it took.
    pub len: u64,
    /// Entries of its index without padding.
    pub segments: usize,
}

/// What is to be written.
pub(crate) struct Content<'a> {
    pub(crate) virtual_size: u64,
    pub(crate) segments: Vec<Segment>,
    pub(crate) source: &'a dyn Fn(u16) -> Option<&'a Input>,
}

/// Sectors that are copied in one step. Others make an entry of each and join them afterwards, which
/// decides where long runs are cut.
const STEP: u64 = 64;
/// Entries that an index is padded to a multiple of.
const PAGE_ENTRIES: usize = 256;

/// Reading and writing fail in different places, and a caller wants to know in which.
pub(crate) enum Failure {
    Read(LayerError),
    Write(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Write(error)
    }
}

/// Writes a layer at the output's current position.
pub(crate) fn write<W: Write + Seek>(
    out: W,
    content: &Content<'_>,
    sealing: &Sealing,
) -> Result<Written<W>, LayerError> {
    write_with(out, content.virtual_size, sealing, |body| copy(content, body))
}

/// Writes a layer whose body `fill` writes.
pub(crate) fn write_with<W: Write + Seek>(
    out: W,
    virtual_size: u64,
    sealing: &Sealing,
    fill: impl FnOnce(&mut Body<'_>) -> Result<(), Failure>,
) -> Result<Written<W>, LayerError> {
    write_wrapped(out, virtual_size, sealing, fill).map_err(|failure| match failure {
        Failure::Read(error) => error,
        Failure::Write(source) => {
            LayerError::Io { act: "write", name: "the new layer".to_owned(), source }
        }
    })
}

fn write_wrapped<W: Write + Seek>(
    mut out: W,
    virtual_size: u64,
    sealing: &Sealing,
    fill: impl FnOnce(&mut Body<'_>) -> Result<(), Failure>,
) -> Result<Written<W>, Failure> {
    let start = out.stream_position()?;
    if sealing.in_tar {
        // Not a tar until the payload is complete and its size known.
        out.write_all(&[0; 1536])?;
    }
    let (mut out, payload, segments) = match sealing.packing {
        Some(packing) => {
            let mut packed = ZFileWriter::new(out, packing)?;
            let (_, segments) = write_plain(&mut packed, virtual_size, sealing, fill)?;
            let (out, len) = packed.finish()?;
            (out, len, segments)
        }
        None => {
            // Large pieces go past the buffer.
            let mut buffered = BufWriter::with_capacity(128 << 10, &mut out);
            let (len, segments) = write_plain(&mut buffered, virtual_size, sealing, fill)?;
            buffered.flush()?;
            drop(buffered);
            (out, len, segments)
        }
    };
    if sealing.in_tar {
        tar::write_end(&mut out, payload)?;
        let end = out.stream_position()?;
        out.seek(SeekFrom::Start(start))?;
        out.write_all(&tar::header(payload))?;
        out.seek(SeekFrom::Start(end))?;
    }
    let len = out.stream_position()? - start;
    Ok(Written { out, len, segments })
}

/// The data of a layer that is being written, and what its index will say of it.
pub(crate) struct Body<'o> {
    out: &'o mut dyn Write,
    entries: Vec<Segment>,
    /// Behind the last sector that an entry says is stored.
    end: u64,
}

impl Body<'_> {
    /// Writes data. The entries that say what it is are added afterwards, in the same order.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Says what the data is that was written, or that there is none.
    pub(crate) fn entry(&mut self, segment: &Segment) {
        if segment.zeroed {
            self.entries.push(Segment { stored_at: self.end, ..*segment });
            return;
        }
        for step in steps(*segment) {
            self.entries.push(Segment { stored_at: self.end, ..step });
            self.end += u64::from(step.len);
        }
    }
}

/// A segment in the steps in which it is copied.
fn steps(segment: Segment) -> impl Iterator<Item = Segment> {
    let mut start = segment.start;
    std::iter::from_fn(move || {
        let end = segment.end().min(start + STEP);
        let step = (start < end).then(|| segment.clip(start, end));
        start = end;
        step
    })
}

/// Copies what is to be written.
fn copy(content: &Content<'_>, body: &mut Body<'_>) -> Result<(), Failure> {
    body.entries.reserve(content.segments.len());
    let mut buffer = vec![0; to_index(STEP * SECTOR)];
    for segment in &content.segments {
        body.entry(segment);
        if segment.zeroed {
            continue;
        }
        let Some(input) = (content.source)(segment.source) else {
            let missing = format!("there is no source {}", segment.source);
            return Err(Failure::Read(LayerError::Refused(missing)));
        };
        for step in steps(*segment) {
            let bytes = &mut buffer[..to_index(u64::from(step.len) * SECTOR)];
            read(input, step.stored_at * SECTOR, bytes).map_err(Failure::Read)?;
            body.data(bytes)?;
        }
    }
    Ok(())
}

/// Header, data, index, trailer; returns how many bytes these are, and the entries.
fn write_plain(
    out: &mut impl Write,
    virtual_size: u64,
    sealing: &Sealing,
    fill: impl FnOnce(&mut Body<'_>) -> Result<(), Failure>,
) -> Result<(u64, usize), Failure> {
    let header = |kind| -> Result<Header, Failure> {
        let header = Header::new(kind, virtual_size, sealing.uuid, sealing.parent);
        Ok(Header { user_tag: tag(&sealing.user_tag).map_err(Failure::Read)?, ..header })
    };
    out.write_all(&header(Kind::SealedHeader)?.encode())?;
    let mut body = Body { out, entries: Vec::new(), end: HEADER_SIZE / SECTOR };
    fill(&mut body)?;
    let Body { entries, end, .. } = body;
    let entries = compress(entries.into_iter());
    let padding = entries.len().next_multiple_of(PAGE_ENTRIES) - entries.len();
    for entry in &entries {
        out.write_all(&entry.encode())?;
    }
    for _ in 0..padding {
        out.write_all(&INVALID_ENTRY)?;
    }
    let index_size = (entries.len() + padding) as u64;
    let index_offset = end * SECTOR;
    let trailer = Header { index_offset, index_size, ..header(Kind::Trailer)? };
    out.write_all(&trailer.encode())?;
    Ok((index_offset + index_size * ENTRY_SIZE + HEADER_SIZE, entries.len()))
}

/// Reads what is to be copied; damage in it must not end up in a layer that looks sound.
fn read(input: &Input, at: u64, buffer: &mut [u8]) -> Result<(), LayerError> {
    input.read_at(at, buffer).map_err(|source: DeviceError| LayerError::Device {
        name: input.name().to_owned(),
        at: input.position(at),
        source,
    })
}

/// A user's tag as it is stored.
pub(crate) fn tag(tag: &[u8]) -> Result<[u8; TAG_LEN], LayerError> {
    let mut stored = [0; TAG_LEN];
    match stored.get_mut(..tag.len()) {
        Some(room) => room.copy_from_slice(tag),
        None => {
            let len = tag.len();
            let rule = format!("a user tag of {len} bytes is longer than {TAG_LEN}");
            return Err(LayerError::Refused(rule));
        }
    }
    Ok(stored)
}
