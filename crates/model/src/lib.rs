//! Kiln's words as plain data: what a user asks for ([`scenario`]), what will be done ([`plan`],
//! [`job`]), what happened ([`event`], [`outcome`]), and how host and guest talk ([`protocol`]).
//!
//! Nothing here does I/O, reads a clock or draws a random number, but for what only tests use (feature
//! `testing`). The guest uses this crate without
//! its default feature `text`, and so without serde.

#[cfg(feature = "text")]
pub mod event;
pub mod hostile;
mod id;
#[cfg(feature = "text")]
pub mod job;
pub mod module_index;
pub mod outcome;
#[cfg(feature = "text")]
pub mod plan;
pub mod protocol;
#[cfg(feature = "text")]
pub mod restore;
#[cfg(feature = "text")]
pub mod root;
#[cfg(feature = "text")]
pub mod scenario;
pub mod splat;
#[cfg(feature = "testing")]
pub mod testing;
pub mod wildcard;

pub use id::{NameError, RunId, StageName};
