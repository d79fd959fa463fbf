//! Bounded output: guest bytes become event text, in few events, up to a budget.
//!
//! A guest that floods its terminal would otherwise fill the host's disk and drown every reader. Bytes
//! are gathered into chunks, cut where UTF-8 allows, and beyond the budget they are counted, not kept.

use std::time::Duration;

/// Most text one stage's terminal, or one machine's console, may put into events.
pub(super) const BUDGET: u64 = 16 << 20;
/// A chunk this large is passed on at once.
const CHUNK: usize = 16 << 10;
/// A smaller one when this much time has passed, so that people see output as it appears.
const PATIENCE: Duration = Duration::from_millis(50);

/// One stream on its way into events.
#[derive(Debug)]
pub(super) struct Flood {
    pending: Vec<u8>,
    since: Option<Duration>,
    left: u64,
    dropped: u64,
}

impl Flood {
    pub(super) fn new(budget: u64) -> Flood {
        Flood { pending: Vec::new(), since: None, left: budget, dropped: 0 }
    }

    /// Takes bytes; returns text that is ready to be passed on.
    pub(super) fn push(&mut self, now: Duration, bytes: &[u8]) -> Option<String> {
        let fits = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        self.left -= fits as u64;
        self.dropped += (bytes.len() - fits) as u64;
        self.pending.extend_from_slice(&bytes[..fits]);
        if fits > 0 {
            self.since.get_or_insert(now);
        }
        if self.pending.len() >= CHUNK { self.take(false) } else { self.due(now) }
    }

    /// Text that has waited long enough.
    pub(super) fn due(&mut self, now: Duration) -> Option<String> {
        let since = self.since?;
        if now >= since + PATIENCE { self.take(false) } else { None }
    }

    /// When text will have waited long enough.
    pub(super) fn due_at(&self) -> Option<Duration> {
        self.since.map(|since| since + PATIENCE)
    }

    /// Everything that is left, for the end of the stream.
    pub(super) fn finish(&mut self) -> Option<String> {
        self.take(true)
    }

    /// How many bytes were not kept.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    fn take(&mut self, all: bool) -> Option<String> {
        let whole = if all { self.pending.len() } else { whole_characters(&self.pending) };
        let rest = self.pending.split_off(whole);
        let taken = std::mem::replace(&mut self.pending, rest);
        // A character cut in two waits for its other half without a clock: it may never come.
        self.since = None;
        (!taken.is_empty()).then(|| String::from_utf8_lossy(&taken).into_owned())
    }
}

/// How many bytes from the start do not end within a character.
fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    for at in (tail..bytes.len()).rev() {
        let byte = bytes[at];
        if byte & 0b1100_0000 == 0b1000_0000 {
            continue;
        }
        let length = match byte {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if at + length > bytes.len() { at } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_flood_costs_its_budget_and_is_counted_beyond() {
        let mut flood = Flood::new(100_000);
        let mut kept = 0;
        for _ in 0..100 {
            kept += flood.push(at(0), &[b'x'; 10_000]).map_or(0, |text| text.len());
        }
        kept += flood.finish().map_or(0, |text| text.len());
        assert_eq!((kept, flood.dropped()), (100_000, 900_000));
    }

    #[test]
    fn a_trickle_is_gathered_and_passed_on_soon() {
        let mut flood = Flood::new(BUDGET);
        assert_eq!(flood.push(at(0), b"a"), None);
        assert_eq!(flood.push(at(10), b"b"), None);
        assert_eq!(flood.due_at(), Some(at(50)));
        assert_eq!(flood.due(at(50)), Some("ab".into()));
        assert_eq!(flood.due_at(), None);
    }

    proptest! {
        #[test]
        fn text_survives_any_cut(text in "\\PC{0,60}", cut in 1usize..7) {
            let mut flood = Flood::new(BUDGET);
            let mut seen = String::new();
            for (number, piece) in text.as_bytes().chunks(cut).enumerate() {
                let now = at(number as u64 * 100);
                seen.extend(flood.push(now, piece));
                seen.extend(flood.due(now + at(99)));
            }
            seen.extend(flood.finish());
            prop_assert_eq!(seen, text);
        }
    }
}
