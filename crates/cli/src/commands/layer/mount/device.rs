//! The disk as a block device: by ublk where the kernel has that, else by FUSE and a loop device; a file without root.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiln_export::{Export, Exports, fuse, ublk};

use super::record::{self, Kept};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};

/// A disk that can be used; it is taken away when this is dropped.
#[derive(Debug)]
pub(super) enum Device {
    /// A block device of the kernel's own.
    Ublk(ublk::Device),
    /// A file, and perhaps a loop device over it.
    File {
        /// Dropped before the folder.
        looped: Option<Loop>,
        /// Serves the file.
        mount: Option<fuse::Mount>,
        /// Where it is.
        file: PathBuf,
        /// Its folder, which goes last.
        _folder: tempfile::TempDir,
    },
}

impl Device {
    /// Makes a block device, and a file where that takes root.
    pub(super) fn start(export: &Export, name: &str, kept: &mut Kept) -> Result<Device, Failure> {
        let is_root = rustix::process::geteuid().is_root();
        if is_root && Path::new("/dev/ublk-control").exists() {
            let device = ublk::Device::start(export).exits(Exit::Setup)?;
            let path = device.path().to_owned();
            note(kept, |record| record.device = Some(path))?;
            return Ok(Device::Ublk(device));
        }
        let folder = record::folder()
            .and_then(|own| tempfile::Builder::new().prefix("disk-").tempdir_in(own));
        let folder = folder.tried(|| "cannot make a folder for the disk".to_owned());
        let folder = folder.exits(Exit::Setup)?;
        let path = folder.path().to_owned();
        note(kept, |record| record.folder = Some(path))?;
        let exports = Exports::one(name, export.clone()).exits(Exit::Usage)?;
        let mount = fuse::Mount::start(folder.path(), exports).exits(Exit::Setup)?;
        let file = mount.path_of(name).unwrap_or_else(|| folder.path().join(name));
        let mut device =
            Device::File { looped: None, mount: Some(mount), file: file.clone(), _folder: folder };
        let noted = file.clone();
        note(kept, |record| record.file = Some(noted))?;
        if is_root {
            let made = Loop::attach(&file, export.is_read_only())?;
            let path = made.path.clone();
            if let Device::File { looped, .. } = &mut device {
                *looped = Some(made);
            }
            note(kept, |record| record.device = Some(path))?;
        }
        Ok(device)
    }

    /// The block device, where there is one.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Device::Ublk(device) => Some(device.path()),
            Device::File { looped, .. } => looped.as_ref().map(|looped| looped.path.as_path()),
        }
    }

    /// The file, where there is one.
    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            Device::Ublk(_) => None,
            Device::File { file, .. } => Some(file),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Device::File { looped, mount, .. } = self {
            drop(looped.take());
            // Whoever still uses the file gets errors.
            drop(mount.take());
        }
    }
}

fn note(kept: &mut Kept, change: impl FnOnce(&mut record::Record)) -> Result<(), Failure> {
    kept.note(change).tried(|| "cannot note what is mounted".to_owned()).exits(Exit::Setup)
}

/// A loop device, which is let go when this is dropped; one in use goes when it is not any more.
#[derive(Debug)]
pub(super) struct Loop {
    path: PathBuf,
    file: PathBuf,
}

/// A program of the system, which may be where only the administrator looks.
pub(super) fn program(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Runs a program; what it says when it fails is the failure.
pub(super) fn run(command: &mut Command, act: impl Fn() -> String) -> Result<String, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| {
        let failure =
            Failure::from(anyhow::Error::new(error).context(format!("cannot run {name}")));
        failure.with_exit(Exit::Setup).hint("it is in the package util-linux, or mount")
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = crate::hostile::line(said.trim());
    let text =
        if said.is_empty() { format!("{name}: {}", output.status) } else { said.into_owned() };
    Err(Failure::from(anyhow::Error::msg(text).context(act())).with_exit(Exit::Setup))
}

impl Loop {
    fn attach(file: &Path, read_only: bool) -> Result<Loop, Failure> {
        let attach = |direct: bool| {
            let mut command = program("losetup");
            command.args(["--find", "--show"]).args(read_only.then_some("--read-only"));
            // What the file system caches need not be cached below it once more.
            command.args(direct.then_some("--direct-io=on")).arg(file);
            run(&mut command, || format!("cannot make a loop device of {}", file.display()))
        };
        let path = attach(true).or_else(|_| attach(false))?;
        Ok(Loop { path: path.into(), file: file.to_owned() })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // It may have gone with its last user, and be somebody else's now.
        if backing_file(&self.path).as_ref() == Some(&self.file) {
            let _ = detach_loop(&self.path);
        }
    }
}

/// Lets a loop device go, at once or when nobody uses it any more.
pub(super) fn detach_loop(device: &Path) -> io::Result<()> {
    let mut command = program("losetup");
    command.arg("--detach").arg(device).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().map(|_| ())
}

/// Whether no file system is on a device any more. One that was unmounted is there until it has written everything.
pub(super) fn is_free(device: &Path) -> bool {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL | rustix::fs::OFlags::CLOEXEC;
    let opened = rustix::fs::open(device, flags, rustix::fs::Mode::empty());
    opened.err() != Some(rustix::io::Errno::BUSY)
}

/// Waits for that, which the kernel tells nobody about; `false` when it takes too long.
pub(super) fn wait_until_free(device: &Path, patience: Duration) -> bool {
    let end = Instant::now().checked_add(patience);
    let mut pause = Duration::from_millis(1);
    while !is_free(device) {
        if end.is_some_and(|end| Instant::now() > end) {
            return false;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
    true
}

/// The file behind a loop device.
pub(super) fn backing_file(device: &Path) -> Option<PathBuf> {
    let name = device.file_name()?;
    let path = Path::new("/sys/block").join(name).join("loop/backing_file");
    fs::read_to_string(path).ok().map(|text| PathBuf::from(text.trim_end()))
}
