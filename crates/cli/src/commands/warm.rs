//! `kiln warm`: listing and removing saved machines.

use std::time::{Duration, SystemTime};

use kiln_model::scenario::duration;
use kiln_runner::warm::{PruneLimits, SavedMachine, WarmError, WarmStore};
use kiln_store::{Reply, Request};
use serde_json::json;

use super::target;
use crate::arguments::{WarmCommand, WarmNameArgs, WarmPruneArgs};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::hostile;
use crate::reporter::rows;
use crate::session::Session;
use crate::terminal;

/// `kiln warm`
pub(crate) fn warm(session: &Session, command: &WarmCommand) -> Result<Exit, Failure> {
    let store = WarmStore::at(&target::warm(session));
    match command {
        WarmCommand::Ls => list(session, &store),
        WarmCommand::Rm(args) => remove(session, &store, args),
        WarmCommand::Prune(args) => prune(session, &store, args),
    }
}

fn row(machine: &SavedMachine) -> String {
    let key: String = machine.key.chars().take(16).collect();
    let age = SystemTime::now().duration_since(machine.used).unwrap_or_default();
    let age = rows::seconds(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    let Some(about) = &machine.about else {
        return format!("{key}  {:>10}  used {age:>7} ago  damaged", "");
    };
    let moment = about
        .after
        .as_ref()
        .map_or_else(|| "ready".to_owned(), |stage| format!("after {}", hostile::line(stage)));
    let memory = rows::mebibytes(about.memory);
    let stale = if machine.usable { "" } else { ", of another boot of this host" };
    format!(
        "{key}  {:>10}  used {age:>7} ago  {} with {memory}, {moment}{stale}",
        rows::mebibytes(about.bytes),
        hostile::line(&about.kernel),
    )
}

fn as_json(machine: &SavedMachine) -> serde_json::Value {
    let used = machine.used.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    json!({
        "key": machine.key, "used": used.as_secs(), "usable": machine.usable,
        "about": machine.about,
    })
}

fn bytes_of(machines: &[SavedMachine]) -> u64 {
    machines.iter().filter_map(|machine| Some(machine.about.as_ref()?.bytes)).sum()
}

/// Removes the disks that were kept with machines that are gone. Those that are in use, or in a pool that cannot be
/// opened, are left to `kiln disk rm`.
fn remove_disks(machines: &[SavedMachine]) {
    for (pool, prefix) in
        machines.iter().filter_map(|machine| machine.about.as_ref()?.disks.as_ref())
    {
        let Ok(store) = target::pool_access().open(pool) else { continue };
        let Ok(Reply::Disks { disks }) = store.ask(Request::List) else { continue };
        let theirs = disks.into_iter().filter(|disk| disk.name.starts_with(prefix.as_str()));
        for disk in theirs {
            let removed = store.ask(Request::Remove { names: vec![disk.name], snapshots: true });
            if let Err(error) = removed {
                terminal::say(&format!("warning: {}", hostile::line(&error.to_string())));
            }
        }
    }
}

fn list(session: &Session, store: &WarmStore) -> Result<Exit, Failure> {
    let machines = store.list().exits(Exit::InfrastructureBroke)?;
    if session.json() {
        session.out_json(&machines.iter().map(as_json).collect::<Vec<_>>())?;
        return Ok(Exit::Success);
    }
    if machines.is_empty() {
        terminal::say("no saved machines yet: a run or a shell saves its first one");
    }
    for machine in &machines {
        terminal::out_line(&row(machine))?;
    }
    Ok(Exit::Success)
}

fn remove(session: &Session, store: &WarmStore, args: &WarmNameArgs) -> Result<Exit, Failure> {
    let removed = store.remove(&args.machine).map_err(|error| {
        let exit = match error {
            WarmError::NoSuch { .. } => Exit::Usage,
            WarmError::Folder { .. } => Exit::InfrastructureBroke,
        };
        Failure::from(error).with_exit(exit).hint("kiln warm ls")
    })?;
    remove_disks(std::slice::from_ref(&removed));
    if session.json() {
        session.out_json(&json!({"removed": as_json(&removed)}))?;
    } else {
        terminal::out_line(&format!("removed {}", row(&removed)))?;
    }
    Ok(Exit::Success)
}

fn prune(session: &Session, store: &WarmStore, args: &WarmPruneArgs) -> Result<Exit, Failure> {
    let unused_for: Duration = match args.unused_for.as_str() {
        "0" | "0s" => Duration::ZERO,
        text => duration(text).tried(|| "--unused-for".to_owned()).exits(Exit::Usage)?,
    };
    let limits = PruneLimits { max_age: Some(unused_for), dry_run: args.dry_run };
    let pruned = store.prune(&limits).exits(Exit::InfrastructureBroke)?;
    let bytes = bytes_of(&pruned);
    if !args.dry_run {
        remove_disks(&pruned);
    }
    if session.json() {
        session.out_json(&json!({
            "dry_run": args.dry_run,
            "removed": pruned.iter().map(as_json).collect::<Vec<_>>(),
            "bytes": bytes,
        }))?;
        return Ok(Exit::Success);
    }
    let verb = if args.dry_run { "would remove" } else { "removed" };
    for machine in &pruned {
        terminal::out_line(&format!("{verb} {}", row(machine)))?;
    }
    let count = pruned.len();
    terminal::out_line(&format!("{verb} {count} saved machines, {}", rows::mebibytes(bytes)))?;
    Ok(Exit::Success)
}
