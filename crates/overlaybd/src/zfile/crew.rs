//! Threads that lend a hand with a large read. They are started once and wait in between: starting and ending threads
//! for each read would cost as much as the read of a MiB.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, available_parallelism};

/// The helpers of this process: one for each processor but the reader's.
#[derive(Debug)]
pub(super) struct Crew {
    state: Mutex<State>,
    /// There is a job to join.
    more: Condvar,
    /// Nobody is at the job any more.
    left: Condvar,
    size: usize,
}

#[derive(Default)]
struct State {
    /// Work that is done when all who do it have returned.
    job: Option<&'static (dyn Fn() + Sync)>,
    /// How many more may join.
    seats: usize,
    /// How many are at it, and whether one of them panicked.
    active: usize,
    panicked: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State({} active, {} seats)", self.active, self.seats)
    }
}

/// The crew, which is hired when it is first needed.
pub(super) fn crew() -> &'static Crew {
    static CREW: OnceLock<Crew> = OnceLock::new();
    static HIRED: OnceLock<()> = OnceLock::new();
    let crew = CREW.get_or_init(|| Crew {
        state: Mutex::default(),
        more: Condvar::new(),
        left: Condvar::new(),
        size: available_parallelism().map_or(0, |count| count.get() - 1),
    });
    HIRED.get_or_init(|| {
        for _ in 0..crew.size {
            // Without helpers reads take longer, and that is all.
            let _ = Builder::new().name("unpack".to_owned()).spawn(|| crew.help());
        }
    });
    crew
}

impl Crew {
    /// Runs `work` on this thread and, if they come in time, on so many others. It has to take what there is to do piece by
    /// piece, and return when nothing is left.
    pub(super) fn run(&self, others: usize, work: &(dyn Fn() + Sync)) {
        let mut state = self.state();
        if state.job.is_some() || others == 0 {
            // Somebody else reads, too: then no processor is idle.
            drop(state);
            return work();
        }
        // SAFETY: the reference is used by helpers that are counted in `active`, and taken only from `job`. `Job` takes it
        // out of there and waits for them before this call returns or unwinds, while what it refers to lives.
        state.job = Some(unsafe {
            std::mem::transmute::<&(dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(work)
        });
        state.seats = others;
        drop(state);
        let job = Job(self);
        for _ in 0..others.min(self.size) {
            self.more.notify_one();
        }
        work();
        drop(job);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a helper does for as long as the process lives.
    fn help(&self) {
        let mut state = self.state();
        loop {
            let Some(job) = state.job.filter(|_| state.seats > 0) else {
                state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.seats -= 1;
            state.active += 1;
            drop(state);
            let ended = catch_unwind(AssertUnwindSafe(job));
            state = self.state();
            state.active -= 1;
            state.panicked |= ended.is_err();
            if state.active == 0 {
                self.left.notify_one();
            }
        }
    }
}

/// A job that helpers may be at. Dropping it waits for them.
struct Job<'c>(&'c Crew);

impl Drop for Job<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.seats = 0;
        while state.active > 0 {
            state = self.0.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.job = None;
        let panicked = std::mem::take(&mut state.panicked);
        drop(state);
        assert!(!panicked || std::thread::panicking(), "a thread that unpacks has panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_piece_is_done_once_however_many_ask_at_the_same_time() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
                        crew().run(3, &|| {
                            while next.fetch_add(1, Ordering::Relaxed) < 100 {
                                done.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                        assert_eq!(done.load(Ordering::Relaxed), 100);
                    }
                });
            }
        });
    }
}
