//! A layer of everything that a plain disk holds.

use std::io::{Seek, Write};
use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, ExtentKind};

use crate::compact::{self, Content, Sealing, Written};
use crate::lsmt::{LONGEST, SECTOR, Segment};
use crate::stack::to_index;
use crate::{Input, LayerError};

/// Zeros are left out in blocks of this size.
const BLOCK: usize = 4096;
/// What is read at once.
const STEP: u64 = 1 << 20;

/// Writes a sealed layer that reads like the disk. Holes and blocks of zeros are left out of it.
pub fn pack<W: Write + Seek>(
    name: &str,
    disk: &Arc<dyn BlockDevice>,
    out: W,
    sealing: &Sealing,
) -> Result<Written<W>, LayerError> {
    let size = disk.size().get();
    if size == 0 || !size.is_multiple_of(SECTOR) || size >= 1 << 59 {
        return Err(LayerError::Refused(format!(
            "{name} has {size} bytes, and a layer is of a disk of whole sectors of 512 below 512 PiB"
        )));
    }
    let failed = |at| move |source| LayerError::Device { name: name.to_owned(), at, source };
    let mut segments: Vec<Segment> = Vec::new();
    let mut buffer = vec![0; to_index(STEP)];
    let mut done = 0;
    for extent in disk.extents(ByteOffset::ZERO, ByteLen::new(size)).map_err(failed(0))? {
        if extent.kind != ExtentKind::Data {
            continue;
        }
        let start = extent.at.get();
        let end = (start + extent.len.get()).next_multiple_of(SECTOR);
        let mut at = (start - start % SECTOR).max(done);
        while at < end {
            let bytes = &mut buffer[..to_index(STEP.min(end - at))];
            disk.read_at(ByteOffset::new(at), bytes).map_err(failed(at))?;
            for block in bytes.chunks(BLOCK) {
                if block.iter().any(|byte| *byte != 0) {
                    note(&mut segments, at, block.len() as u64);
                }
                at += block.len() as u64;
            }
        }
        done = done.max(end);
    }
    let input = Input::new(name, Arc::clone(disk));
    let content = Content { virtual_size: size, segments, source: &|_| Some(&input) };
    compact::write(out, &content, sealing)
}

/// Adds a range of the disk, which is stored where it lies.
fn note(segments: &mut Vec<Segment>, at: u64, len: u64) {
    let (start, len) = (at / SECTOR, u32::try_from(len / SECTOR).unwrap_or(0));
    match segments.last_mut() {
        Some(last) if last.end() == start && last.len + len <= LONGEST => last.len += len,
        _ => segments.push(Segment { start, stored_at: start, len, source: 0, zeroed: false }),
    }
}
