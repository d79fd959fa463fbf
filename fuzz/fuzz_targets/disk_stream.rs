//! A stream of anybody's making makes a disk or is refused, and never touches a disk that was there.
#![no_main]

use std::ops::ControlFlow;
use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice};
use kiln_parallax::stream::{ReceiveOptions, StreamError, fuzzing};
use kiln_parallax::{DiskOptions, Pool, PoolOptions};

// What follows the header is taken as it is: with the feature `fuzzing`, every checksum is right.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut stream = bytes.to_vec();
    if let Some(header) = stream.first_chunk_mut::<{ fuzzing::HEADER_LEN }>() {
        fuzzing::make_right(header);
    }
    let options = PoolOptions { log: ByteLen::kib(64), ..PoolOptions::default() };
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(8)));
    let pool = Pool::create(device, &options).expect("a pool in memory");
    pool.create_disk("treasure", ByteLen::kib(64), &DiskOptions::default()).expect("a disk");
    let treasure = pool.open_disk("treasure").expect("it is there");
    treasure.write_at(ByteOffset::ZERO, &[5; 65536]).expect("there is space");
    pool.snapshot("treasure", "kept").expect("a snapshot");
    // Twice: what the first left must not confuse the second.
    for disk in [None, Some("other")] {
        let outcome =
            pool.receive(&mut &stream[..], &ReceiveOptions { disk }, &mut |_| ControlFlow::Continue(()));
        if let Err(StreamError::Cut { token, .. }) = outcome {
            let text = token.to_string();
            assert_eq!(text.parse(), Ok(token));
            assert!(pool.partials().iter().any(|partial| partial.token == token));
        }
    }
    let mut found = vec![0; 65536];
    treasure.read_at(ByteOffset::ZERO, &mut found).expect("it can be read");
    assert!(found.iter().all(|byte| *byte == 5));
    drop(treasure);
    assert!(pool.verify(true).expect("it can be looked at").is_clean());
});
