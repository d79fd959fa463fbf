//! `kiln layer serve`: an image for clients, until Ctrl-C.

use std::time::Duration;

use kiln_export::{Export, Exports, fuse, nbd, ublk, vhost_user};
use serde_json::json;

use super::ending::Ending;
use super::remote;
use crate::arguments::LayerServeArgs;
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::{hostile, terminal};

/// How long clients' requests may take when serving ends.
const GRACE: Duration = Duration::from_secs(10);

/// `kiln layer serve`
pub(super) fn serve(session: &Session, args: &LayerServeArgs) -> Result<Exit, Failure> {
    let ways = args.nbd.len() + args.vhost_user.len() + args.fuse.len() + usize::from(args.ublk);
    if ways == 0 {
        return Err(Failure::new(Exit::Usage, "nobody could reach the disk")
            .hint("add --nbd localhost:10809, --vhost-user PATH, --fuse DIR or --ublk"));
    }
    let opening = remote::Opening::default();
    let ending = Ending::listen(&opening)?;
    let opened = remote::open(session, &args.image, &opening)?;
    let name = opened.name.clone();
    let export = Export::new(std::sync::Arc::clone(&opened.disk));
    let exports = Exports::one(&name, export.clone()).exits(Exit::Usage)?;
    let mut lines = Vec::new();
    let mut servers = Vec::new();
    for address in &args.nbd {
        let address = match address {
            nbd::Address::Unix(path) => nbd::Address::Unix(session.folder.join(path)),
            other => other.clone(),
        };
        let server = nbd::Server::start(&address, exports.clone()).exits(Exit::Setup)?;
        lines.push(("nbd", server.uri(&name)));
        servers.push(server);
    }
    let mut sockets = Vec::new();
    for path in &args.vhost_user {
        let path = session.folder.join(path);
        let serial = name.chars().take(20).collect();
        let options = vhost_user::Options { serial, ..vhost_user::Options::default() };
        let server =
            vhost_user::Server::start(&path, export.clone(), options).exits(Exit::Setup)?;
        lines.push(("vhost-user", path.display().to_string()));
        sockets.push(server);
    }
    let mut mounts = Vec::new();
    for folder in &args.fuse {
        let mount = fuse::Mount::start(&session.folder.join(folder), exports.clone());
        let mount = mount.exits(Exit::Setup)?;
        let file = mount.path_of(&name).unwrap_or_default();
        lines.push(("fuse", file.display().to_string()));
        mounts.push(mount);
    }
    let mut devices = Vec::new();
    if args.ublk {
        let device = ublk::Device::start(&export).exits(Exit::Setup)?;
        lines.push(("ublk", device.path().display().to_string()));
        devices.push(device);
    }
    if args.image.download {
        opened.download();
    }
    let (size, read_only) = (opened.disk.size().get(), export.is_read_only());
    if session.json() {
        let exports = lines.iter().map(|(kind, uri)| {
            json!({"name": name, "kind": kind, "uri": uri, "size": size, "read_only": read_only})
        });
        session.out_json(&json!({"exports": exports.collect::<Vec<_>>()}))?;
    } else {
        for (_, uri) in &lines {
            terminal::out_line(&hostile::line(uri))?;
        }
        terminal::say("serving until Ctrl-C");
    }
    ending.wait();
    let cut_off: usize = servers.into_iter().map(|server| server.stop(GRACE)).sum();
    sockets.into_iter().for_each(vhost_user::Server::stop);
    drop(devices);
    let in_use = mounts.into_iter().map(fuse::Mount::stop).filter(|used| *used).count();
    opened
        .disk
        .flush()
        .tried(|| "cannot keep what was written".to_owned())
        .exits(Exit::InfrastructureBroke)?;
    opened.keep_trace()?;
    if cut_off + in_use > 0 {
        terminal::say(&format!("warning: {} clients were hung up on", cut_off + in_use));
    }
    Ok(Exit::Success)
}
