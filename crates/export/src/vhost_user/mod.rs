//! Serves a disk to a virtual machine as a virtio block device, over vhost-user
//! (`docs/formats/vhost-user-blk.md`): the machine's queues are in memory that both sides see, so
//! requests reach the disk without passing through QEMU.
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::Arc;
//! use kiln_block::{ByteLen, MemoryDevice};
//! use kiln_export::{Export, vhost_user};
//!
//! let disk = Export::new(Arc::new(MemoryDevice::new(ByteLen::gib(1))));
//! let path = Path::new("/run/user/1000/disk.sock");
//! let server = vhost_user::Server::start(path, disk, vhost_user::Options::default())?;
//! // qemu-system-x86_64 -machine q35,memory-backend=ram \
//! //   -object memory-backend-memfd,id=ram,size=1G,share=on \
//! //   -chardev socket,id=disk,path=/run/user/1000/disk.sock,reconnect=1 \
//! //   -device vhost-user-blk-pci,chardev=disk,num-queues=1,config-wce=on
//! # Ok::<(), kiln_export::vhost_user::ListenError>(())
//! ```

mod chain;
mod config;
mod dirty;
mod disk;
mod engine;
mod inflight;
mod notice;
mod ring;
mod server;
mod session;

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vhost::vhost_user::{BackendReqHandler, Error};

pub use crate::nbd::ListenError;
pub use chain::{Chain, Malformed, Piece};
pub use server::Server;

use crate::Export;
use notice::Notices;

/// How a disk is served.
#[derive(Clone, Debug)]
pub struct Options {
    /// Queues a machine may use; each that it does use has threads of its own.
    pub queues: u16,
    /// What the guest finds as the disk's serial number; cut after 20 bytes.
    pub serial: String,
    /// How long a request that is done may wait for another, so that the guest is told of both at once. It waits only while
    /// waiting paid lately, so a guest that asks for one thing at a time is told at once.
    pub gather: Duration,
}

/// Sixteen queues, no serial number, and 20 µs to gather: less than an interrupt costs a translated guest.
impl Default for Options {
    fn default() -> Options {
        Options { queues: 16, serial: String::new(), gather: Duration::from_micros(20) }
    }
}

/// Why a conversation with a front-end ended before it hung up.
#[derive(Debug, thiserror::Error)]
#[error("the vhost-user front-end broke the protocol: {0}")]
pub struct SessionError(String);

/// Serves one front-end on a socket that is connected already, until it hangs up.
pub fn serve(socket: UnixStream, export: Export, options: &Options) -> Result<(), SessionError> {
    converse(socket, export, options, &Notices::default())
}

fn converse(
    socket: UnixStream,
    export: Export,
    options: &Options,
    notices: &Notices,
) -> Result<(), SessionError> {
    let disk = Arc::new(disk::Disk::new(export, &options.serial));
    let session = session::Session::new(disk, options.queues, options.gather);
    let peeked = socket.try_clone().map_err(|error| SessionError(error.to_string()))?;
    let mut handler = BackendReqHandler::from_stream(socket, Arc::new(Mutex::new(session)));
    let result = loop {
        notices.look(&peeked);
        match handler.handle_request() {
            Ok(()) => {}
            Err(Error::Disconnected | Error::SocketBroken(_)) => break Ok(()),
            Err(Error::SocketRetry(_)) => {}
            Err(error) => break Err(SessionError(error.to_string())),
        }
    };
    notices.clear();
    // The session goes with the handler: its queues finish what they took.
    drop(handler);
    result
}
