//! The folder of disks, as programs and the kernel meet it. These tests mount: they need /dev/fuse and root.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod files;
mod loop_device;
mod place;
mod room;
