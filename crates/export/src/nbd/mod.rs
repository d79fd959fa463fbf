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
mod reception;
mod secured;
mod server;
mod tls;
mod transmission;
mod wire;

use std::time::Duration;

pub use address::{Address, ParseAddressError};
pub use channel::{Channel, Socket};
pub use listener::{ListenError, Listener};
pub use negotiation::NegotiationError;
pub use reception::Reception;
pub use server::Server;
pub use tls::{Clients, Tls, TlsError};

use crate::Exports;
use negotiation::{Outcome, Protection, negotiate};
use secured::Secured;

/// How long a client may think between two words of the handshake.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves one client on a stream that is connected already, until it leaves or is hung up on.
pub fn serve<C: Channel>(channel: &C, exports: &Exports) -> Result<(), NegotiationError> {
    serve_as(channel, exports, None)
}

/// Like [`serve`], but within TLS, and not at all with a client that does not want that.
pub fn serve_secured<C: Channel>(
    channel: &C,
    exports: &Exports,
    tls: &Tls,
) -> Result<(), NegotiationError> {
    serve_as(channel, exports, Some(tls))
}

/// Hangs up at the end, however it is reached: the socket may have other owners.
struct HangUp<'a, C: Channel>(&'a C);

impl<C: Channel> Drop for HangUp<'_, C> {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}

fn serve_as<C: Channel>(
    channel: &C,
    exports: &Exports,
    tls: Option<&Tls>,
) -> Result<(), NegotiationError> {
    let _hang_up = HangUp(channel);
    channel.wait_at_most(Some(PATIENCE))?;
    let mut input = channel::Input::new(transmission::INPUT_LEN);
    let no_zeroes = negotiation::greet(channel, &mut input)?;
    let protection = if tls.is_some() { Protection::Wanted } else { Protection::None };
    let outcome = negotiate(channel, &mut input, exports, protection, no_zeroes)?;
    let (Outcome::StartTls, Some(tls)) = (&outcome, tls) else {
        return finish(channel, input, outcome);
    };
    // What was said before could have come from anybody, so nothing of it counts.
    if !input.held().is_empty() {
        return Err(NegotiationError::Broken { what: "it went on before TLS had begun" });
    }
    drop(input);
    let secured = Secured::agree(channel, tls)?;
    let mut input = channel::Input::new(transmission::INPUT_LEN);
    let outcome = negotiate(&secured, &mut input, exports, Protection::Tls, no_zeroes)?;
    let ended = finish(&secured, input, outcome);
    secured.farewell();
    ended
}

/// What follows the handshake.
fn finish<C: Channel>(
    channel: &C,
    input: channel::Input,
    outcome: Outcome,
) -> Result<(), NegotiationError> {
    if let Outcome::Agreed(agreement) = outcome {
        channel.wait_at_most(None)?;
        transmission::transmit(channel, input, &agreement);
    }
    Ok(())
}
