//! Gives a disk to a kernel or a program: whatever is a [`BlockDevice`](kiln_block::BlockDevice) can be
//! served over NBD by [`nbd::Server`], to virtual machines by [`vhost_user::Server`], as a file by
//! [`fuse::Mount`] and as a block device of this machine by [`ublk::Device`].
//!
//! This crate knows no disk format; a disk's name, and whether it may be written, are in an [`Export`].

mod errno;
mod exports;
pub mod fuse;
pub mod nbd;
mod pace;
pub mod ublk;
pub mod vhost_user;

pub use exports::{AddExportError, Export, Exports};
