//! Bytes from the agent's channel, in whatever pieces they come.
#![no_main]

use kiln_model::protocol::{Answer, Decoder, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let mut decoder = Decoder::new();
    for piece in &pieces {
        decoder.feed(piece);
        while let Some(frame) = decoder.next_frame() {
            let mut again = Vec::new();
            if let Ok(request) = Request::decode(&frame) {
                request.encode(frame.channel, &mut again).expect("what fitted once fits again");
            }
            if let Ok(answer) = Answer::decode(&frame) {
                answer.encode(frame.channel, &mut again).expect("what fitted once fits again");
            }
        }
    }
});
