//! A registry for tests: the real program on a port of its own, and a proxy in front of it that breaks things.
#![expect(clippy::unwrap_used, reason = "tests end where something is not as it must be")]

mod proxy;
mod server;

pub use proxy::{Fault, Lock, Proxy, Seen};
pub use server::Server;

use std::time::Duration;

use crate::{Access, Options};

/// Little patience, so that tests of what fails are over soon.
pub fn impatient() -> Access {
    let options = Options {
        silence: Duration::from_secs(60),
        attempts: 4,
        pause: Duration::from_millis(2),
        ..Options::default()
    };
    Access { options, ..Access::default() }
}
