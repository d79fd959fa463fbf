//! Whatever comes over the socket of a pool's owner: frames, and the requests in them.
#![no_main]

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use kiln_store::wire::{LONGEST_REQUEST, receive};
use kiln_store::{Request, wire::Answer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // What an owner reads, and what a client reads of an owner that is none.
    while_frames::<Request>(bytes);
    while_frames::<Answer>(bytes);
});

fn while_frames<T: serde::de::DeserializeOwned + serde::Serialize>(bytes: &[u8]) {
    let (mut one, two) = UnixStream::pair().expect("a pair of sockets");
    one.set_nonblocking(true).expect("a socket");
    // More than fits into the socket is another run's.
    let _ = one.write(bytes);
    drop(one);
    loop {
        match receive::<T>(&two, LONGEST_REQUEST) {
            Ok((came, _)) => {
                let again = serde_json::to_vec(&came).expect("what was read can be written");
                assert!(serde_json::from_slice::<T>(&again).is_ok());
            }
            Err(kiln_store::wire::FrameError::Text(_)) => {}
            Err(_) => return,
        }
    }
}
