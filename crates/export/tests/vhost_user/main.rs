//! The vhost-user-blk back-end, as a machine meets it: its requests, its tricks, and its back-end's death.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod hostile;
mod machine;
mod requests;
mod restart;
mod serve;
mod settings;
