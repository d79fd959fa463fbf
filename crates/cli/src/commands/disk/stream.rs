//! `kiln disk send` and `receive`: snapshots from one pool to another.

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::path::Path;

use kiln_block::ByteLen;
use kiln_store::{Reply, Request};
use serde_json::json;

use super::{pool, transfer};
use crate::arguments::{DiskReceiveArgs, DiskSendArgs};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::hostile;
use crate::session::Session;
use crate::terminal;

/// stdout as a file that the pool's owner can write to.
pub(super) fn stdout(what: &str, hint: &str) -> Result<File, Failure> {
    let stdout = std::io::stdout();
    if stdout.is_terminal() {
        let text = format!("{what} is nothing for a terminal");
        return Err(Failure::new(Exit::Usage, text).hint(hint.to_owned()));
    }
    let file = stdout.as_fd().try_clone_to_owned();
    file.map(File::from).tried(|| "cannot write to stdout".to_owned()).exits(Exit::Setup)
}

fn stdin() -> Result<File, Failure> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let hint =
            "kiln disk send NAME@SNAP | kiln disk receive, or kiln disk receive --input FILE";
        return Err(Failure::new(Exit::Usage, "no stream comes from a terminal").hint(hint));
    }
    let file = stdin.as_fd().try_clone_to_owned();
    file.map(File::from).tried(|| "cannot read stdin".to_owned()).exits(Exit::Setup)
}

/// `kiln disk send`
pub(super) fn send(session: &Session, path: &Path, args: &DiskSendArgs) -> Result<Exit, Failure> {
    let (disk, snapshot) = pool::snapshot(&args.snapshot)?;
    let output = args.output.as_deref().map(transfer::Output::beside).transpose()?;
    let (file, name) = match (&output, &args.output) {
        (Some(output), Some(path)) => (output.file()?, path.display().to_string()),
        _ => (stdout("a stream", "kiln disk send NAME@SNAP --output FILE")?, "stdout".to_owned()),
    };
    // The other end of `--from` may be told as it is listed.
    let from = args.from.as_deref().map(|from| match pool::snapshot(from) {
        Ok((of, snapshot)) if of == disk => Ok(snapshot.to_owned()),
        Ok((of, _)) => {
            let text = format!("{from} is a snapshot of {of}, and what is sent is one of {disk}");
            Err(Failure::new(Exit::Usage, text).hint(format!("kiln disk snaps {disk}")))
        }
        Err(_) => Ok(from.to_owned()),
    });
    let store = pool::owner(session, path)?;
    let request = Request::Send {
        disk: disk.to_owned(),
        snapshot: snapshot.to_owned(),
        from: from.transpose()?,
        compress: args.compress,
        resume: args.resume.clone(),
        file: name.clone(),
    };
    let reply = transfer::ask(&store, request, vec![file])?;
    let Reply::Sent { data, bytes } = reply else { return Err(pool::unexpected(&reply)) };
    let Some(output) = output else {
        terminal::say(&format!(
            "sent {}, {} in {} of stream",
            hostile::line(&args.snapshot),
            ByteLen::new(data),
            ByteLen::new(bytes)
        ));
        return Ok(Exit::Success);
    };
    output.persist()?;
    if session.json() {
        session.out_json(&json!({
            "name": args.snapshot, "from": args.from, "path": args.output, "data": data,
            "bytes": bytes,
        }))?;
    } else {
        terminal::out_line(&name)?;
    }
    Ok(Exit::Success)
}

/// `kiln disk receive`
pub(super) fn receive(
    session: &Session,
    path: &Path,
    args: &DiskReceiveArgs,
) -> Result<Exit, Failure> {
    if args.unfinished {
        return unfinished(session, path);
    }
    let name = args.name.as_deref().map(pool::disk).transpose()?;
    let (file, from) = match &args.input {
        Some(path) => {
            let shown = path.display().to_string();
            let file = File::open(path).tried(|| format!("cannot open {shown}"));
            (file.exits(Exit::Usage)?, shown)
        }
        None => (stdin()?, "stdin".to_owned()),
    };
    pool::make(path)?;
    let store = pool::owner(session, path)?;
    let request = Request::Receive { disk: name.map(str::to_owned), file: from };
    let reply = transfer::ask(&store, request, vec![file])?;
    let Reply::Received { disk, snapshot, size, written, bytes } = reply else {
        return Err(pool::unexpected(&reply));
    };
    let name = format!("{disk}@{snapshot}");
    if session.json() {
        session.out_json(&json!({
            "name": name, "disk": disk, "snapshot": snapshot, "size": size, "written": written,
            "bytes": bytes,
        }))?;
    } else {
        let (name, size, written) =
            (hostile::line(&name), ByteLen::new(size), ByteLen::new(written));
        terminal::out_line(&format!("received {name}, {size}, of which {written} were written"))?;
    }
    Ok(Exit::Success)
}

/// Lists what was cut off.
fn unfinished(session: &Session, path: &Path) -> Result<Exit, Failure> {
    let reply = pool::ask(&pool::open(session, path)?, Request::Partials)?;
    let Reply::Partials { partials } = reply else { return Err(pool::unexpected(&reply)) };
    if session.json() {
        session.out_json(&json!(partials))?;
        return Ok(Exit::Success);
    }
    if partials.is_empty() {
        terminal::say("nothing was cut off");
    }
    for partial in &partials {
        let (of, received, size) = (
            hostile::line(&partial.of),
            ByteLen::new(partial.received),
            ByteLen::new(partial.size),
        );
        terminal::out_line(&format!("{of:<24} {received:>10} of {size:>8}  {}", partial.token))?;
    }
    if let Some(first) = partials.first() {
        terminal::say(&format!(
            "hint: kiln disk send {} --resume TOKEN goes on; kiln disk rm {} gives up",
            hostile::line(&first.of),
            first.name
        ));
    }
    Ok(Exit::Success)
}
