//! Indexes laid over each other, and packed for writing.

use super::segment::{LONGEST, Segment};

/// What shows when `top` lies over `bottom`; both are sorted and free of overlaps, and so is this.
pub(crate) fn overlay(top: &[Segment], bottom: &[Segment]) -> Vec<Segment> {
    let mut merged = Vec::with_capacity(top.len() + bottom.len());
    let mut below = bottom.iter().peekable();
    let mut covered = 0;
    for over in top.iter().map(Some).chain([None]) {
        let (start, end) = over.map_or((u64::MAX, u64::MAX), |over| (over.start, over.end()));
        while let Some(under) = below.peek() {
            if under.start >= start {
                break;
            }
            let (from, to) = (under.start.max(covered), under.end().min(start));
            if from < to {
                merged.push(under.clip(from, to));
            }
            if under.end() > end {
                break;
            }
            below.next();
        }
        merged.extend(over);
        covered = end;
    }
    merged
}

/// Many indexes, the topmost first. Neighbours are merged pairwise, so that each entry is copied a
/// few times and not once for each layer.
pub(crate) fn overlay_all(mut layers: Vec<Vec<Segment>>) -> Vec<Segment> {
    while layers.len() > 1 {
        let mut merged = Vec::with_capacity(layers.len().div_ceil(2));
        let mut rest = layers.into_iter();
        while let Some(top) = rest.next() {
            merged.push(match rest.next() {
                Some(bottom) => overlay(&top, &bottom),
                None => top,
            });
        }
        layers = merged;
    }
    layers.pop().unwrap_or_default()
}

/// Joins neighbours that continue each other. Other tools stop below the longest run, so a joined
/// entry is always shorter than that.
pub(crate) fn compress(segments: impl Iterator<Item = Segment>) -> Vec<Segment> {
    let mut packed: Vec<Segment> = Vec::new();
    for next in segments {
        match packed.last_mut() {
            Some(last)
                if last.end() == next.start
                    && last.stored_end() == next.stored_at
                    && last.zeroed == next.zeroed
                    && last.source == next.source
                    && last.len + next.len < LONGEST =>
            {
                last.len += next.len;
            }
            _ => packed.push(next),
        }
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(start: u64, len: u32, source: u16) -> Segment {
        Segment { start, stored_at: 1000 + start, len, source, zeroed: false }
    }

    #[test]
    fn what_is_on_top_cuts_what_is_below() {
        let top = [segment(4, 2, 0), segment(10, 10, 0)];
        let bottom = [segment(0, 12, 1), segment(13, 2, 1), segment(16, 8, 1)];
        let merged = overlay(&top, &bottom);
        let found: Vec<_> =
            merged.iter().map(|s| (s.start, s.len, s.source, s.stored_at)).collect();
        let wanted = [
            (0, 4, 1, 1000),
            (4, 2, 0, 1004),
            (6, 4, 1, 1006),
            (10, 10, 0, 1010),
            (20, 4, 1, 1020),
        ];
        assert_eq!(found, wanted);
    }
}
