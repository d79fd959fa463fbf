//! How fast a disk has been lately, which decides who waits for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a brief read takes at most, on average: less than one from a fast disk.
pub(crate) const BRIEF_READ: Duration = Duration::from_micros(50);
/// What a brief write takes at most, on average. Writes go to a cache, and more threads do not fill it
/// faster unless it is full.
pub(crate) const BRIEF_WRITE: Duration = Duration::from_micros(500);

/// How long operations of a kind took lately, in nanoseconds, and how long brief ones may take.
#[derive(Debug)]
pub(crate) struct Pace {
    mean: AtomicU64,
    brief: u64,
}

impl Pace {
    pub(crate) fn of(brief: Duration) -> Pace {
        Pace { mean: AtomicU64::new(0), brief: nanoseconds(brief) }
    }

    pub(crate) fn is_brisk(&self) -> bool {
        self.mean.load(Ordering::Relaxed) < self.brief
    }

    /// Threads may overwrite each other's note: an average is none the worse for it.
    pub(crate) fn note(&self, took: Duration) {
        // One hiccup of the host says little about the next operation.
        let took = nanoseconds(took).min(self.brief * 4);
        let mean = self.mean.load(Ordering::Relaxed);
        self.mean.store(mean - mean / 8 + took / 8, Ordering::Relaxed);
    }

    /// Something of another kind was done: how long this kind took loses weight, for who waits on account of it
    /// finds out no more.
    pub(crate) fn fade(&self) {
        let mean = self.mean.load(Ordering::Relaxed);
        self.mean.store(mean - mean / 64, Ordering::Relaxed);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_hiccup_is_forgiven_and_slowness_is_not() {
        let pace = Pace::of(Duration::from_micros(50));
        pace.note(Duration::from_secs(1));
        assert!(pace.is_brisk());
        for _ in 0..3 {
            pace.note(Duration::from_millis(1));
        }
        assert!(!pace.is_brisk());
        for _ in 0..8 {
            pace.note(Duration::from_micros(2));
        }
        assert!(pace.is_brisk(), "and speed is noticed, too");
    }

    /// Or writes would be carried out with the care that reads needed an hour ago.
    #[test]
    fn the_slowness_of_what_nobody_asks_for_any_more_is_forgotten() {
        let pace = Pace::of(Duration::from_micros(50));
        for _ in 0..100 {
            pace.note(Duration::from_secs(1));
        }
        for _ in 0..10 {
            pace.fade();
        }
        assert!(!pace.is_brisk(), "but not at once");
        for _ in 0..90 {
            pace.fade();
        }
        assert!(pace.is_brisk());
    }
}
