//! `kiln disk serve`: disks over NBD, vhost-user and FUSE, by the pool's owner.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kiln_export::nbd::Address;
use kiln_store::{Credentials, Frontend, Lease, Parting, Serve, Served};
use serde_json::json;

use super::{metrics, pool};
use crate::arguments::DiskServeArgs;
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::signals;
use crate::terminal;

/// An owner that is killed this soon was probably killed by what is served.
const SOON: Duration = Duration::from_secs(2);
/// How often in a row that may happen.
const TOO_OFTEN: u32 = 5;

/// What happens while disks are served.
enum Heard {
    /// Somebody wants it to end.
    Enough,
    /// The owner is gone.
    Gone(Parting),
}

/// `kiln disk serve`
pub(super) fn serve(session: &Session, pool: &Path, args: &DiskServeArgs) -> Result<Exit, Failure> {
    // Before anybody can know that there is something to end.
    let (tell, told) = mpsc::channel();
    let signalled = tell.clone();
    signals::when_told_to_end(move || {
        // Fails when we are ending already.
        let _ = signalled.send(Heard::Enough);
    })?;
    let mut serve = Serve {
        names: args.names.clone(),
        frontends: frontends(&session.folder, args),
        read_only: args.read_only,
        shared: args.shared,
    };
    let mut said: Vec<Served> = Vec::new();
    let mut metrics = None;
    let mut often = 0;
    loop {
        let begun = Instant::now();
        let lease = begin(session, pool, &serve, &tell)?;
        if let (None, Some(address)) = (&metrics, &args.metrics) {
            metrics = Some(metrics::listen(session, pool, address)?);
        }
        if lease.served() != said {
            said = lease.served().to_vec();
            say(session, &serve, &said)?;
            stay(&mut serve, &said);
        }
        match told.recv() {
            // The other end goes with the process alone.
            Ok(Heard::Enough) | Err(_) => return end(lease),
            Ok(Heard::Gone(Parting::Said)) => {
                let text = "the pool's owner was told to leave";
                return Err(Failure::new(Exit::InfrastructureBroke, text)
                    .hint("everything is stored; start serving again"));
            }
            Ok(Heard::Gone(Parting::Silent)) => {
                often = if begun.elapsed() < SOON { often + 1 } else { 0 };
                if often > TOO_OFTEN {
                    let text = "the pool's owner is killed again and again";
                    return Err(Failure::new(Exit::InfrastructureBroke, text)
                        .hint("everything flushed is stored; kiln disk verify looks at it"));
                }
                terminal::say("the pool's owner was killed; another one goes on serving");
            }
        }
    }
}

/// Has disks served, and hears of the owner's end.
fn begin(
    session: &Session,
    pool: &Path,
    serve: &Serve,
    tell: &mpsc::Sender<Heard>,
) -> Result<Lease, Failure> {
    let store = pool::owner(session, pool)?;
    let lease = store.serve(serve).map_err(|error| pool::explained(&store, error))?;
    let failed = || "cannot watch the pool's owner".to_owned();
    if let Some(watch) = lease.watch().tried(failed).exits(Exit::InfrastructureBroke)? {
        let tell = tell.clone();
        let watching = std::thread::Builder::new().name("owner-watch".to_owned());
        let started = watching.spawn(move || {
            // Fails when we are ending already.
            let _ = tell.send(Heard::Gone(watch.wait()));
        });
        started.tried(failed).exits(Exit::InfrastructureBroke)?;
    }
    Ok(lease)
}

/// Ends serving as clients would have it.
fn end(lease: Lease) -> Result<Exit, Failure> {
    let cut_off = lease.end().map_err(pool::refused)?;
    if cut_off > 0 {
        terminal::say(&format!("warning: {cut_off} clients were hung up on"));
    }
    Ok(Exit::Success)
}

/// The next owner serves on the very same ports, so that clients find it.
fn stay(serve: &mut Serve, served: &[Served]) {
    for (number, frontend) in (0_u64..).zip(&mut serve.frontends) {
        let found = served.iter().find(|one| one.frontend == number);
        if let (Frontend::Nbd { address, .. }, Some(found)) = (frontend, found) {
            address.clone_from(&found.address);
        }
    }
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
