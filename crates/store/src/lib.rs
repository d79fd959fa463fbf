//! A pool of disks with many users at once: the process that owns it, and the clients that speak to it.
//!
//! Whoever wants something of a pool opens a [`Store`] and gives it a [`Request`]. If the pool has an owner, the
//! request goes to it through a socket beside the pool; if not, the pool is opened here, under its lock, and
//! closed again. Disks that are served or temporary belong to a [`Lease`], which ends with the process that has
//! it, however that ends (`docs/formats/owner-protocol.md`).
//!
//! ```no_run
//! use kiln_store::{Frontend, NewDisk, Request, Serve, Start, Store};
//!
//! # fn main() -> Result<(), kiln_store::StoreError> {
//! let start = Start::new(["kiln", "disk", "own"]);
//! let store = Store::owner("/srv/disks.pool".as_ref(), &start)?;
//! store.ask(Request::Create { name: "base".into(), size: 10 << 30, with: NewDisk::default() })?;
//! let nbd = Frontend::Nbd { address: "unix:/run/disks".into(), tls: None };
//! let lease = store.serve(&Serve::new(["base"], nbd))?;
//! println!("{}", lease.served()[0].uri);
//! # Ok(())
//! # }
//! ```

mod connection;
mod door;
mod error;
mod frame;
mod frontends;
mod glance;
mod house;
mod layered;
mod lease;
mod measured;
pub mod metrics;
mod name;
mod operations;
mod owner;
mod place;
mod reply;
mod request;
mod store;

pub use connection::{Parting, Watch};
pub use door::DoorState;
pub use error::{Cause, Refusal, StoreError, Why};
pub use glance::glance;
pub use layered::{LayeredBase, LayeredError, Layers};
pub use lease::Lease;
pub use measured::{Histogram, Measured, OperationFigures};
pub use name::{Name, TEMPORARY};
pub use operations::{contents, operate};
pub use owner::{Dismissal, Opened, Owner, detach, tell_readiness};
pub use place::private_folder;
pub use reply::{
    DiskBase, DiskFigures, DiskStat, Kind, Node, PoolFigures, Range, Reply, Served, Snapshot, Space,
};
pub use request::{
    BackingImage, Compression, Credentials, Format, Frontend, LayerCodec, LayerForm, NewDisk,
    Partial, Progress, Request, Serve, Stop,
};
pub use store::{Start, Store};

/// The words and frames of the owner's socket, for tests that speak them wrongly.
pub mod wire {
    pub use crate::connection::{Answer, Hello, VERSION};
    pub use crate::frame::{
        FrameError, LONGEST_ANSWER, LONGEST_REQUEST, MOST_FILES, receive, send,
    };
}
