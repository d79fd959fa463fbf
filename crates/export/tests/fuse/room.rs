//! A mounted folder for the length of a test.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use kiln_block::BlockDevice;
use kiln_export::fuse::Mount;
use kiln_export::{Export, Exports};

/// Disks in a folder. The mount goes before the folder does, also when the test fails.
pub(crate) struct Room {
    pub(crate) mount: Mount,
    pub(crate) exports: Exports,
    _folder: tempfile::TempDir,
}

/// A folder to mount on.
pub(crate) fn empty_folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("kiln-fuse").tempdir_in("/tmp").unwrap()
}

/// Mounts, or says what this machine lacks.
pub(crate) fn mounted(folder: &std::path::Path, exports: Exports) -> Mount {
    Mount::start(folder, exports).unwrap_or_else(|error| {
        panic!("these tests need /dev/fuse and root, or fusermount3 (package fuse3): {error:?}")
    })
}

impl Room {
    pub(crate) fn serving(exports: Exports) -> Room {
        let folder = empty_folder();
        let mount = mounted(folder.path(), exports.clone());
        Room { mount, exports, _folder: folder }
    }

    /// One disk, named `disk`.
    pub(crate) fn with(device: Arc<dyn BlockDevice>) -> Room {
        Room::serving(Exports::one("disk", Export::new(device)).unwrap())
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.mount.path_of("disk").unwrap()
    }

    pub(crate) fn open(&self) -> File {
        OpenOptions::new().read(true).write(true).open(self.path()).unwrap()
    }
}

/// Runs a program, which has to succeed, and returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
