//! Serves disks over NBD, the network block device protocol (`docs/formats/nbd.md`): the fixed newstyle
//! handshake, structured replies, block status, and every command a disk can carry out.
//!
//! ```no_run
//! use std::sync::Arc;
//! use kiln_block::{ByteLen, MemoryDevice};
//! use kiln_export::{Export, Exports, nbd};
//!
//! let disk = Arc::new(MemoryDevice::new(ByteLen::gib(1)));
//! let exports = Exports::one("scratch", Export::new(disk))?;
//! let server = nbd::Server::start(&"unix:/run/user/1000/disks".parse()?, exports)?;
//! println!("{}", server.address().uri("scratch"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod address;
mod buffers;
mod channel;
mod execution;
mod listener;
mod negotiation;
mod server;
mod transmission;
mod wire;

use std::time::Duration;

pub use address::{Address, ParseAddressError};
pub use channel::{Channel, Socket};
pub use listener::{ListenError, Listener};
pub use negotiation::NegotiationError;
pub use server::Server;

use crate::Exports;

/// How long a client may think between two words of the handshake.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves one client on a stream that is connected already, until it leaves or is hung up on.
pub fn serve<C: Channel>(channel: &C, exports: &Exports) -> Result<(), NegotiationError> {
    /// Hangs up at the end, however it is reached: the socket may have other owners.
    struct HangUp<'a, C: Channel>(&'a C);
    impl<C: Channel> Drop for HangUp<'_, C> {
        fn drop(&mut self) {
            self.0.hang_up();
        }
    }
    let _hang_up = HangUp(channel);
    channel.wait_at_most(Some(PATIENCE))?;
    let mut input = channel::Input::new(transmission::INPUT_LEN);
    if let Some(agreement) = negotiation::negotiate(channel, &mut input, exports)? {
        channel.wait_at_most(None)?;
        transmission::transmit(channel, input, &agreement);
    }
    Ok(())
}
