//! Bootable things from a kernel and a list of files: kernel lookup, manifests and their closures,
//! the initramfs, and the cache that keeps them by content.

pub mod kernel;
pub mod modules;
