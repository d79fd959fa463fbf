//! A control group per program, so that it can be killed with all it ever started.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};

const ROOT: &str = "/sys/fs/cgroup";

/// One group, removed when it is empty.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    folder: Option<OwnedFd>,
}

impl Cgroup {
    /// Makes a group; none where the kernel has no cgroup2.
    pub(crate) fn make(name: &str) -> Option<Cgroup> {
        if !Path::new(ROOT).join("cgroup.procs").exists() {
            return None;
        }
        let path = Path::new(ROOT).join("kiln").join(name);
        fs::create_dir_all(&path).ok()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(&path, flags, Mode::empty()).ok();
        Some(Cgroup { path, folder })
    }

    /// What a process is born into.
    pub(crate) fn folder(&self) -> Option<BorrowedFd<'_>> {
        self.folder.as_ref().map(AsFd::as_fd)
    }

    /// Where a process writes `0` to move itself in.
    pub(crate) fn door(&self) -> io::Result<OwnedFd> {
        let door = OpenOptions::new().write(true).open(self.path.join("cgroup.procs"))?;
        Ok(door.into())
    }

    /// Sends a signal to everyone inside. Killing is complete where the kernel can do it (5.14).
    pub(crate) fn signal(&self, signal: Signal) {
        if signal == Signal::KILL && fs::write(self.path.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        let inside = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Removes the group if nobody is left in it.
    pub(crate) fn remove(&self) -> bool {
        match fs::remove_dir(&self.path) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}
