//! `kiln disk`: virtual disks in a pool. A command opens the pool, does its work and closes it.

pub(crate) mod contents;
mod serve;
mod store;
mod transfer;
mod tree;

use kiln_block::{BlockDevice as _, ByteLen, Extent, ExtentKind};
use kiln_parallax::{DiskInfo, DiskOptions, Durability, PoolError};
use serde_json::{Value, json};

use self::contents::Named;
use self::store::{Name, Store};
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
    let path = store::path(session, args.pool.as_deref());
    match &args.command {
        DiskCommand::Create(args) => {
            let name = Name::disk(&args.name)?;
            create(session, &Store::open_or_create(&path)?, name, args)
        }
        DiskCommand::Import(args) => transfer::import(session, &path, args),
        DiskCommand::Export(args) => transfer::export(session, &path, args),
        DiskCommand::Verify(args) => transfer::verify(session, &path, args),
        DiskCommand::Repair => transfer::sound(session, &Store::repair(&path)?, true),
        DiskCommand::Serve(args) => serve::serve(session, &path, args),
        DiskCommand::Tree(args) if !path.exists() => tree::draw(session, Vec::new(), args.to),
        DiskCommand::Tree(args) => {
            let store = Store::open(&path)?;
            let nodes = tree::nodes(&store.pool).map_err(|error| store.refused(error))?;
            tree::draw(session, nodes, args.to)
        }
        DiskCommand::Ls if !path.exists() => list(session, &[]),
        DiskCommand::Ls => list(session, &Store::open(&path)?.pool.disks()),
        DiskCommand::Snap(args) => snap(session, &Store::open(&path)?, args),
        DiskCommand::Snaps(args) => snapshots(session, &Store::open(&path)?, &args.name),
        DiskCommand::Clone(args) => clone(session, &Store::open(&path)?, args),
        DiskCommand::Rollback(args) => {
            let (disk, snapshot) = Name::snapshot(&args.snapshot)?;
            let store = Store::open(&path)?;
            store.pool.rollback(disk, snapshot).map_err(|error| store.refused(error))?;
            done(session, json!({"name": disk, "is": args.snapshot}), || {
                format!("{disk} is what {} was", args.snapshot)
            })
        }
        DiskCommand::Diff(args) => diff(session, &Store::open(&path)?, args),
        DiskCommand::Stat(args) => stat(session, &Store::open(&path)?, &args.name),
        DiskCommand::Resize(args) => resize(session, &Store::open(&path)?, args),
        DiskCommand::Rename(args) => {
            let (from, to) = (Name::disk(&args.name)?, Name::disk(&args.new)?);
            let store = Store::open(&path)?;
            store.pool.rename(from, to).map_err(|error| store.refused(error))?;
            done(session, json!({"name": to, "was": from}), || format!("{from} is called {to}"))
        }
        DiskCommand::Rm(args) => remove(session, &Store::open(&path)?, args),
        DiskCommand::Gc => collect(session, &Store::open(&path)?),
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

fn options(args: &DiskOptionArgs) -> Result<DiskOptions, Failure> {
    if !args.quota.is_aligned(contents::BLOCK) {
        let text = format!("a quota of {} is not whole blocks of 4K", args.quota);
        return Err(Failure::new(Exit::Usage, text));
    }
    let durability = if args.throw_away { Durability::None } else { Durability::Full };
    Ok(DiskOptions { durability, quota: args.quota })
}

fn create(
    session: &Session,
    store: &Store,
    name: &str,
    args: &DiskCreateArgs,
) -> Result<Exit, Failure> {
    let made = store.pool.create_disk(name, args.size, &options(&args.options)?);
    made.map_err(|error| store.refused(error))?;
    let json = json!({"name": name, "size": args.size.get()});
    done(session, json, || format!("created {name}, {}", args.size))
}

fn info_json(disk: &DiskInfo) -> Value {
    let origin = disk.origin.as_ref().map(|(disk, snapshot)| format!("{disk}@{snapshot}"));
    json!({
        "name": disk.name, "size": disk.size.get(), "referenced": disk.referenced.get(),
        "written": disk.written.get(), "quota": disk.quota.get(), "created": disk.created,
        "throw_away": disk.durability == Durability::None, "origin": origin,
    })
}

fn list(session: &Session, disks: &[DiskInfo]) -> Result<Exit, Failure> {
    if session.json() {
        session.out_json(&disks.iter().map(info_json).collect::<Vec<_>>())?;
        return Ok(Exit::Success);
    }
    if disks.is_empty() {
        terminal::say("no disks yet: kiln disk create NAME --size 10G");
    }
    for disk in disks {
        let origin = disk.origin.as_ref().map_or_else(String::new, |(disk, snapshot)| {
            format!("from {}@{}", hostile::line(disk), hostile::line(snapshot))
        });
        let (name, size) = (hostile::line(&disk.name), disk.size.to_string());
        let used = rows::mebibytes(disk.referenced.get());
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
            (Name::disk(&args.name)?, args.snapshot.clone().unwrap_or(now))
        }
    };
    store.pool.snapshot(disk, &snapshot).map_err(|error| store.refused(error))?;
    let json = json!({"disk": disk, "snapshot": snapshot, "name": format!("{disk}@{snapshot}")});
    done(session, json, || format!("{disk}@{snapshot}"))
}

fn snapshots(session: &Session, store: &Store, name: &str) -> Result<Exit, Failure> {
    let disk = Name::disk(name)?;
    let all = store.pool.snapshots(disk).map_err(|error| store.refused(error))?;
    if session.json() {
        let all: Vec<_> = all
            .iter()
            .map(|snapshot| {
                json!({
                    "name": format!("{disk}@{}", snapshot.name), "snapshot": snapshot.name,
                    "size": snapshot.size.get(), "referenced": snapshot.referenced.get(),
                    "children": snapshot.children, "created": snapshot.created,
                })
            })
            .collect();
        session.out_json(&all)?;
        return Ok(Exit::Success);
    }
    for snapshot in &all {
        let name = format!("{}@{}", hostile::line(disk), hostile::line(&snapshot.name));
        let used = rows::mebibytes(snapshot.referenced.get());
        let size = snapshot.size.to_string();
        terminal::out_line(&format!("{name:<36} {size:>8} {used:>11} used"))?;
    }
    Ok(Exit::Success)
}

fn clone(session: &Session, store: &Store, args: &DiskCloneArgs) -> Result<Exit, Failure> {
    let (disk, snapshot) = Name::snapshot(&args.snapshot)?;
    let name = Name::disk(&args.name)?;
    let made = store.pool.clone_disk(disk, snapshot, name, &options(&args.options)?);
    made.map_err(|error| store.refused(error))?;
    let json = json!({"name": name, "origin": args.snapshot});
    done(session, json, || format!("cloned {name} from {}", args.snapshot))
}

fn stat(session: &Session, store: &Store, name: &str) -> Result<Exit, Failure> {
    let disk = Name::disk(name)?;
    let refused = |error| store.refused(error);
    let info = store.pool.stat(disk).map_err(refused)?;
    let unique = store.pool.unique(disk).map_err(refused)?;
    let snapshots = store.pool.snapshots(disk).map_err(refused)?.len();
    if session.json() {
        let mut json = info_json(&info);
        json["unique"] = unique.get().into();
        json["snapshots"] = snapshots.into();
        session.out_json(&json)?;
        return Ok(Exit::Success);
    }
    let limit =
        |quota: ByteLen| if quota.is_zero() { "none".to_owned() } else { quota.to_string() };
    let origin =
        info.origin.map_or("none".to_owned(), |(disk, snapshot)| format!("{disk}@{snapshot}"));
    let flushes = if info.durability == Durability::None { "do nothing" } else { "are durable" };
    for (what, value) in [
        ("size", info.size.to_string()),
        ("referenced", info.referenced.to_string()),
        ("freed if removed", unique.to_string()),
        ("written so far", info.written.to_string()),
        ("quota", limit(info.quota)),
        ("flushes", flushes.to_owned()),
        ("origin", origin),
        ("snapshots", snapshots.to_string()),
    ] {
        terminal::out_line(&format!("{what:<17} {}", hostile::line(&value)))?;
    }
    Ok(Exit::Success)
}

fn resize(session: &Session, store: &Store, args: &DiskResizeArgs) -> Result<Exit, Failure> {
    let disk = Name::disk(&args.name)?;
    let was = store.pool.stat(disk).map_err(|error| store.refused(error))?.size;
    if args.size < was && !args.shrink {
        let text = format!("{disk} has {was}; what lies behind {} would be lost", args.size);
        return Err(Failure::new(Exit::Usage, text).hint("add --shrink if that is what you want"));
    }
    store.pool.resize(disk, args.size).map_err(|error| store.refused(error))?;
    store.close()?;
    let json = json!({"name": disk, "size": args.size.get(), "was": was.get()});
    done(session, json, || format!("{disk} has {}, it had {was}", args.size))
}

fn remove(session: &Session, store: &Store, args: &DiskRemoveArgs) -> Result<Exit, Failure> {
    let refused = |error| store.refused(error);
    // All are looked up before the first is gone.
    for name in &args.names {
        drop(store.device(name)?);
    }
    let mut removed = Vec::new();
    for name in &args.names {
        match Name::of(name) {
            Name { disk, snapshot: Some(snapshot) } => {
                store.pool.delete_snapshot(disk, snapshot).map_err(refused)?;
            }
            Name { disk, snapshot: None } => {
                let all = if args.snapshots {
                    store.pool.snapshots(disk).map_err(refused)?
                } else {
                    Vec::new()
                };
                for snapshot in all {
                    store.pool.delete_snapshot(disk, &snapshot.name).map_err(refused)?;
                    removed.push(format!("{disk}@{}", snapshot.name));
                }
                store.pool.delete(disk).map_err(refused)?;
            }
        }
        removed.push(name.clone());
    }
    done(session, json!({"removed": removed}), || format!("removed {}", removed.join(", ")))
}

fn collect(session: &Session, store: &Store) -> Result<Exit, Failure> {
    let before = store.pool.space();
    store.pool.gc().map_err(|error| store.refused(error))?;
    let after = store.pool.space();
    let freed = before.used.saturating_sub(after.used);
    let json = json!({
        "freed": freed.get(), "used": after.used.get(), "available": after.available.get(),
        "total": after.total.get(),
    });
    done(session, json, || {
        let [freed, used, available] =
            [freed, after.used, after.available].map(|len| rows::mebibytes(len.get()));
        format!("freed {freed}; {used} used, {available} available")
    })
}

fn diff(session: &Session, store: &Store, args: &DiskDiffArgs) -> Result<Exit, Failure> {
    let (from, to) = (Name::of(&args.from), Name::of(&args.to));
    let found = match from.snapshot {
        Some(snapshot) if from.disk == to.disk => store
            .pool
            .diff(from.disk, snapshot, to.snapshot)
            .map_err(|error: PoolError| store.refused(error))?,
        _ => {
            let (old, new) = (store.device(&args.from)?, store.device(&args.to)?);
            let old = Named { device: &old, name: &args.from };
            let new = Named { device: &new, name: &args.to };
            contents::differences(old, new).map_err(contents::ContentsError::explained)?
        }
    };
    if session.json() {
        let (old, new) = (store.device(&args.from)?.size(), store.device(&args.to)?.size());
        session.out_json(&json!({
            "from": args.from, "to": args.to, "from_size": old.get(), "to_size": new.get(),
            "ranges": extents_json(&found),
        }))?;
    } else {
        out_extents(&found)?;
    }
    Ok(Exit::Success)
}

/// What is at a place now, in a word.
fn word(kind: ExtentKind) -> &'static str {
    match kind {
        ExtentKind::Data => "data",
        ExtentKind::Zero | ExtentKind::Hole => "hole",
    }
}

fn extents_json(extents: &[Extent]) -> Vec<Value> {
    extents
        .iter()
        .map(|extent| json!({"at": extent.at.get(), "len": extent.len.get(), "kind": word(extent.kind)}))
        .collect()
}

fn out_extents(extents: &[Extent]) -> Result<(), Failure> {
    for extent in extents {
        let (at, len) = (extent.at.get(), extent.len.to_string());
        terminal::out_line(&format!("{at:>16} {len:>8} {}", word(extent.kind)))?;
    }
    Ok(())
}
