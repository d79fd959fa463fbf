//! A frame: 24 bytes of header, then the payload (`docs/formats/agent-protocol.md`).
//!
//! | offset | size | field          | meaning                                             |
//! |-------:|-----:|----------------|-----------------------------------------------------|
//! |      0 |    4 | magic          | `8b 4b 4c 4e`                                       |
//! |      4 |    1 | version        | 1; a frame of another version is garbage            |
//! |      5 |    1 | kind           | which message; below 128 from the host, else from the guest |
//! |      6 |    2 | zero           | must be 0                                           |
//! |      8 |    4 | channel        | which operation; 0 is the conversation itself       |
//! |     12 |    4 | length         | of the payload, at most 65536                       |
//! |     16 |    4 | header crc32c  | of bytes 0 to 15                                    |
//! |     20 |    4 | payload crc32c | of the payload                                      |
//!
//! Integers are little-endian. The header has a checksum of its own so that a length made of garbage
//! cannot make a reader wait for bytes that never come. A reader that finds anything wrong skips one
//! byte and looks for the next magic.

/// First bytes of a frame; the first is no ASCII, so that text never looks like one.
pub const MAGIC: [u8; 4] = [0x8b, b'K', b'L', b'N'];
/// Version of the framing.
pub const VERSION: u8 = 1;
/// Bytes before the payload.
pub const HEADER_LEN: usize = 24;
/// The longest payload.
pub const MAX_PAYLOAD: usize = 64 * 1024;

const _: () = assert!(4 + 1 + 1 + 2 + 4 + 4 + 4 + 4 == HEADER_LEN);

/// One frame, checked but not yet understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which message.
    pub kind: u8,
    /// Which operation.
    pub channel: u32,
    /// The message's body.
    pub payload: Vec<u8>,
}

/// Appends a frame to `out`.
///
/// # Panics
/// If the payload is longer than [`MAX_PAYLOAD`]; messages check that before.
pub fn encode_frame(kind: u8, channel: u32, payload: &[u8], out: &mut Vec<u8>) {
    assert!(payload.len() <= MAX_PAYLOAD, "a payload of {} bytes fits no frame", payload.len());
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut header = [0_u8; HEADER_LEN];
    header[..4].copy_from_slice(&MAGIC);
    header[4] = VERSION;
    header[5] = kind;
    header[8..12].copy_from_slice(&channel.to_le_bytes());
    header[12..16].copy_from_slice(&length.to_le_bytes());
    let check = crc32c::crc32c(&header[..16]);
    header[16..20].copy_from_slice(&check.to_le_bytes());
    header[20..].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    out.reserve(HEADER_LEN + payload.len());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
}

/// Cuts a byte stream into frames and steps over whatever is none.
///
/// Holds at most one frame and what was fed since the last call of [`Decoder::next_frame`].
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    at: usize,
    skipped: u64,
}

impl Decoder {
    /// A decoder that has seen nothing.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Takes bytes as they came; any cut is fine.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.at > 0 {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    pub fn next_frame(&mut self) -> Option<Frame> {
        loop {
            self.seek_magic();
            let rest = self.bytes.get(self.at..)?;
            let header = rest.first_chunk::<HEADER_LEN>()?;
            let Some((length, payload_check)) = check_header(header) else {
                self.skip(1);
                continue;
            };
            let payload = rest.get(HEADER_LEN..HEADER_LEN + length)?;
            if crc32c::crc32c(payload) != payload_check {
                self.skip(1);
                continue;
            }
            let frame =
                Frame { kind: header[5], channel: u32_at(header, 8), payload: payload.to_vec() };
            self.at += HEADER_LEN + length;
            return Some(frame);
        }
    }

    /// How many bytes belonged to no frame so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Forgets a frame that has begun but not ended: its sender is gone.
    pub fn forget_partial(&mut self) {
        self.bytes.clear();
        self.at = 0;
    }

    fn seek_magic(&mut self) {
        let rest = &self.bytes[self.at..];
        // A magic cut at the end of what has arrived counts as found: the rest may still come.
        let found = (0..rest.len())
            .find(|&at| {
                let window = &rest[at..rest.len().min(at + MAGIC.len())];
                MAGIC.starts_with(window)
            })
            .unwrap_or(rest.len());
        self.skip(found);
    }

    fn skip(&mut self, count: usize) {
        self.at += count;
        self.skipped += u64::try_from(count).unwrap_or(u64::MAX);
    }
}

/// Length and checksum of the payload, if the header is one.
fn check_header(header: &[u8; HEADER_LEN]) -> Option<(usize, u32)> {
    let known = header[..4] == MAGIC && header[4] == VERSION && header[6..8] == [0, 0];
    if !known || crc32c::crc32c(&header[..16]) != u32_at(header, 16) {
        return None;
    }
    let length = usize::try_from(u32_at(header, 12)).ok()?;
    (length <= MAX_PAYLOAD).then(|| (length, u32_at(header, 20)))
}

fn u32_at(header: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames_of(decoder: &mut Decoder) -> Vec<Frame> {
        std::iter::from_fn(|| decoder.next_frame()).collect()
    }

    fn frame() -> impl Strategy<Value = Frame> {
        (any::<u8>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(kind, channel, payload)| Frame { kind, channel, payload })
    }

    #[test]
    fn a_frame_has_exactly_these_bytes() {
        let mut bytes = Vec::new();
        encode_frame(3, 7, b"hi", &mut bytes);
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "8b4b4c4e010300000700000002000000e530db32c2d99df56869");
    }

    #[test]
    fn a_length_made_of_garbage_does_not_make_the_reader_wait() {
        let mut decoder = Decoder::new();
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 1, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9]);
        encode_frame(1, 0, b"x", &mut bytes);
        decoder.feed(&bytes);
        assert_eq!(frames_of(&mut decoder).len(), 1);
        assert_eq!(decoder.skipped(), 24);
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_stream_is_cut(
            frames in proptest::collection::vec(frame(), 0..8),
            cut in 1_usize..50,
        ) {
            let mut bytes = Vec::new();
            for frame in &frames {
                encode_frame(frame.kind, frame.channel, &frame.payload, &mut bytes);
            }
            let mut decoder = Decoder::new();
            let mut seen = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.feed(piece);
                seen.extend(frames_of(&mut decoder));
            }
            prop_assert_eq!(seen, frames);
            prop_assert_eq!(decoder.skipped(), 0);
        }

        #[test]
        fn a_frame_after_garbage_is_found(
            garbage in proptest::collection::vec(
                prop_oneof![any::<u8>(), proptest::sample::select(&MAGIC[..])], 0..400),
            frame in frame(),
        ) {
            let mut bytes = garbage.clone();
            encode_frame(frame.kind, frame.channel, &frame.payload, &mut bytes);
            let mut decoder = Decoder::new();
            decoder.feed(&bytes);
            prop_assert_eq!(frames_of(&mut decoder), vec![frame]);
            prop_assert_eq!(decoder.skipped(), u64::try_from(garbage.len()).unwrap());
        }

        #[test]
        fn frames_after_a_truncated_one_are_found_once_its_length_has_passed(
            // No byte of it begins a magic: else the next frame could pass for its missing end.
            cut in proptest::collection::vec(0_u8..0x80, 1..300),
            keep in 0_usize..300,
            frame in frame(),
        ) {
            let mut bytes = Vec::new();
            encode_frame(1, 2, &cut, &mut bytes);
            bytes.truncate((HEADER_LEN + keep).min(bytes.len() - 1));
            encode_frame(frame.kind, frame.channel, &frame.payload, &mut bytes);
            bytes.extend([0; 300]);
            let mut decoder = Decoder::new();
            decoder.feed(&bytes);
            prop_assert_eq!(frames_of(&mut decoder), vec![frame]);
        }

        #[test]
        fn a_flipped_bit_never_yields_a_wrong_frame(frame in frame(), bit in 0_usize..1000) {
            let mut bytes = Vec::new();
            encode_frame(frame.kind, frame.channel, &frame.payload, &mut bytes);
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut decoder = Decoder::new();
            decoder.feed(&bytes);
            prop_assert_eq!(frames_of(&mut decoder), vec![]);
        }
    }
}
