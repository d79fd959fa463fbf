//! Owners and clients of one pool, in threads of one process: to the kernel's lock and sockets, each is another user.

mod clients;
mod hostile;
mod house;
mod leases;
