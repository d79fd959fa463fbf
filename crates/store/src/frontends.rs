//! Ways to reach a disk, running.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_block::BlockDevice;
use kiln_export::nbd::{Address, ListenError, Server};
use kiln_export::{Export, Exports};

use crate::error::{Refusal, Why};
use crate::request::{Frontend, Serve, Served};

/// How long clients' requests may take when serving ends.
const GRACE: Duration = Duration::from_secs(10);

/// A frontend that serves.
#[derive(Debug)]
enum Running {
    Nbd(Server),
}

/// Disks that are served together, until [`end`](Serving::end).
#[derive(Debug)]
pub(crate) struct Serving {
    exports: Exports,
    running: Mutex<Vec<Running>>,
    /// What clients were told.
    pub(crate) served: Vec<Served>,
}

/// A disk to serve: its name, itself, and whether writes to it are refused.
pub(crate) type Device = (String, Arc<dyn BlockDevice>, bool);

impl Serving {
    /// Starts every frontend, or none.
    pub(crate) fn start(devices: Vec<Device>, serve: &Serve) -> Result<Serving, Refusal> {
        let exports = Exports::new();
        let mut disks = Vec::new();
        for (name, device, read_only) in devices {
            let size = device.size().get();
            let export = Export::new(device);
            let export = if read_only { export.read_only() } else { export };
            disks.push((name.clone(), size, export.is_read_only()));
            exports.add(&name, export).map_err(|error| Refusal::of(Why::Request, &error))?;
        }
        let mut serving = Serving { exports, running: Mutex::default(), served: Vec::new() };
        for (number, frontend) in (0..).zip(&serve.frontends) {
            let (running, addresses) = start(frontend, &serving.exports, &disks)?;
            serving.running().push(running);
            for ((name, size, read_only), (uri, address)) in disks.iter().zip(addresses) {
                serving.served.push(Served {
                    name: name.clone(),
                    uri,
                    address,
                    size: *size,
                    read_only: *read_only,
                    frontend: number,
                });
            }
        }
        Ok(serving)
    }

    /// The disks have other sizes now.
    pub(crate) fn resized(&self) {
        for running in self.running().iter() {
            match running {
                // The protocol tells a size once, when a client comes.
                Running::Nbd(_) => {}
            }
        }
    }

    /// Carries out and answers what clients have sent, and ends; returns how many were hung up on.
    pub(crate) fn end(&self) -> u64 {
        let running = std::mem::take(&mut *self.running());
        let ends = running.into_iter().map(|running| match running {
            Running::Nbd(server) => server.stop(GRACE) as u64,
        });
        let cut_off = ends.sum();
        // Nobody's thread keeps a disk open that is not served any more.
        for name in self.exports.names() {
            self.exports.remove(&name);
        }
        cut_off
    }

    fn running(&self) -> MutexGuard<'_, Vec<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For each disk, how clients reach it, and the address alone.
type Addresses = Vec<(String, String)>;

fn start(
    frontend: &Frontend,
    exports: &Exports,
    disks: &[(String, u64, bool)],
) -> Result<(Running, Addresses), Refusal> {
    match frontend {
        Frontend::Nbd { tls: Some(_), .. } => {
            Err(Refusal::new(Why::Request, "this Kiln does not offer TLS"))
        }
        Frontend::Nbd { address, tls: None } => {
            let address: Address =
                address.parse().map_err(|error| Refusal::of(Why::Request, &error))?;
            let server = Server::start(&address, exports.clone()).map_err(|error| {
                let why = match error {
                    ListenError::Io { .. } => Why::Setup,
                    _ => Why::Request,
                };
                Refusal::of(why, &error)
            })?;
            let address = server.address().clone();
            let told = disks.iter().map(|(name, ..)| (address.uri(name), address.to_string()));
            let told = told.collect();
            Ok((Running::Nbd(server), told))
        }
        Frontend::VhostUser { .. } => {
            Err(Refusal::new(Why::Request, "this Kiln does not offer vhost-user"))
        }
        Frontend::Fuse { .. } => Err(Refusal::new(Why::Request, "this Kiln does not offer FUSE")),
        Frontend::Ublk => Err(Refusal::new(Why::Request, "this Kiln does not offer ublk")),
    }
}
