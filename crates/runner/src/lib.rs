//! From a scenario to events: the pure planner, the job spec, and the execution of one job.
//!
//! [`load`] reads a scenario with its scripts, `kiln_model::plan` computes what a run will do, [`local::run`] starts
//! one process per job and passes its events on. Nothing here knows a terminal or a database.

pub mod job;
mod load;
pub mod local;
pub mod shipped;
mod sink;
mod stop;
pub mod watch;

pub use load::{LoadError, Loaded, MAX_SCRIPT, load};
pub use sink::{EventSink, JsonLines};
pub use stop::{StopToken, Urgency};
