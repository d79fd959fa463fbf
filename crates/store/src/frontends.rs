//! Ways to reach a disk, running.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_block::BlockDevice;
use kiln_export::nbd::{Address, Clients, ListenError, Server, Tls};
use kiln_export::{Export, Exports, fuse, ublk, vhost_user};

use crate::error::{Refusal, Why};
use crate::reply::Served;
use crate::request::{Credentials, Frontend, Serve};

/// How long clients' requests may take when serving ends.
const GRACE: Duration = Duration::from_secs(10);

/// A frontend that serves.
#[derive(Debug)]
enum Running {
    Nbd(Server),
    /// One for each disk.
    VhostUser(Vec<vhost_user::Server>),
    Fuse(fuse::Mount),
    /// One for each disk.
    Ublk(Vec<ublk::Device>),
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
                // NBD tells a size once, when a client comes; a file's size is looked up whenever it is asked for.
                // A block device stays as large as it was made.
                Running::Nbd(_) | Running::Fuse(_) | Running::Ublk(_) => {}
                Running::VhostUser(servers) => {
                    for server in servers {
                        server.notify_resize();
                    }
                }
            }
        }
    }

    /// Carries out and answers what clients have sent, and ends; returns how many were hung up on.
    pub(crate) fn end(&self) -> u64 {
        let running = std::mem::take(&mut *self.running());
        let ends = running.into_iter().map(|running| match running {
            Running::Nbd(server) => server.stop(GRACE) as u64,
            Running::VhostUser(servers) => {
                let connected = servers.iter().filter(|server| server.is_connected()).count();
                servers.into_iter().for_each(vhost_user::Server::stop);
                connected as u64
            }
            Running::Fuse(mount) => u64::from(mount.stop()),
            Running::Ublk(devices) => {
                devices.into_iter().for_each(ublk::Device::stop);
                0
            }
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
        Frontend::Nbd { address, tls } => {
            let address: Address =
                address.parse().map_err(|error| Refusal::of(Why::Request, &error))?;
            let server = match tls {
                None => Server::start(&address, exports.clone()).map_err(listening)?,
                Some(Credentials { folder, verify_clients }) => {
                    let clients = if *verify_clients { Clients::Certified } else { Clients::Known };
                    let tls = Tls::open(folder, clients)
                        .map_err(|error| Refusal::of(Why::Setup, &error))?;
                    Server::start_secured(&address, exports.clone(), tls).map_err(listening)?
                }
            };
            let address = server.address().clone();
            let told = disks.iter().map(|(name, ..)| (server.uri(name), address.to_string()));
            let told = told.collect();
            Ok((Running::Nbd(server), told))
        }
        Frontend::VhostUser { path, serial } => {
            let mut servers = Vec::new();
            let mut told = Vec::new();
            for (name, ..) in disks {
                let socket = vhost_user_socket(path, name, disks.len());
                let serial = serial.as_ref().unwrap_or(name).clone();
                let options = vhost_user::Options { serial, ..vhost_user::Options::default() };
                let export = exports.get(name).ok_or_else(|| {
                    Refusal::new(Why::Request, format!("{name:?} is named twice"))
                })?;
                servers
                    .push(vhost_user::Server::start(&socket, export, options).map_err(listening)?);
                told.push((socket.display().to_string(), socket.display().to_string()));
            }
            Ok((Running::VhostUser(servers), told))
        }
        Frontend::Fuse { dir } => {
            let mount = fuse::Mount::start(dir, exports.clone()).map_err(|error| {
                let why = match error {
                    fuse::MountError::InUse { .. } | fuse::MountError::NotEmpty { .. } => {
                        Why::Request
                    }
                    _ => Why::Setup,
                };
                Refusal::of(why, &error)
            })?;
            let folder = dir.display().to_string();
            let file = |name: &str| mount.path_of(name).map(|path| path.display().to_string());
            let told =
                disks.iter().map(|(name, ..)| (file(name).unwrap_or_default(), folder.clone()));
            let told = told.collect();
            Ok((Running::Fuse(mount), told))
        }
        Frontend::Ublk => {
            let mut devices = Vec::new();
            let mut told = Vec::new();
            for (name, ..) in disks {
                let export = exports.get(name).ok_or_else(|| {
                    Refusal::new(Why::Request, format!("{name:?} is named twice"))
                })?;
                let device = ublk::Device::start(&export)
                    .map_err(|error| Refusal::of(Why::Setup, &error))?;
                let path = device.path().display().to_string();
                told.push((path.clone(), path));
                devices.push(device);
            }
            Ok((Running::Ublk(devices), told))
        }
    }
}

fn listening(error: ListenError) -> Refusal {
    let why = match error {
        ListenError::Io { .. } => Why::Setup,
        _ => Why::Request,
    };
    Refusal::of(why, &error)
}

/// The path itself for one disk, unless it is a folder.
fn vhost_user_socket(path: &Path, name: &str, disks: usize) -> PathBuf {
    match disks == 1 && !path.is_dir() {
        true => path.to_owned(),
        false => path.join(format!("{name}.sock")),
    }
}
