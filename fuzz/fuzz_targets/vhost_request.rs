//! A guest's descriptor table: whatever is in it, a chain is read to an end, and what it speaks of is there.
#![no_main]

use std::sync::OnceLock;

use kiln_export::vhost_user::Chain;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const LEN: usize = 8 << 10;
const HIGH: GuestAddress = GuestAddress(1 << 32);

fuzz_target!(|bytes: &[u8]| {
    let [size, head, at, rest @ ..] = bytes else { return };
    // Mapping memory costs more than all the rest.
    static MEMORY: OnceLock<GuestMemoryMmap> = OnceLock::new();
    let memory = MEMORY.get_or_init(|| {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), LEN), (HIGH, LEN)]).unwrap()
    });
    let (low, high) = rest.split_at(rest.len() / 2);
    for (part, start) in [(low, GuestAddress(0)), (high, HIGH)] {
        let mut bytes = [0; LEN];
        let len = part.len().min(LEN);
        bytes[..len].copy_from_slice(&part[..len]);
        memory.write_slice(&bytes, start).unwrap();
    }
    let table = GuestAddress(u64::from(*at) * 64);
    let mut chain = Chain::new();
    if chain.fill(memory, table, 1 << (size % 11), u16::from(*head)).is_ok() {
        let pieces = chain.readable().iter().chain(chain.writable());
        for piece in pieces.clone() {
            assert!(piece.len != 0);
            assert!(GuestMemoryBackend::check_range(memory, piece.at, piece.len as usize));
        }
        assert!(pieces.count() <= 1024);
    }
});
