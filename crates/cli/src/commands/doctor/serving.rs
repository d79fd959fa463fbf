//! Ways to reach a disk that need something of this machine's kernel. NBD and vhost-user need nothing of it.

use std::fs::File;
use std::path::Path;

use super::Check;
use super::checks::{install, on_path};

/// A file per disk.
pub(super) fn fuse() -> Check {
    let device = File::options().read(true).write(true).open("/dev/fuse");
    let root = rustix::process::geteuid().is_root();
    match (device, root || on_path("fusermount3").is_some()) {
        (Ok(_), true) => Check::ok("fuse", "kiln disk serve --fuse"),
        (Ok(_), false) => Check::limited(
            "fuse",
            "no fusermount3: kiln disk serve --fuse takes root",
            install("fuse3", "fuse3"),
        ),
        (Err(error), _) => Check::limited(
            "fuse",
            format!("/dev/fuse: {error}; disks cannot be served as files"),
            "modprobe fuse",
        ),
    }
}

/// A block device per disk, by a driver of the kernel's.
pub(super) fn ublk() -> Check {
    match File::options().read(true).write(true).open("/dev/ublk-control") {
        Ok(_) => Check::ok("ublk", "kiln disk serve --ublk"),
        Err(error) => Check::limited(
            "ublk",
            format!("/dev/ublk-control: {error}; disks cannot be served as block devices by ublk"),
            "as root, with Linux 6.0 or newer: modprobe ublk_drv",
        ),
    }
}

/// A block device per disk, by the kernel's own client; programs have theirs.
pub(super) fn nbd() -> Check {
    match Path::new("/sys/module/nbd").exists() || Path::new("/dev/nbd0").exists() {
        true => Check::ok("nbd", "disks that are served over NBD can be attached by nbd-client"),
        false => Check::limited(
            "nbd",
            "the kernel's client is not loaded; QEMU and other programs reach NBD disks without it",
            "as root: modprobe nbd",
        ),
    }
}
