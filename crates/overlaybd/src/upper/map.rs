//! What an upper holds while it changes: segments that new ones cut.

use std::collections::BTreeMap;

use crate::lsmt::Segment;

/// Segments without overlaps, by where they start.
#[derive(Debug, Default)]
pub(crate) struct SegmentMap(BTreeMap<u64, Segment>);

impl SegmentMap {
    /// Lays a segment over what is there.
    pub(crate) fn put(&mut self, segment: Segment) {
        self.remove(segment.start, segment.end());
        self.0.insert(segment.start, segment);
    }

    /// Makes a hole of the sectors from `start` to `end`.
    pub(crate) fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some((_, before)) = self.0.range(..start).next_back()
            && before.end() > start
        {
            let before = *before;
            self.0.insert(before.start, before.clip(before.start, start));
            if before.end() > end {
                self.0.insert(end, before.clip(end, before.end()));
            }
        }
        while let Some((&key, &within)) = self.0.range(start..end).next() {
            self.0.remove(&key);
            if within.end() > end {
                self.0.insert(end, within.clip(end, within.end()));
            }
        }
    }

    /// The segments that reach into the sectors from `start` to `end`, sorted.
    pub(crate) fn within(&self, start: u64, end: u64) -> Vec<Segment> {
        let before = self.0.range(..start).next_back().map(|(_, segment)| *segment);
        let before = before.filter(|segment| segment.end() > start);
        before.into_iter().chain(self.0.range(start..end.max(start)).map(|(_, s)| *s)).collect()
    }

    /// All of them, sorted.
    pub(crate) fn all(&self) -> Vec<Segment> {
        self.0.values().copied().collect()
    }
}
