//! The process that serves a mounted image, from before there is a device until after it has gone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kiln_export::Export;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::device::{Device, detach_loop, program, run, wait_until_free};
use super::record::Kept;
use super::{Ready, log_to_file, say, table};
use crate::arguments::LayerMountArgs;
use crate::commands::layer::ending::Ending;
use crate::commands::layer::remote;
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::terminal;

/// How long an unmounted file system may take to write what it has.
const PATIENCE: Duration = Duration::from_secs(240);

/// Serves an image until somebody wants it to end, or unmounts it.
pub(super) fn hold(session: &Session, args: &LayerMountArgs) -> Result<Exit, Failure> {
    let opening = remote::Opening::default();
    let ending = Ending::listen(&opening)?;
    if args.detached {
        kiln_store::detach();
        stop_when_unwanted(&opening)?;
    }
    let opened = remote::open(session, &args.image, &opening)?;
    if args.image.download {
        opened.download();
    }
    let kept = Kept::begin().tried(|| "cannot note what is mounted".to_owned());
    let mut kept = kept.exits(Exit::Setup)?;
    let export = Export::new(Arc::clone(&opened.disk));
    let device = Device::start(&export, &opened.name, &mut kept)?;
    let mounted = match (&args.at, device.path()) {
        (Some(at), Some(path)) => {
            let at = session.folder.join(at);
            let at = at.canonicalize().tried(|| format!("cannot find {}", at.display()));
            Some(Mounted::start(path, at.exits(Exit::Usage)?, args, export.is_read_only())?)
        }
        _ => None,
    };
    let at = mounted.as_ref().map(|mounted| mounted.at.clone());
    let noted = at.clone();
    kept.note(|record| record.at = noted)
        .tried(|| "cannot note what is mounted".to_owned())
        .exits(Exit::Setup)?;
    if let (Some(at), Some(path)) = (at.clone(), device.path().map(Path::to_owned)) {
        let end = ending.teller();
        let watch = move || {
            table::wait_until_gone(&path, &at);
            wait_until_free(&path, Duration::MAX);
            end();
        };
        let watching = std::thread::Builder::new().name("mounts".to_owned()).spawn(watch);
        watching.tried(|| "cannot watch the mount".to_owned()).exits(Exit::InfrastructureBroke)?;
    }
    let ready = Ready {
        device: device.path().map(Path::to_owned),
        file: device.file().map(Path::to_owned),
        at,
        size: opened.disk.size().get(),
        read_only: export.is_read_only(),
        pid: std::process::id(),
    };
    if args.detached {
        // Whoever started this may have gone, and with it the wish: then everything is taken away again.
        terminal::out_line(&serde_json::to_string(&ready)?)?;
        if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
            // The end of the pipe is part of the message.
            let _ = rustix::stdio::dup2_stdout(null);
        }
        log_to_file(session);
    } else {
        say(session, &ready)?;
        terminal::say("serving until Ctrl-C");
    }
    ending.wait();
    drop(mounted);
    drop(device);
    let flushed = opened.disk.flush();
    if let Err(error) = &flushed {
        kept.leave_word(error.to_string());
    }
    flushed.tried(|| "cannot keep what was written".to_owned()).exits(Exit::InfrastructureBroke)?;
    opened.keep_trace()?;
    Ok(Exit::Success)
}

/// Whoever started this process may go before the image is open.
fn stop_when_unwanted(opening: &remote::Opening) -> Result<(), Failure> {
    let opening = opening.clone();
    let watch = move || {
        let stdout = std::io::stdout();
        // Errors are told without being asked for, and a pipe that nobody reads is one.
        let mut waiting = [PollFd::new(&stdout, PollFlags::empty())];
        if poll(&mut waiting, None).is_ok() {
            opening.stop();
        }
    };
    let watching = std::thread::Builder::new().name("starter".to_owned()).spawn(watch);
    let watching = watching.tried(|| "cannot watch who started this".to_owned());
    watching.exits(Exit::InfrastructureBroke).map(|_| ())
}

/// A file system that is mounted; it is unmounted when this is dropped.
#[derive(Debug)]
struct Mounted {
    at: PathBuf,
    device: PathBuf,
}

impl Mounted {
    fn start(
        device: &Path,
        at: PathBuf,
        args: &LayerMountArgs,
        read_only: bool,
    ) -> Result<Mounted, Failure> {
        let mount = |more: &str| {
            // Who made the image need not be somebody who may become root here.
            let mut options = "nosuid,nodev".to_owned();
            let access = if read_only { "ro" } else { "rw" };
            for part in [access, more, args.options.as_deref().unwrap_or_default()] {
                if !part.is_empty() {
                    options = format!("{options},{part}");
                }
            }
            let mut command = program("mount");
            if let Some(fs_type) = &args.fs_type {
                command.arg("-t").arg(fs_type);
            }
            command.arg("-o").arg(options).arg("--").arg(device).arg(&at);
            run(&mut command, || format!("cannot mount the file system at {}", at.display()))
        };
        // A journal that was not written out cannot be, on a disk that nobody may write.
        mount("").or_else(|failure| match read_only {
            true => mount("noload").map_err(|_| failure),
            false => Err(failure),
        })?;
        // From now on the loop device goes with its mount, even if this process is killed.
        let _ = detach_loop(device);
        Ok(Mounted { at, device: device.to_owned() })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if table::is_mounted(&self.device, &self.at)
            && unmount(&self.at, UnmountFlags::NOFOLLOW) == Err(Errno::BUSY)
        {
            let at = self.at.display();
            terminal::say(&format!("warning: {at} is in use, and whoever uses it gets errors now"));
            if let Ok(folder) = std::fs::File::open(&self.at) {
                // What was written so far is kept.
                let _ = rustix::fs::syncfs(&folder);
            }
            let _ = unmount(&self.at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            return;
        }
        // Out of the table, a file system still has to write what it has in memory.
        if !wait_until_free(&self.device, PATIENCE) {
            let device = self.device.display();
            terminal::say(&format!("warning: {device} is still in use, and is taken away"));
        }
    }
}
