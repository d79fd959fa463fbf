//! Which parts of an image are read when it is used, so that they can be fetched before somebody waits for them.
//!
//! A trace is text: a line `OFFSET LENGTH` in bytes for each read, in the order of their first time; lines that begin
//! with `#` say something to people. It belongs to an image, but a wrong one only fetches what nobody needs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use kiln_block::{BlockDevice, BlockSource, ByteLen, ByteOffset, DeviceError, Extent};

use crate::LayerError;

/// Reads are noted in blocks of this size.
const BLOCK: u64 = 4096;
/// More is not noted: what is read behind so much is not what an image starts with.
const MOST_RANGES: usize = 1 << 18;
/// The longest text that is parsed.
const MOST_TEXT: usize = 16 << 20;
/// Prefetched at once.
const STEP: u64 = 256 << 10;

/// What was read, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace(Vec<(u64, u64)>);

impl Trace {
    /// Reads the text of a trace; `name` is for errors.
    pub fn parse(text: &str, name: &str) -> Result<Trace, LayerError> {
        let refused = |what: String| LayerError::Config { name: name.to_owned(), what };
        if text.len() > MOST_TEXT {
            return Err(refused(format!("a trace of more than {MOST_TEXT} bytes")));
        }
        let mut ranges = Vec::new();
        for (line, number) in text.lines().zip(1..) {
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            let range = line.split_once(' ').and_then(|(at, len)| {
                let (at, len): (u64, u64) = (at.parse().ok()?, len.trim().parse().ok()?);
                at.checked_add(len).map(|_| (at, len))
            });
            let Some(range) = range else {
                return Err(refused(format!("line {number} is not an offset and a length")));
            };
            if ranges.len() == MOST_RANGES {
                return Err(refused(format!("more than {MOST_RANGES} reads")));
            }
            ranges.push(range);
        }
        Ok(Trace(ranges))
    }

    /// As text.
    pub fn to_text(&self) -> String {
        let mut text = String::from("# what was read of an image: offset and length in bytes\n");
        for (at, len) in &self.0 {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{at} {len}");
        }
        text
    }

    /// Reads everything that the trace names, so that caches have it; `threads` at a time. What fails is left to who
    /// wants it. Returns how many bytes were read.
    pub fn prefetch(&self, disk: &dyn BlockDevice, threads: usize) -> u64 {
        let size = disk.size().get();
        let mut pieces = Vec::new();
        for (at, len) in &self.0 {
            let end = at.saturating_add(*len).min(size);
            let mut at = *at;
            while at < end {
                let take = STEP.min(end - at);
                pieces.push((at, take));
                at += take;
            }
        }
        let next = AtomicUsize::new(0);
        let work = || {
            let mut buffer = Vec::new();
            let mut done = 0;
            while let Some((at, len)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                buffer.resize(usize::try_from(*len).unwrap_or(0), 0);
                if disk.read_at(ByteOffset::new(*at), &mut buffer).is_ok() {
                    done += len;
                }
            }
            done
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads.max(1)).map(|_| scope.spawn(work)).collect();
            let mine: u64 = work();
            others.into_iter().fold(mine, |sum, other| sum + other.join().unwrap_or(0))
        })
    }
}

/// A disk that notes what is read of it.
#[derive(Debug)]
pub struct Traced<S> {
    disk: S,
    seen: Mutex<Seen>,
}

/// Ranges that were read, free of overlaps, and the order in which they were.
#[derive(Debug, Default)]
struct Seen {
    covered: BTreeMap<u64, u64>,
    order: Vec<(u64, u64)>,
}

impl<S: BlockSource> Traced<S> {
    /// Notes what is read of that from now on.
    pub fn new(disk: S) -> Traced<S> {
        Traced { disk, seen: Mutex::default() }
    }

    /// What was read so far.
    pub fn trace(&self) -> Trace {
        Trace(self.seen.lock().unwrap_or_else(PoisonError::into_inner).order.clone())
    }

    /// The disk.
    pub fn disk(&self) -> &S {
        &self.disk
    }
}

impl Seen {
    /// Notes those blocks of a range that were not read before.
    fn note(&mut self, at: u64, len: u64) {
        let (mut from, end) = (at - at % BLOCK, (at + len).next_multiple_of(BLOCK));
        while from < end && self.order.len() < MOST_RANGES {
            let before = self.covered.range(..=from).next_back().map(|(_, end)| *end);
            if let Some(covered) = before.filter(|covered| *covered > from) {
                from = covered;
                continue;
            }
            let next = self.covered.range(from..end).next().map_or(end, |(start, _)| *start);
            match self.order.last_mut() {
                Some((start, len)) if *start + *len == from => {
                    *len += next - from;
                    let start = *start;
                    self.covered.insert(start, next);
                }
                _ => {
                    self.order.push((from, next - from));
                    self.covered.insert(from, next);
                }
            }
            from = next;
        }
    }
}

impl<S: BlockSource> BlockSource for Traced<S> {
    fn size(&self) -> ByteLen {
        self.disk.size()
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).note(at, buffer.len() as u64);
        self.disk.read(at, buffer)
    }

    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        self.disk.extents(at, len)
    }

    fn distrust(&self, at: ByteOffset, len: ByteLen) -> bool {
        self.disk.distrust(at, len)
    }
}
