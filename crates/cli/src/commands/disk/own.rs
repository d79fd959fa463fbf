//! `kiln disk own`: the process that has a pool open, for everybody.

use std::path::Path;
use std::time::Duration;

use kiln_model::scenario::TimeLimit;
use kiln_store::{Opened, Owner, Store, detach, tell_readiness};

use super::pool::{self, refused};
use crate::arguments::DiskOwnArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::session::Session;
use crate::signals;
use crate::terminal;

/// `kiln disk own`
pub(super) fn own(session: &Session, path: &Path, args: &DiskOwnArgs) -> Result<Exit, Failure> {
    if args.leave {
        let was_there = Store::retire(path).map_err(refused)?;
        terminal::say(if was_there { "the owner has left" } else { "the pool has no owner" });
        return Ok(Exit::Success);
    }
    let configured = || session.config.text("disk.idle").and_then(|text| text.parse().ok());
    let idle = args.idle.or_else(configured).map_or(Duration::from_secs(5), TimeLimit::get);
    if args.detached {
        detach();
    }
    let opened = Owner::open(path, &pool::layers(session)).inspect_err(|error| {
        if args.detached {
            tell_readiness(Some(error));
        }
    });
    let owner = match opened.map_err(refused)? {
        Opened::Owner(owner) => owner,
        Opened::Already => {
            if args.detached {
                tell_readiness(None);
            } else {
                terminal::say("another process owns the pool already");
            }
            return Ok(Exit::Success);
        }
    };
    let dismissal = owner.dismissal();
    signals::when_told_to_end(move || dismissal.dismiss())?;
    if args.detached {
        tell_readiness(None);
    } else {
        terminal::say(&format!("listening on {} until Ctrl-C", owner.socket().display()));
    }
    owner.run(idle).map_err(refused)?;
    Ok(Exit::Success)
}
