//! The body of one message, as if its checksums were right: decoded, it encodes to the same bytes.
#![no_main]

use kiln_model::protocol::{Answer, Decoder, Frame, MAX_PAYLOAD, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (kind, payload) = input;
    if payload.len() > MAX_PAYLOAD {
        return;
    }
    let frame = Frame { kind, channel: 1, payload };
    let mut bytes = Vec::new();
    if let Ok(request) = Request::decode(&frame) {
        request.encode(1, &mut bytes).expect("what fitted once fits again");
    } else if let Ok(answer) = Answer::decode(&frame) {
        answer.encode(1, &mut bytes).expect("what fitted once fits again");
    } else {
        return;
    }
    let mut decoder = Decoder::new();
    decoder.feed(&bytes);
    assert_eq!(decoder.next_frame().as_ref(), Some(&frame));
});
