//! `kiln disk serve`: disks over NBD, vhost-user and FUSE, by the pool's owner.

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use kiln_export::nbd::Address;
use kiln_store::{Credentials, Frontend, Lease, Serve, Served};
use serde_json::json;

use super::{metrics, pool};
use crate::arguments::DiskServeArgs;
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::signals::{self, Heard};
use crate::terminal;

/// Why serving ends.
enum End {
    /// Somebody wants it.
    Told,
    /// The owner was killed, or told to leave.
    OwnerGone,
}

/// `kiln disk serve`
pub(super) fn serve(session: &Session, pool: &Path, args: &DiskServeArgs) -> Result<Exit, Failure> {
    let store = pool::owner(session, pool)?;
    // Before anybody can know that there is something to end.
    let (tell, told) = mpsc::channel();
    let signalled = tell.clone();
    signals::listen(move |signal| {
        if signal != Heard::Resized {
            // Fails when we are ending already.
            let _ = signalled.send(End::Told);
        }
    })
    .tried(|| "cannot listen for signals".to_owned())
    .exits(Exit::InfrastructureBroke)?;
    let serve = Serve {
        names: args.names.clone(),
        frontends: frontends(&session.folder, args),
        read_only: args.read_only,
        shared: args.shared,
    };
    let lease = store.serve(&serve).map_err(|error| pool::explained(&store, error))?;
    watch(&lease, tell)?;
    let metrics = args.metrics.as_ref().map(|address| metrics::listen(session, pool, address));
    let _metrics = metrics.transpose()?;
    say(session, &serve, lease.served())?;
    match told.recv() {
        Ok(End::OwnerGone) => {
            let text = "the pool's owner is gone, and with it what it served";
            Err(Failure::new(Exit::InfrastructureBroke, text)
                .hint("what clients flushed is stored; start serving again"))
        }
        // The other end goes with the process alone.
        Ok(End::Told) | Err(_) => {
            let cut_off = lease.end().map_err(pool::refused)?;
            if cut_off > 0 {
                terminal::say(&format!("warning: {cut_off} clients were hung up on"));
            }
            Ok(Exit::Success)
        }
    }
}

/// Hears of the owner's end.
fn watch(lease: &Lease, tell: mpsc::Sender<End>) -> Result<(), Failure> {
    let failed = || "cannot watch the pool's owner".to_owned();
    let watch = lease.watch().tried(failed).exits(Exit::InfrastructureBroke)?;
    let Some(watch) = watch else { return Ok(()) };
    let started = std::thread::Builder::new().name("owner-watch".to_owned()).spawn(move || {
        watch.wait();
        // Fails when we are ending already.
        let _ = tell.send(End::OwnerGone);
    });
    started.map(drop).tried(failed).exits(Exit::InfrastructureBroke)
}

/// The ways that were asked for; paths start at this process's folder, for the owner has another.
fn frontends(folder: &Path, args: &DiskServeArgs) -> Vec<Frontend> {
    let absolute = |path: &PathBuf| folder.join(path);
    let nbd = args.nbd.iter().map(|address| {
        let address = match address {
            Address::Unix(path) => Address::Unix(absolute(path)),
            other => other.clone(),
        };
        let tls = args
            .tls
            .as_ref()
            .map(|folder| Credentials { folder: absolute(folder), verify_clients: false });
        Frontend::Nbd { address: address.to_string(), tls }
    });
    let vhost_user = args
        .vhost_user
        .iter()
        .map(|path| Frontend::VhostUser { path: absolute(path), serial: None });
    let fuse = args.fuse.iter().map(|dir| Frontend::Fuse { dir: absolute(dir) });
    let ublk = args.ublk.then_some(Frontend::Ublk);
    nbd.chain(vhost_user).chain(fuse).chain(ublk).collect()
}

fn kind(frontend: Option<&Frontend>) -> &'static str {
    match frontend {
        Some(Frontend::Nbd { .. }) => "nbd",
        Some(Frontend::VhostUser { .. }) => "vhost-user",
        Some(Frontend::Fuse { .. }) => "fuse",
        _ => "ublk",
    }
}

/// Says how clients reach the disks.
fn say(session: &Session, serve: &Serve, served: &[Served]) -> Result<(), Failure> {
    let of = |served: &Served| {
        usize::try_from(served.frontend).ok().and_then(|at| serve.frontends.get(at))
    };
    if session.json() {
        let exports: Vec<_> = served
            .iter()
            .map(|one| {
                json!({
                    "name": one.name, "kind": kind(of(one)), "uri": one.uri, "size": one.size,
                    "read_only": one.read_only,
                })
            })
            .collect();
        let address = served.first().map(|one| &one.address);
        return session.out_json(&json!({"address": address, "exports": exports}));
    }
    for one in served {
        terminal::out_line(&one.uri)?;
    }
    terminal::say("serving until Ctrl-C");
    Ok(())
}
