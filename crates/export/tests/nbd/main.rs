//! The NBD server, as clients meet it: word by word, through real clients, and with enemies.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod client;
mod faults;
mod gate;
mod handshake;
mod hostile;
mod nbdkit;
mod parallel;
mod programs;
mod sockets;
mod tls;
mod transmission;
