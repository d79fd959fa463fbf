//! `kiln layer umount`: ends what serves a mounted image, and waits until nothing of it is left.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::json;

use super::device::is_free;
use super::record::{self, Found};
use super::table;
use crate::arguments::LayerUmountArgs;
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::{hostile, terminal};

/// How long what was written may take to be kept.
const PATIENCE: Duration = Duration::from_secs(300);

/// `kiln layer umount`
pub(crate) fn umount(session: &Session, args: &LayerUmountArgs) -> Result<Exit, Failure> {
    let all = record::all().tried(|| "cannot look up what is mounted".to_owned());
    let all = all.exits(Exit::Setup)?;
    let mut chosen: Vec<&Found> = Vec::new();
    if args.all {
        chosen.extend(&all);
    }
    for target in &args.targets {
        let found = all.iter().find(|found| is_meant(found, &session.folder.join(target)));
        chosen.push(found.ok_or_else(|| not_mounted(target, &all))?);
    }
    if chosen.is_empty() && !session.json() {
        terminal::say("nothing was mounted");
    }
    let mut ended = Vec::new();
    for found in chosen {
        end(found)?;
        let shown = shown(found);
        if !session.json() {
            terminal::say(&format!("unmounted {}", hostile::line(&shown)));
        }
        ended.push(shown);
    }
    if session.json() {
        session.out_json(&json!({"unmounted": ended}))?;
    }
    Ok(Exit::Success)
}

fn places(found: &Found) -> impl Iterator<Item = &PathBuf> {
    let record = &found.record;
    [&record.at, &record.device, &record.file].into_iter().flatten()
}

fn shown(found: &Found) -> String {
    let first = places(found).next().map(|place| place.display().to_string());
    first.unwrap_or_else(|| format!("what process {} was about to mount", found.record.pid))
}

fn is_meant(found: &Found, target: &Path) -> bool {
    // The folder of a file system that fails cannot be looked at.
    let real = target.canonicalize().unwrap_or_else(|_| target.to_owned());
    places(found).any(|place| *place == real || *place == target)
}

fn not_mounted(target: &Path, all: &[Found]) -> Failure {
    let text = format!("kiln layer mount has not mounted {}", target.display());
    let names: Vec<String> = all.iter().map(shown).collect();
    let failure = Failure::new(Exit::Usage, text);
    match names.is_empty() {
        true => failure.hint("nothing of this user is mounted"),
        false => failure.hint(format!("mounted are {}", hostile::line(&names.join(", ")))),
    }
}

fn end(found: &Found) -> Result<(), Failure> {
    if !found.is_alive {
        record::clear(found);
        return told(found.record.error.as_ref(), &shown(found));
    }
    let record = &found.record;
    let in_use = |place: &Path| {
        let place = place.display();
        Failure::new(Exit::InfrastructureBroke, format!("{place} is in use"))
            .hint(format!("fuser --verbose --mount {place} shows by whom"))
    };
    if let Some(device) = &record.device {
        if let Some(at) = record.at.as_ref().filter(|at| table::is_mounted(device, at)) {
            match unmount(at, UnmountFlags::NOFOLLOW) {
                Ok(()) | Err(Errno::INVAL) => {}
                Err(Errno::BUSY) => return Err(in_use(at)),
                Err(errno) => {
                    let error = anyhow::Error::new(std::io::Error::from(errno));
                    let error = error.context(format!("cannot unmount {}", at.display()));
                    return Err(Failure::from(error).with_exit(Exit::Setup));
                }
            }
        }
        // Somebody else may have mounted it elsewhere.
        if let Some(place) = table::places_of(device).first() {
            return Err(in_use(place));
        }
        if record.at.is_none() && !is_free(device) {
            return Err(in_use(device));
        }
    }
    let tried = || format!("cannot end process {}", record.pid);
    let pid = i32::try_from(record.pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Failure::new(Exit::Internal, tried()))?;
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        // It has ended, now that the folder is unmounted.
        Err(Errno::SRCH) => return wait_word(found),
        process => process.tried(tried).exits(Exit::InfrastructureBroke)?,
    };
    match pidfd_send_signal(&process, Signal::TERM) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => return Err(errno).tried(tried).exits(Exit::InfrastructureBroke),
    }
    let time = rustix::time::Timespec::try_from(PATIENCE).ok();
    let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], time.as_ref());
    match ended {
        Ok(0) => {
            let text = format!("process {pid} still keeps what was written to {}", shown(found));
            Err(Failure::new(Exit::InfrastructureBroke, text).hint("try again in a while"))
        }
        _ => wait_word(found),
    }
}

/// A process that could not keep everything has left word.
fn wait_word(found: &Found) -> Result<(), Failure> {
    let left = record::all().unwrap_or_default();
    let Some(left) = left.iter().find(|left| left.path == found.path && !left.is_alive) else {
        return Ok(());
    };
    let error = left.record.error.clone();
    record::clear(left);
    told(error.as_ref(), &shown(found))
}

fn told(error: Option<&String>, place: &str) -> Result<(), Failure> {
    match error {
        None => Ok(()),
        Some(error) => {
            let text = format!("not all that was written to {place} was kept: {error}");
            Err(Failure::new(Exit::InfrastructureBroke, text))
        }
    }
}
