//! Bootable things from a kernel and a list of files: kernel lookup, manifests and their closures,
//! the initramfs, and the cache that keeps them by content.

pub mod archive;
pub mod base;
pub mod cache;
pub mod closure;
pub mod elf;
pub mod examine;
pub mod ext2;
pub mod initramfs;
pub mod inventory;
pub mod kernel;
pub mod manifest;
pub mod modules;
pub mod newc;
pub mod packages;
pub mod supermin;
mod witness;

#[cfg(test)]
mod testing;
