//! Layers on top of each other, read as one disk.

use std::fmt;
use std::io::{Seek, Write};

use kiln_block::{BlockSource, ByteLen, ByteOffset, DeviceError, Extent, ExtentKind, Extents};

use crate::compact::{self, Content, Sealing, Written};
use crate::lsmt::{Layer, Lookup, REMOTE, SECTOR, Segment, overlay_all};
use crate::{Input, LayerError, Uuid};

/// The most layers that can lie on each other.
pub const MOST_LAYERS: usize = 255;

/// Sealed layers on top of each other. What no layer holds reads as zeros.
#[derive(Debug)]
pub struct Stack {
    /// The lowest first.
    layers: Vec<Layer>,
    size: ByteLen,
    segments: Vec<Segment>,
    lookup: Lookup,
    /// Where each layer's bytes are, and those of its foreign file, the topmost first: close together, for each read asks.
    sources: Box<[(Input, Option<Input>)]>,
}

/// A layer that was made to lie on another one than the one it lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainMismatch {
    /// Which layer, counted from the lowest.
    pub layer: usize,
    /// Its name.
    pub name: String,
    /// The layer it was made to lie on.
    pub parent: Uuid,
    /// The layer it lies on.
    pub below: Uuid,
}

impl fmt::Display for ChainMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ChainMismatch { layer, name, parent, below } = self;
        write!(f, "layer {layer} ({name}) belongs on {parent} and lies on {below}")
    }
}

impl Stack {
    /// Puts layers on each other, the lowest first.
    pub fn new(layers: Vec<Layer>) -> Result<Stack, LayerError> {
        if layers.is_empty() || layers.len() > MOST_LAYERS {
            let count = layers.len();
            return Err(LayerError::Refused(format!(
                "a stack has 1 to {MOST_LAYERS} layers, not {count}; merge some of them"
            )));
        }
        let size = layers.iter().rev().map(Layer::virtual_size).find(|size| *size > 0);
        let indexes = (0u16..).zip(layers.iter().rev()).map(|(number, layer)| {
            let has_remote = layer.remote().is_some();
            let of_stack = |segment: &Segment| {
                let is_remote = has_remote && segment.source == 1;
                let source = if is_remote { number + REMOTE } else { number };
                Segment { source, ..*segment }
            };
            layer.segments().iter().map(of_stack).collect()
        });
        let segments = overlay_all(indexes.collect());
        let lookup = Lookup::new(&segments);
        let source = |layer: &Layer| (layer.content().clone(), layer.remote().cloned());
        let sources = layers.iter().rev().map(source).collect();
        let size = ByteLen::new(size.unwrap_or(0));
        Ok(Stack { layers, size, segments, lookup, sources })
    }

    /// The layers, the lowest first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// What of which layer shows, sorted.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Layers that lie on the wrong one. Other readers never look, so this is not an error by itself.
    pub fn chain_mismatches(&self) -> Vec<ChainMismatch> {
        let pairs = self.layers.iter().zip(&self.layers[1..]).zip(1..);
        pairs
            .filter_map(|((below, layer), number)| {
                let (parent, below) = (layer.parent()?, below.uuid()?);
                let name = layer.name().to_owned();
                (parent != below).then_some(ChainMismatch { layer: number, name, parent, below })
            })
            .collect()
    }

    /// Refuses a stack with a layer that lies on the wrong one.
    pub fn require_chain(&self) -> Result<(), LayerError> {
        match self.chain_mismatches().first() {
            Some(mismatch) => Err(LayerError::Refused(mismatch.to_string())),
            None => Ok(()),
        }
    }

    /// Writes one layer that reads like the whole stack. A parent of zeros in `sealing` becomes the
    /// lowest layer's.
    pub fn merge<W: Write + Seek>(
        &self,
        out: W,
        sealing: &Sealing,
    ) -> Result<Written<W>, LayerError> {
        if self.segments.iter().any(|segment| segment.source >= REMOTE) {
            return Err(LayerError::Refused(
                "a layer whose content is in another file cannot be merged".to_owned(),
            ));
        }
        let lowest = self.layers.first().and_then(Layer::parent).unwrap_or_default();
        let parent = if sealing.parent.is_nil() { lowest } else { sealing.parent };
        let content = Content {
            virtual_size: self.size.get(),
            segments: self.segments.clone(),
            source: &|number| self.source(number),
        };
        compact::write(out, &content, &Sealing { parent, ..sealing.clone() })
    }

    /// The file that segments with that source are in.
    fn source(&self, number: u16) -> Option<&Input> {
        let (content, remote) = self.sources.get(usize::from(number % REMOTE))?;
        if number < REMOTE { Some(content) } else { remote.as_ref() }
    }

    /// The segments that end behind a sector.
    pub(crate) fn segments_from(&self, sector: u64) -> &[Segment] {
        let rank = self.lookup.rank(sector);
        let within = rank > 0 && self.segments[rank - 1].end() > sector;
        &self.segments[if within { rank - 1 } else { rank }..]
    }

    fn read_stored(&self, segment: &Segment, at: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let Some(input) = self.source(segment.source) else {
            let found = format!("there is no layer {} from the top", segment.source);
            return Err(DeviceError::Damaged { at: ByteOffset::new(at), found });
        };
        let stored = segment.stored_at * SECTOR + (at - segment.start * SECTOR);
        // A foreign file may end within a sector; a layer cannot.
        let there = out.len().min(to_index(input.len().saturating_sub(stored)));
        let (head, tail) = out.split_at_mut(there);
        tail.fill(0);
        if head.is_empty() {
            return Ok(());
        }
        input.read_at(stored, head).map_err(|error| match error {
            DeviceError::Damaged { found, .. } => {
                DeviceError::Damaged { at: ByteOffset::new(at), found }
            }
            other => other,
        })
    }
}

/// A part of a range that lies in one segment, or in none.
pub(crate) struct Piece {
    pub(crate) at: u64,
    pub(crate) len: u64,
    pub(crate) segment: Option<Segment>,
}

/// Cuts a range of bytes at the edges of the segments, which are sorted; holes are pieces too.
pub(crate) fn pieces(
    at: u64,
    len: u64,
    segments: impl Iterator<Item = Segment>,
) -> impl Iterator<Item = Piece> {
    let end = at + len;
    let mut at = at;
    let mut segments = segments.peekable();
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        while segments.peek().is_some_and(|segment| bytes(segment.end()) <= at) {
            segments.next();
        }
        let (until, segment) = match segments.peek() {
            Some(next) if bytes(next.start) <= at => (bytes(next.end()), Some(*next)),
            Some(next) => (bytes(next.start), None),
            None => (end, None),
        };
        let piece = Piece { at, len: until.min(end) - at, segment };
        at += piece.len;
        Some(piece)
    })
}

/// Where a sector starts. A segment can lie where no byte can be addressed; nothing is read there.
fn bytes(sector: u64) -> u64 {
    sector.saturating_mul(SECTOR)
}

/// An index into a buffer, from a number that lies within it.
pub(crate) fn to_index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Pieces as extents, neighbours of one kind joined.
pub(crate) fn extents(pieces: impl Iterator<Item = (u64, u64, ExtentKind)>) -> Vec<Extent> {
    let mut found = Extents::default();
    for (at, len, kind) in pieces {
        found.add(at, len, kind);
    }
    found.into_vec()
}

/// What a piece holds. Zeros take no space in a layer.
pub(crate) fn kind(segment: Option<Segment>) -> ExtentKind {
    match segment {
        Some(segment) if !segment.zeroed => ExtentKind::Data,
        _ => ExtentKind::Hole,
    }
}

impl BlockSource for Stack {
    fn size(&self) -> ByteLen {
        self.size
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let segments = self.segments_from(at / SECTOR);
        // Nearly all reads of a few blocks lie in one segment.
        if let Some(segment) = segments.first()
            && bytes(segment.start) <= at
            && bytes(segment.end()) - at >= out.len() as u64
            && !segment.zeroed
        {
            return self.read_stored(segment, at, out);
        }
        for piece in pieces(at, out.len() as u64, segments.iter().copied()) {
            let range = &mut out[to_index(piece.at - at)..to_index(piece.at - at + piece.len)];
            match piece.segment {
                Some(segment) if !segment.zeroed => self.read_stored(&segment, piece.at, range)?,
                _ => range.fill(0),
            }
        }
        Ok(())
    }

    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        let segments = self.segments_from(at.get() / SECTOR).iter().copied();
        let pieces = pieces(at.get(), len.get(), segments);
        Ok(extents(pieces.map(|piece| (piece.at, piece.len, kind(piece.segment)))))
    }
}
