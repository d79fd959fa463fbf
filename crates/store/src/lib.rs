//! A pool of disks with many users at once: the process that owns it, and the clients that speak to it.

mod error;
mod measured;
mod name;
mod operations;
mod request;

pub use error::{Refusal, StoreError, Why};
pub use measured::{Histogram, Measured, OperationFigures};
pub use name::{Name, TEMPORARY};
pub use operations::{contents, operate};
pub use request::{
    Credentials, DiskFigures, DiskStat, Format, Frontend, Kind, NewDisk, Node, PoolFigures,
    Progress, Range, Reply, Request, Serve, Served, Snapshot, Space, Stop,
};
