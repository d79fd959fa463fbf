//! `kiln disk serve`: disks over NBD.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use kiln_export::nbd::{Address, ListenError, Server};
use kiln_export::{Export, Exports};
use serde_json::json;

use super::store::Store;
use crate::arguments::DiskServeArgs;
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::signals::{self, Heard};
use crate::terminal;

/// How long clients' requests may take when we are told to end.
const GRACE: Duration = Duration::from_secs(10);

/// `kiln disk serve`
pub(crate) fn serve(session: &Session, pool: &Path, args: &DiskServeArgs) -> Result<Exit, Failure> {
    let store = Store::open(pool)?;
    let exports = Exports::new();
    let mut served = Vec::new();
    for name in &args.names {
        let device = store.shared(name)?;
        let size = device.size();
        let export = Export::new(device);
        let export = if args.read_only { export.read_only() } else { export };
        served.push((name, size, export.is_read_only()));
        exports.add(name, export).exits(Exit::Usage)?;
    }
    // Before anybody can know that there is something to end.
    let (tell, told) = mpsc::channel();
    signals::listen(move |signal| {
        if signal != Heard::Resized {
            // Fails when we are ending already.
            let _ = tell.send(());
        }
    })
    .tried(|| "cannot listen for signals".to_owned())
    .exits(Exit::InfrastructureBroke)?;
    let address = match &args.nbd {
        // Clients that are started elsewhere get it by the URI.
        Address::Unix(path) => Address::Unix(session.folder.join(path)),
        other => other.clone(),
    };
    let server = Server::start(&address, exports).map_err(|error| {
        let exit = match error {
            ListenError::Io { .. } => Exit::Setup,
            _ => Exit::Usage,
        };
        Failure::from(error).with_exit(exit)
    })?;
    let address = server.address();
    if session.json() {
        let exports: Vec<_> = served
            .iter()
            .map(|(name, size, read_only)| {
                json!({
                    "name": name, "uri": address.uri(name), "size": size.get(),
                    "read_only": read_only,
                })
            })
            .collect();
        session.out_json(&json!({"address": address.to_string(), "exports": exports}))?;
    } else {
        for (name, _, _) in &served {
            terminal::out_line(&address.uri(name))?;
        }
        terminal::say("serving until Ctrl-C");
    }
    // The other end goes with the process alone.
    let _ = told.recv();
    let cut_off = server.stop(GRACE);
    if cut_off > 0 {
        terminal::say(&format!("warning: {cut_off} clients were hung up on"));
    }
    store.close()?;
    Ok(Exit::Success)
}
