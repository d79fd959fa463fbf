//! Traces as other tools keep them: which bytes of which layer were read. In a registry such a trace is a layer of its
//! own on top of the image, a tar with the one file `trace`.
//!
//! | offset | size | field    | meaning                                                             |
//! |-------:|-----:|----------|---------------------------------------------------------------------|
//! |      0 |    4 | magic    | `20 18 ef c2`                                                       |
//! |      8 |    8 | size     | bytes of records behind this header: nothing else may be there      |
//! |     16 |    4 | checksum | CRC of the records as ZFile counts it, seed 0                       |
//!
//! Then records:
//!
//! | offset | size | field  | meaning                                                               |
//! |-------:|-----:|--------|-----------------------------------------------------------------------|
//! |      0 |    1 | what   | `R`, it was read; records of anything else are passed over            |
//! |      4 |    4 | layer  | which, counted from the lowest                                        |
//! |      8 |    8 | count  | bytes; written at most 1 MiB, for others read no more at once         |
//! |     16 |    8 | offset | in what the layer unpacks to, its header counted                      |
//!
//! Numbers are little-endian, and what lies between the fields may be anything.

use std::sync::Arc;

use kiln_block::{BlockSource as _, MemoryDevice};

use super::{LARGEST, MOST_RANGES, Seen, Trace};
use crate::input::{u32_at, u64_at};
use crate::lsmt::{REMOTE, SECTOR, Segment};
use crate::stack::{pieces, to_index};
use crate::{Input, LayerError, Stack, tar};

const MAGIC: [u8; 4] = [0x20, 0x18, 0xef, 0xc2];
/// Bytes in the header, and in a record.
const UNIT: usize = 24;
/// The largest read that is written into a record.
const LARGEST_READ: u64 = 1 << 20;

/// A read of a layer.
struct Read {
    layer: usize,
    at: u64,
    len: u64,
}

impl Trace {
    /// Whether bytes say that they are a trace by layer. Others take what does not for a list of files.
    pub fn is_of_layers(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// Reads a trace by layer, of the layers of that stack. What it names that does not show is left out, and so are
    /// layers that the stack does not have.
    pub fn of_layers(bytes: &[u8], name: &str, stack: &Stack) -> Result<Trace, LayerError> {
        let reads = parse(bytes).map_err(|(at, rule)| LayerError::Damaged {
            name: name.to_owned(),
            at,
            rule,
        })?;
        let mut by_layer: Vec<Vec<Segment>> = vec![Vec::new(); stack.layers().len()];
        for segment in stack.segments().iter().filter(|s| !s.zeroed && s.source < REMOTE) {
            let from_top = usize::from(segment.source);
            let number = stack.layers().len().checked_sub(from_top + 1);
            if let Some(segments) = number.and_then(|number| by_layer.get_mut(number)) {
                segments.push(*segment);
            }
        }
        for segments in &mut by_layer {
            segments.sort_by_key(|segment| segment.stored_at);
        }
        let mut seen = Seen::default();
        // Bounds the work for records that all name the same.
        let mut left = MOST_RANGES;
        for read in reads {
            let Some(segments) = by_layer.get(read.layer) else { continue };
            let (from, to) = (read.at / SECTOR, read.at.saturating_add(read.len).div_ceil(SECTOR));
            let first = segments.partition_point(|segment| segment.stored_end() <= from);
            for segment in segments[first..].iter().take_while(|segment| segment.stored_at < to) {
                if left == 0 {
                    return Ok(seen.trace());
                }
                left -= 1;
                let skipped = from.saturating_sub(segment.stored_at);
                let end = segment.stored_end().min(to) - segment.stored_at;
                let at = (segment.start + skipped).checked_mul(SECTOR);
                let len = (end - skipped) * SECTOR;
                let size = stack.size().get();
                if let Some(at) = at.filter(|at| at.checked_add(len).is_some_and(|end| end <= size))
                {
                    seen.note(at, len);
                }
            }
        }
        Ok(seen.trace())
    }

    /// The trace by layer, of the layers of that stack.
    pub fn to_layers(&self, stack: &Stack) -> Vec<u8> {
        let size = stack.size().get();
        let mut records = Vec::new();
        for (at, len) in &self.0 {
            let len = (*len).min(size.saturating_sub(*at));
            let segments = stack.segments_from(at / SECTOR).iter().copied();
            for piece in pieces(*at, len, segments) {
                let Some(segment) = piece.segment.filter(|s| !s.zeroed && s.source < REMOTE) else {
                    continue;
                };
                let layer = stack.layers().len() - 1 - usize::from(segment.source);
                let layer = u32::try_from(layer).unwrap_or(u32::MAX);
                let stored = segment.stored_at * SECTOR + (piece.at - segment.start * SECTOR);
                let mut done = 0;
                while done < piece.len && records.len() < LARGEST - 2 * UNIT {
                    let take = (piece.len - done).min(LARGEST_READ);
                    records.extend(record(layer, stored + done, take));
                    done += take;
                }
            }
        }
        let mut bytes = vec![0; UNIT];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&(records.len() as u64).to_le_bytes());
        bytes[16..20].copy_from_slice(&crc(&records).to_le_bytes());
        bytes.extend(records);
        bytes
    }

    /// The tar that carries a trace by layer in a registry.
    pub fn in_tar(bytes: &[u8]) -> Vec<u8> {
        tar::around_file("trace", bytes)
    }

    /// The trace, or whatever it is, in such a tar; what is no tar is taken as it is.
    pub fn from_tar(bytes: &[u8], name: &str) -> Result<Vec<u8>, LayerError> {
        let input = Input::new(name, Arc::new(MemoryDevice::holding(bytes)));
        let inside = tar::unwrap(&input)?;
        let mut bytes = vec![0; to_index(inside.len())];
        inside.read(0, &mut bytes, "the trace")?;
        Ok(bytes)
    }
}

fn crc(records: &[u8]) -> u32 {
    !crc32c::crc32c_append(!0, records)
}

fn record(layer: u32, at: u64, len: u64) -> [u8; UNIT] {
    let mut bytes = [0; UNIT];
    bytes[0] = b'R';
    bytes[4..8].copy_from_slice(&layer.to_le_bytes());
    bytes[8..16].copy_from_slice(&len.to_le_bytes());
    bytes[16..24].copy_from_slice(&at.to_le_bytes());
    bytes
}

/// The reads in a trace by layer, or which rule is broken at which byte.
fn parse(bytes: &[u8]) -> Result<Vec<Read>, (u64, String)> {
    if bytes.len() > LARGEST {
        return Err((0, format!("a trace of more than {LARGEST} bytes")));
    }
    if !Trace::is_of_layers(bytes) {
        return Err((0, "there is no magic of a trace".to_owned()));
    }
    let Some(records) = bytes.get(UNIT..) else {
        return Err((4, "the header of the trace is cut".to_owned()));
    };
    let size = u64_at(bytes, 8);
    if size != records.len() as u64 {
        let found = records.len();
        return Err((8, format!("there are {found} bytes of records instead of {size}")));
    }
    let records = records.chunks_exact(UNIT);
    let whole = &bytes[UNIT..bytes.len() - records.remainder().len()];
    let (stored, found) = (u32_at(bytes, 16), crc(whole));
    if stored != found {
        return Err((16, format!("the CRC of the records is {stored:08x}, not {found:08x}")));
    }
    let reads = records.filter(|record| record[0] == b'R').map(|record| Read {
        layer: usize::try_from(u32_at(record, 4)).unwrap_or(usize::MAX),
        at: u64_at(record, 16),
        len: u64_at(record, 8),
    });
    Ok(reads.collect())
}
