//! Gives a disk to a kernel or a program: whatever is a [`BlockDevice`](kiln_block::BlockDevice) can be
//! served to QEMU, `nbd-client`, `qemu-img` or libnbd by [`nbd::Server`].
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
