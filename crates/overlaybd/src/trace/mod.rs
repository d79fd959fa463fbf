//! Which parts of an image are read when it is used, so that they can be fetched before somebody waits for them.
//!
//! A trace is text: a line `OFFSET LENGTH` in bytes for each read, in the order of their first time; lines that begin
//! with `#` say something to people. It belongs to an image, but a wrong one only fetches what nobody needs. Other
//! tools keep traces in another form, by layer; [`Trace::of_layers`] and [`Trace::to_layers`] translate.

mod by_layer;
mod traced;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kiln_block::{BlockDevice, ByteOffset};

use crate::LayerError;

pub use traced::Traced;

/// Reads are noted in blocks of this size.
const BLOCK: u64 = 4096;
/// More is not noted: what is read behind so much is not what an image starts with.
const MOST_RANGES: usize = 1 << 18;
/// The longest trace that is parsed.
const LARGEST: usize = 16 << 20;
/// Prefetched at once.
const STEP: u64 = 256 << 10;

/// What was read, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace(Vec<(u64, u64)>);

impl Trace {
    /// The most bytes that a trace, of whichever form, may have.
    pub const LARGEST: usize = LARGEST;

    /// Reads the text of a trace; `name` is for errors.
    pub fn parse(text: &str, name: &str) -> Result<Trace, LayerError> {
        let refused = |what: String| LayerError::Config { name: name.to_owned(), what };
        if text.len() > LARGEST {
            return Err(refused(format!("a trace of more than {LARGEST} bytes")));
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

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes were read.
    pub fn bytes(&self) -> u64 {
        self.0.iter().fold(0, |sum, (_, len)| sum.saturating_add(*len))
    }

    /// Reads everything that the trace names, so that caches have it; `threads` at a time. What fails is left to who
    /// wants it. Returns how many bytes were read; soon after `enough` is set, too.
    pub fn prefetch(&self, disk: &dyn BlockDevice, threads: usize, enough: &AtomicBool) -> u64 {
        let size = disk.size().get();
        let mut pieces = Vec::new();
        for (at, len) in &self.0 {
            let end = at.saturating_add(*len).min(size);
            let mut at = *at;
            while at < end && pieces.len() < MOST_RANGES {
                let take = STEP.min(end - at);
                pieces.push((at, take));
                at += take;
            }
        }
        let next = AtomicUsize::new(0);
        let work = || {
            let mut buffer = Vec::new();
            let mut done = 0;
            while let Some((at, len)) = pieces.get(next.fetch_add(1, Ordering::Relaxed))
                && !enough.load(Ordering::Relaxed)
            {
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

/// Ranges that were read, free of overlaps, and the order in which they were.
#[derive(Debug, Default)]
struct Seen {
    covered: BTreeMap<u64, u64>,
    order: Vec<(u64, u64)>,
}

impl Seen {
    /// Notes those blocks of a range that were not read before.
    fn note(&mut self, at: u64, len: u64) {
        let end = at.saturating_add(len).checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
        let mut from = at - at % BLOCK;
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

    fn trace(&self) -> Trace {
        Trace(self.order.clone())
    }
}
