//! From a scenario to events: the pure planner, the job spec, and the execution of one job.
//!
//! [`load`] reads a scenario with its scripts, `kiln_model::plan` computes what a run will do, [`equip`] finds or
//! builds the image it boots, [`Bases`] what its disks start as, [`local::run`] starts one process per job and passes its events on, and that process
//! calls [`job::execute`]. [`shell`] boots the same machine for a person. Nothing here knows a terminal or a database.

mod acceleration;
mod bases;
mod chain;
mod equip;
pub mod job;
mod load;
pub mod local;
mod roots;
pub mod shell;
pub mod shipped;
mod sink;
mod stop;
pub mod warm;
pub mod watch;

pub use acceleration::settle_acceleration;
pub use bases::{BASE, BaseError, Bases};
pub use equip::{EquipError, Equipment, Stores, equip, foresee, image_request};
pub use job::PoolAccess;
pub use load::{LoadError, Loaded, MAX_SCRIPT, load};
pub use sink::{EventSink, JsonLines};
pub use stop::{StopToken, Urgency};
