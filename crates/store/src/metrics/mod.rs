//! What happened in a pool, for Prometheus: the text it reads, and a server that hands it out.

mod exposition;
mod http;
mod server;

#[cfg(test)]
mod strict;

pub use exposition::{CONTENT_TYPE, exposition};
pub use server::MetricsServer;
