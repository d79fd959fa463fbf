//! The order in which a blob was read, for the next one who reads it.
//!
//! A text: `kiln trace 1`, then a line `FIRST COUNT` for each run of chunks of 64 KiB.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cache::CHUNK;

const HEADING: &str = "kiln trace 1";
/// The most chunks of one trace: 64 MiB.
const MOST: u64 = 1024;
/// The longest trace that is read.
const LARGEST: u64 = 64 << 10;
/// Only what is read soon tells what will be read soon.
const FOR: Duration = Duration::from_secs(60);

/// Chunks in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first one.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// Notes which chunks are read.
#[derive(Debug)]
pub(super) struct Recorder {
    begun: Instant,
    touched: Mutex<Touched>,
}

#[derive(Debug)]
struct Touched {
    seen: Vec<bool>,
    runs: Vec<Run>,
    count: u64,
    is_done: bool,
}

impl Recorder {
    pub(super) fn new(size: u64) -> Recorder {
        let chunks = usize::try_from(size.div_ceil(CHUNK)).unwrap_or(0);
        let touched =
            Touched { seen: vec![false; chunks], runs: Vec::new(), count: 0, is_done: false };
        Recorder { begun: Instant::now(), touched: Mutex::new(touched) }
    }

    pub(super) fn touched(&self, chunk: u64) {
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        if touched.is_done {
            return;
        }
        let index = usize::try_from(chunk).unwrap_or(usize::MAX);
        if touched.seen.get(index).is_none_or(|seen| *seen) {
            return;
        }
        if touched.count >= MOST || self.begun.elapsed() > FOR {
            touched.is_done = true;
            touched.seen = Vec::new();
            return;
        }
        touched.seen[index] = true;
        touched.count += 1;
        match touched.runs.last_mut() {
            Some(run) if run.first + run.count == chunk => run.count += 1,
            _ => touched.runs.push(Run { first: chunk, count: 1 }),
        }
    }

    /// The trace, unless nothing was read.
    pub(super) fn finish(&self) -> Option<String> {
        let touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        if touched.runs.is_empty() {
            return None;
        }
        let lines = touched.runs.iter().map(|run| format!("{} {}\n", run.first, run.count));
        Some(format!("{HEADING}\n{}", lines.collect::<String>()))
    }
}

/// Reads a trace, if there is a right one.
pub(super) fn load(path: &Path, size: u64) -> Option<Vec<Run>> {
    let mut text = String::new();
    File::open(path).ok()?.take(LARGEST).read_to_string(&mut text).ok()?;
    parse_trace(&text, size)
}

/// Reads the text of a trace of a blob of that size.
pub fn parse_trace(text: &str, size: u64) -> Option<Vec<Run>> {
    let mut lines = text.lines();
    if lines.next()? != HEADING {
        return None;
    }
    let chunks = size.div_ceil(CHUNK);
    let mut left = MOST;
    let runs = lines.map(|line| {
        let (first, count) = line.split_once(' ')?;
        let run = Run { first: first.parse().ok()?, count: count.parse().ok()? };
        left = left.checked_sub(run.count)?;
        let end = run.first.checked_add(run.count)?;
        (run.count > 0 && end <= chunks).then_some(run)
    });
    runs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_reads_back_as_it_was_recorded() {
        let size = 100 * CHUNK;
        let recorder = Recorder::new(size);
        assert_eq!(recorder.finish(), None);
        [99, 0, 1, 2, 1, 50, 3].iter().for_each(|chunk| recorder.touched(*chunk));
        let text = recorder.finish().unwrap();
        let runs = [(99, 1), (0, 3), (50, 1), (3, 1)];
        let runs: Vec<Run> =
            runs.iter().map(|(first, count)| Run { first: *first, count: *count }).collect();
        assert_eq!(parse_trace(&text, size), Some(runs));
        assert_eq!(parse_trace(&text, 99 * CHUNK), None);
        for wrong in [
            "",
            "kiln trace 2\n",
            "kiln trace 1\n0 0\n",
            "kiln trace 1\n0 2000\n",
            "kiln trace 1\nx",
        ] {
            assert_eq!(parse_trace(wrong, 10_000 * CHUNK), None, "{wrong}");
        }
    }
}
