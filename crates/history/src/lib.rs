//! What happened: the recording of every run, the index over them, and every page told from them.
//!
//! The recording is the truth: a folder per run, written by [`Recorder`] while the run goes on and read by
//! [`RunSummary::read`]. Everything else is derived and can be made again: the [`Index`], a [`diff`](RunDiff), [`junit()`],
//! a [`Replay`] in the terminal, the [`site`] of static pages, and its [`publish()`]ed copy on a branch.
//!
//! Nothing here is needed to run a test, so nothing that breaks here can fail one.

mod append;
mod cast;
mod diff;
mod error;
mod folder;
mod index;
mod junit;
mod lines;
mod publish;
mod recorder;
mod replay;
#[cfg(test)]
mod sample;
pub mod site;
mod standing;
mod summary;
pub mod terminal_text;

pub use cast::{CastEvent, CastHeader, CastKind, CastReader, STAGE_TERMINAL, TerminalSize};
pub use diff::{Change, DurationChange, NewSplat, Noise, RunDiff};
pub use error::HistoryError;
pub use folder::{RunFolder, run_ids};
pub use index::{Index, Refreshed, RunFilter, RunRow, SeenSplat};
pub use junit::junit;
pub use publish::{Published, publish};
pub use recorder::{LARGEST_CAST, Recorder};
pub use replay::{Frame, Replay, ReplayOptions};
pub use standing::{Past, Standing, WINDOW};
pub use summary::{
    Artifact, Damage, MachineSummary, Note, RunState, RunSummary, StageSummary, SummaryBuilder,
    for_each_event, read_events, read_runs,
};
