//! Asking a run to stop: once drains, twice kills.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Shared between whoever hears the signals and whatever runs. Clones ask the same run.
#[derive(Clone, Debug, Default)]
pub struct StopToken(Arc<AtomicU8>);

/// How urgently a run should stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Not at all.
    GoOn,
    /// The running stage may end, no other begins.
    Drain,
    /// Now.
    Kill,
}

impl StopToken {
    /// A token nobody has asked anything of.
    pub fn new() -> StopToken {
        StopToken::default()
    }

    /// Asks once more; the second time means now. Only touches an atomic, so a signal handler may call it.
    pub fn ask(&self) {
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |asked| {
            Some(asked.saturating_add(1).min(2))
        });
    }

    /// Asks for the end at once.
    pub fn kill(&self) {
        self.0.store(2, Ordering::SeqCst);
    }

    /// What was asked so far.
    pub fn urgency(&self) -> Urgency {
        match self.0.load(Ordering::SeqCst) {
            0 => Urgency::GoOn,
            1 => Urgency::Drain,
            _ => Urgency::Kill,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_drains_twice_kills_and_more_changes_nothing() {
        let token = StopToken::new();
        let seen: Vec<Urgency> = (0..4)
            .map(|_| {
                token.ask();
                token.urgency()
            })
            .collect();
        assert_eq!(seen, [Urgency::Drain, Urgency::Kill, Urgency::Kill, Urgency::Kill]);
    }
}
