//! What a snapshot is, whichever pool it is in.

use crate::catalog::{Is, State};
use crate::core::Core;

/// The same in every pool that has the snapshot, and different for every other.
pub(crate) type Identity = [u8; 16];

/// The identity a snapshot was received with, or the one it has had since it was taken here.
pub(crate) fn of(core: &Core, snapshot: &State) -> Identity {
    debug_assert!(snapshot.is == Is::Snapshot, "only snapshots stay what they are");
    if snapshot.identity != [0; 16] {
        return snapshot.identity;
    }
    let mut hasher = blake3::Hasher::new_derive_key("kiln disk-stream 1 snapshot");
    hasher.update(&core.uuid);
    // A pool may have been copied, so its number alone is not enough.
    for number in [snapshot.id, snapshot.epoch, snapshot.created, snapshot.size] {
        hasher.update(&number.to_le_bytes());
    }
    first_16(&hasher)
}

pub(crate) fn first_16(hasher: &blake3::Hasher) -> [u8; 16] {
    let mut found = [0; 16];
    found.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    found
}
