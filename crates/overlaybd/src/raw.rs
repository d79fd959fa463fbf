//! A layer of everything that a plain disk holds, or of what tells it from the disk below.

use std::io::{Seek, Write};
use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, Extent, ExtentKind, is_zero};

use crate::compact::{self, Content, Failure, Sealing, Written};
use crate::lsmt::{LONGEST, SECTOR, Segment};
use crate::stack::to_index;
use crate::{Input, LayerError};

/// Zeros are left out in blocks of this size.
const BLOCK: usize = 4096;
/// What is read at once: as much as a processor's own cache holds.
const STEP: u64 = 256 << 10;

/// Writes a sealed layer that reads like the disk. Holes and blocks of zeros are left out of it.
pub fn pack<W: Write + Seek>(
    name: &str,
    disk: &Arc<dyn BlockDevice>,
    out: W,
    sealing: &Sealing,
) -> Result<Written<W>, LayerError> {
    let size = usable_size(name, &**disk)?;
    let failed = |at, error| Failure::Read(failed_at(name)(at, error));
    let all = disk.extents(ByteOffset::ZERO, ByteLen::new(size));
    let all = all.map_err(|error| failed_at(name)(0, error))?;
    compact::write_with(out, size, sealing, |body| {
        let mut segments: Vec<Segment> = Vec::new();
        let mut buffer = vec![0; to_index(STEP)];
        let mut done = 0;
        for extent in all.iter().filter(|extent| extent.kind == ExtentKind::Data) {
            let start = extent.at.get();
            let end = (start + extent.len.get()).next_multiple_of(SECTOR);
            let mut at = (start - start % SECTOR).max(done);
            while at < end {
                let bytes = &mut buffer[..to_index(STEP.min(end - at))];
                disk.read_at(ByteOffset::new(at), bytes).map_err(|error| failed(at, error))?;
                // What lies between zeros is written in one piece.
                let mut from = 0;
                let mut within = 0;
                for block in bytes.chunks(BLOCK) {
                    let behind = within + block.len();
                    if is_zero(block) {
                        body.data(&bytes[from..within])?;
                        from = behind;
                    } else {
                        note(&mut segments, at, block.len() as u64, false);
                    }
                    within = behind;
                    at += block.len() as u64;
                }
                body.data(&bytes[from..])?;
            }
            done = done.max(end);
        }
        segments.iter().for_each(|segment| body.entry(segment));
        Ok(())
    })
}

/// Writes a sealed layer that makes `old`, if it lies below, read like `new`. Only `changed` is looked at: ranges of the
/// new disk, sorted and apart, outside of which the two are the same. What differs is told sector by sector, so a
/// small change makes a small layer; where the new disk has zeros, nothing is stored.
pub fn pack_changes<W: Write + Seek>(
    old: (&str, &dyn BlockDevice),
    new: (&str, &Arc<dyn BlockDevice>),
    changed: &[Extent],
    out: W,
    sealing: &Sealing,
) -> Result<Written<W>, LayerError> {
    let ((old_name, old), (name, disk)) = (old, new);
    let size = usable_size(name, &**disk)?;
    let mut segments: Vec<Segment> = Vec::new();
    let (mut before, mut after) = (vec![0; to_index(STEP)], vec![0; to_index(STEP)]);
    let mut done = 0;
    for extent in changed {
        let start = extent.at.get();
        let mut at = (start - start % SECTOR).max(done);
        let end = start.saturating_add(extent.len.get()).next_multiple_of(SECTOR).min(size);
        while at < end {
            let take = to_index(STEP.min(end - at));
            let (before, after) = (&mut before[..take], &mut after[..take]);
            read_or_zeros(old, at, before).map_err(|error| failed_at(old_name)(at, error))?;
            read_or_zeros(&**disk, at, after).map_err(|error| failed_at(name)(at, error))?;
            let sectors = before.chunks(to_index(SECTOR)).zip(after.chunks(to_index(SECTOR)));
            for (before, after) in sectors {
                if before != after {
                    note(&mut segments, at, SECTOR, is_zero(after));
                }
                at += SECTOR;
            }
        }
        done = done.max(end);
    }
    let input = Input::new(name, Arc::clone(disk));
    let content = Content { virtual_size: size, segments, source: &|_| Some(&input) };
    compact::write(out, &content, sealing)
}

/// What lies behind the end of a disk is zeros to the layer above.
fn read_or_zeros(disk: &dyn BlockDevice, at: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
    let there = to_index(disk.size().get().saturating_sub(at)).min(buffer.len());
    let (head, tail) = buffer.split_at_mut(there);
    tail.fill(0);
    if head.is_empty() { Ok(()) } else { disk.read_at(ByteOffset::new(at), head) }
}

fn failed_at(name: &str) -> impl Fn(u64, DeviceError) -> LayerError {
    move |at, source| LayerError::Device { name: name.to_owned(), at, source }
}

fn usable_size(name: &str, disk: &dyn BlockDevice) -> Result<u64, LayerError> {
    let size = disk.size().get();
    if size == 0 || !size.is_multiple_of(SECTOR) || size >= 1 << 59 {
        return Err(LayerError::Refused(format!(
            "{name} has {size} bytes, and a layer is of a disk of whole sectors of 512 below 512 PiB"
        )));
    }
    Ok(size)
}

/// Adds a range of the disk, which is stored where it lies unless it is zeros.
fn note(segments: &mut Vec<Segment>, at: u64, len: u64, zeroed: bool) {
    let (start, len) = (at / SECTOR, u32::try_from(len / SECTOR).unwrap_or(0));
    match segments.last_mut() {
        Some(last) if last.end() == start && last.zeroed == zeroed && last.len + len <= LONGEST => {
            last.len += len;
        }
        _ => segments.push(Segment { start, stored_at: start, len, source: 0, zeroed }),
    }
}
