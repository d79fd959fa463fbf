//! Pushing, pulling and reading lazily, with a real registry and with everything that can go wrong on the way.

mod faults;
mod images;
mod lazy;
mod logins;

use std::sync::Arc;

use kiln_registry::testing::{Server, impatient};
use kiln_registry::{Access, Descriptor, Digest, Reference, Repository};

/// Bytes that look like noise and are the same each time.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn repository(address: &str) -> Arc<Repository> {
    repository_as(address, &impatient())
}

fn repository_as(address: &str, access: &Access) -> Arc<Repository> {
    Arc::new(Repository::new(&reference(address), access).expect("it is a repository"))
}

fn reference(address: &str) -> Reference {
    format!("{address}/disks/root:1").parse().expect("it is a reference")
}

/// A registry with a blob in it.
fn with_blob(len: usize) -> (Server, Vec<u8>, Descriptor) {
    let server = Server::start();
    let bytes = noise(len, 7);
    let (digest, _) = repository(server.address()).push_bytes(&bytes).expect("it is pushed");
    let blob = descriptor(digest, bytes.len());
    (server, bytes, blob)
}

fn descriptor(digest: Digest, len: usize) -> Descriptor {
    kiln_registry::overlaybd::layer(digest, len as u64, None)
}
