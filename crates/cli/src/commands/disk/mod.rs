//! `kiln disk`: virtual disks in a pool. A command asks the pool's owner, or opens the pool itself where there is none.

mod metrics;
mod own;
pub(crate) mod pool;
mod serve;
mod stream;
mod top;
mod transfer;
mod tree;

use std::path::Path;

use kiln_block::ByteLen;
use kiln_store::{DiskStat, Kind, Name, NewDisk, Range, Reply, Request, Store};
use serde_json::{Value, json};

use self::pool::unexpected;
use crate::arguments::{
    DiskArgs, DiskCloneArgs, DiskCommand, DiskCreateArgs, DiskDiffArgs, DiskOptionArgs,
    DiskRemoveArgs, DiskResizeArgs, DiskSnapArgs,
};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::reporter::rows;
use crate::session::Session;
use crate::terminal::{self, Tone, paint};
use crate::{hostile, run_id};

/// `kiln disk`
pub(crate) fn disk(session: &Session, args: &DiskArgs) -> Result<Exit, Failure> {
    let path = pool::path(session, args.pool.as_deref());
    let open = || pool::open(session, &path);
    match &args.command {
        DiskCommand::Create(args) => create(session, &path, args),
        DiskCommand::Import(args) => transfer::import(session, &path, args),
        DiskCommand::Export(args) => transfer::export(session, &path, args),
        DiskCommand::Send(args) => stream::send(session, &path, args),
        DiskCommand::Receive(args) => stream::receive(session, &path, args),
        DiskCommand::Verify(args) => transfer::verify(session, &path, args),
        DiskCommand::Repair => {
            let store = Store::repair(&path, &pool::layers(session)).map_err(pool::refused)?;
            for loss in store.losses() {
                terminal::say(&format!("lost: {}", hostile::line(loss)));
            }
            transfer::sound(session, &store, true)
        }
        DiskCommand::Serve(args) => serve::serve(session, &path, args),
        DiskCommand::Own(args) => own::own(session, &path, args),
        DiskCommand::Tree(args) if !path.exists() => tree::draw(session, Vec::new(), args.to),
        DiskCommand::Tree(args) => tree::draw(session, pool::nodes(&open()?)?, args.to),
        DiskCommand::Top(args) => top::top(session, &path, args),
        DiskCommand::Metrics(args) => metrics::metrics(session, &path, args),
        DiskCommand::Ls if !path.exists() => list(session, &[]),
        DiskCommand::Ls => match pool::ask(&open()?, Request::List)? {
            Reply::Disks { disks } => list(session, &disks),
            other => Err(unexpected(&other)),
        },
        DiskCommand::Snap(args) => snap(session, &open()?, args),
        DiskCommand::Snaps(args) => snapshots(session, &open()?, &args.name),
        DiskCommand::Clone(args) => clone(session, &open()?, args),
        DiskCommand::Rollback(args) => {
            let (disk, snapshot) = pool::snapshot(&args.snapshot)?;
            let request =
                Request::Rollback { disk: disk.to_owned(), snapshot: snapshot.to_owned() };
            pool::ask(&open()?, request)?;
            done(session, json!({"name": disk, "is": args.snapshot}), || {
                format!("{disk} is what {} was", args.snapshot)
            })
        }
        DiskCommand::Diff(args) => diff(session, &open()?, args),
        DiskCommand::Stat(args) => stat(session, &open()?, &args.name),
        DiskCommand::Resize(args) => resize(session, &open()?, args),
        DiskCommand::Rename(args) => {
            let (from, to) = (pool::disk(&args.name)?, pool::disk(&args.new)?);
            let request = Request::Rename { disk: from.to_owned(), name: to.to_owned() };
            pool::ask(&open()?, request)?;
            done(session, json!({"name": to, "was": from}), || format!("{from} is called {to}"))
        }
        DiskCommand::Flatten(args) => transfer::flatten(session, &path, &args.name),
        DiskCommand::Rm(args) => remove(session, &open()?, args),
        DiskCommand::Gc => collect(session, &open()?),
    }
}

/// Says what was done.
fn done(session: &Session, json: Value, text: impl Fn() -> String) -> Result<Exit, Failure> {
    match session.json() {
        true => session.out_json(&json)?,
        false => terminal::out_line(&hostile::line(&text()))?,
    }
    Ok(Exit::Success)
}

fn with(args: &DiskOptionArgs) -> NewDisk {
    NewDisk { quota: args.quota.get(), throw_away: args.throw_away }
}

fn create(session: &Session, path: &Path, args: &DiskCreateArgs) -> Result<Exit, Failure> {
    let name = pool::disk(&args.name)?;
    pool::make(path)?;
    let (size, with) = (args.size.get(), with(&args.options));
    let request = Request::Create { name: name.to_owned(), size, with };
    pool::ask(&pool::open(session, path)?, request)?;
    let json = json!({"name": name, "size": size});
    done(session, json, || format!("created {name}, {}", args.size))
}

fn info_json(disk: &DiskStat) -> Value {
    json!({
        "name": disk.name, "size": disk.size, "referenced": disk.referenced,
        "written": disk.written, "quota": disk.quota, "created": disk.created,
        "throw_away": disk.throw_away, "origin": disk.origin,
        "base": disk.base.as_ref().map(|base| json!({"image": base.image, "shown": base.shown})),
    })
}

fn list(session: &Session, disks: &[DiskStat]) -> Result<Exit, Failure> {
    if session.json() {
        session.out_json(&disks.iter().map(info_json).collect::<Vec<_>>())?;
        return Ok(Exit::Success);
    }
    if disks.is_empty() {
        terminal::say("no disks yet: kiln disk create NAME --size 10G");
    }
    for disk in disks {
        let origin = disk.origin.as_ref();
        let origin =
            origin.map_or_else(String::new, |name| format!("from {}", hostile::line(name)));
        let (name, size) = (hostile::line(&disk.name), pool::size(disk.size).to_string());
        let used = rows::mebibytes(disk.referenced);
        let row = format!("{name:<24} {size:>8} {used:>11} used  {}", paint(Tone::Dim, &origin));
        terminal::out_line(row.trim_end())?;
    }
    Ok(Exit::Success)
}

fn snap(session: &Session, store: &Store, args: &DiskSnapArgs) -> Result<Exit, Failure> {
    let (disk, snapshot) = match Name::of(&args.name) {
        Name { disk, snapshot: Some(snapshot) } if args.snapshot.is_none() => {
            (disk, snapshot.to_owned())
        }
        _ => {
            let now = run_id::fresh().map(|id| id.to_string()).unwrap_or_default();
            (pool::disk(&args.name)?, args.snapshot.clone().unwrap_or(now))
        }
    };
    pool::ask(store, Request::Snap { disk: disk.to_owned(), snapshot: snapshot.clone() })?;
    let json = json!({"disk": disk, "snapshot": snapshot, "name": format!("{disk}@{snapshot}")});
    done(session, json, || format!("{disk}@{snapshot}"))
}

fn snapshots(session: &Session, store: &Store, name: &str) -> Result<Exit, Failure> {
    let disk = pool::disk(name)?;
    let reply = pool::ask(store, Request::Snapshots { disk: disk.to_owned() })?;
    let Reply::Snapshots { snapshots: all } = reply else { return Err(unexpected(&reply)) };
    if session.json() {
        let all: Vec<_> = all
            .iter()
            .map(|snapshot| {
                json!({
                    "name": format!("{disk}@{}", snapshot.snapshot),
                    "snapshot": snapshot.snapshot, "size": snapshot.size,
                    "referenced": snapshot.referenced, "children": snapshot.children,
                    "created": snapshot.created,
                })
            })
            .collect();
        session.out_json(&all)?;
        return Ok(Exit::Success);
    }
    for snapshot in &all {
        let name = format!("{}@{}", hostile::line(disk), hostile::line(&snapshot.snapshot));
        let used = rows::mebibytes(snapshot.referenced);
        let size = pool::size(snapshot.size).to_string();
        terminal::out_line(&format!("{name:<36} {size:>8} {used:>11} used"))?;
    }
    Ok(Exit::Success)
}

fn clone(session: &Session, store: &Store, args: &DiskCloneArgs) -> Result<Exit, Failure> {
    let (disk, snapshot) = pool::snapshot(&args.snapshot)?;
    let name = pool::disk(&args.name)?;
    let request = Request::Clone {
        disk: disk.to_owned(),
        snapshot: snapshot.to_owned(),
        name: name.to_owned(),
        with: with(&args.options),
    };
    pool::ask(store, request)?;
    let json = json!({"name": name, "origin": args.snapshot});
    done(session, json, || format!("cloned {name} from {}", args.snapshot))
}

fn stat(session: &Session, store: &Store, name: &str) -> Result<Exit, Failure> {
    let disk = pool::disk(name)?;
    let reply = pool::ask(store, Request::Stat { disk: disk.to_owned() })?;
    let Reply::Disk(info) = reply else { return Err(unexpected(&reply)) };
    let (unique, snapshots) = (info.unique.unwrap_or(0), info.snapshots.unwrap_or(0));
    if session.json() {
        let mut json = info_json(&info);
        json["unique"] = unique.into();
        json["snapshots"] = snapshots.into();
        session.out_json(&json)?;
        return Ok(Exit::Success);
    }
    let bytes = |bytes: u64| ByteLen::new(bytes).to_string();
    let limit = if info.quota == 0 { "none".to_owned() } else { bytes(info.quota) };
    let flushes = if info.throw_away { "do nothing" } else { "are durable" };
    let base = info.base.map(|base| format!("{} of {}", bytes(base.shown), base.image));
    for (what, value) in [
        ("size", bytes(info.size)),
        ("referenced", bytes(info.referenced)),
        ("freed if removed", bytes(unique)),
        ("written so far", bytes(info.written)),
        ("quota", limit),
        ("flushes", flushes.to_owned()),
        ("origin", info.origin.unwrap_or_else(|| "none".to_owned())),
        ("base", base.unwrap_or_else(|| "none".to_owned())),
        ("snapshots", snapshots.to_string()),
    ] {
        terminal::out_line(&format!("{what:<17} {}", hostile::line(&value)))?;
    }
    Ok(Exit::Success)
}

fn resize(session: &Session, store: &Store, args: &DiskResizeArgs) -> Result<Exit, Failure> {
    let disk = pool::disk(&args.name)?;
    let (size, shrink) = (args.size.get(), args.shrink);
    let reply = pool::ask(store, Request::Resize { disk: disk.to_owned(), size, shrink })?;
    let Reply::Resized { was } = reply else { return Err(unexpected(&reply)) };
    let json = json!({"name": disk, "size": size, "was": was});
    done(session, json, || format!("{disk} has {}, it had {}", args.size, ByteLen::new(was)))
}

fn remove(session: &Session, store: &Store, args: &DiskRemoveArgs) -> Result<Exit, Failure> {
    let request = Request::Remove { names: args.names.clone(), snapshots: args.snapshots };
    let reply = pool::ask(store, request)?;
    let Reply::Removed { removed } = reply else { return Err(unexpected(&reply)) };
    done(session, json!({"removed": removed}), || format!("removed {}", removed.join(", ")))
}

fn collect(session: &Session, store: &Store) -> Result<Exit, Failure> {
    let reply = pool::ask(store, Request::Gc)?;
    let Reply::Collected { freed, space } = reply else { return Err(unexpected(&reply)) };
    let json = json!({
        "freed": freed, "used": space.used, "available": space.available, "total": space.total,
    });
    done(session, json, || {
        let [freed, used, available] = [freed, space.used, space.available].map(rows::mebibytes);
        format!("freed {freed}; {used} used, {available} available")
    })
}

fn diff(session: &Session, store: &Store, args: &DiskDiffArgs) -> Result<Exit, Failure> {
    let request = Request::Diff { from: args.from.clone(), to: args.to.clone() };
    let reply = pool::ask(store, request)?;
    let Reply::Ranges { from_size, to_size, ranges } = reply else {
        return Err(unexpected(&reply));
    };
    if session.json() {
        session.out_json(&json!({
            "from": args.from, "to": args.to, "from_size": from_size, "to_size": to_size,
            "ranges": ranges_json(&ranges),
        }))?;
    } else {
        out_ranges(&ranges)?;
    }
    Ok(Exit::Success)
}

/// What is at a place now, in a word.
fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Data => "data",
        Kind::Hole => "hole",
    }
}

fn ranges_json(ranges: &[Range]) -> Vec<Value> {
    let range = |Range(at, len, kind): &Range| json!({"at": at, "len": len, "kind": word(*kind)});
    ranges.iter().map(range).collect()
}

fn out_ranges(ranges: &[Range]) -> Result<(), Failure> {
    for Range(at, len, kind) in ranges {
        let len = ByteLen::new(*len).to_string();
        terminal::out_line(&format!("{at:>16} {len:>8} {}", word(*kind)))?;
    }
    Ok(())
}
