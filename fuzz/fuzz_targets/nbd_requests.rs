//! Requests to an NBD server, after a proper handshake: every answer is one a client can read.
#![no_main]

#[path = "nbd/memory.rs"]
mod memory;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut said = 3_u32.to_be_bytes().to_vec();
    let mut option = |number: u8, data: &[u8]| {
        said.extend(b"IHAVEOPT\0\0\0");
        said.push(number);
        said.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        said.extend(data);
    };
    option(8, b"");
    option(10, b"\0\0\0\x01d\0\0\0\x01\0\0\0\x0fbase:allocation");
    option(7, b"\0\0\0\x01d\0\0");
    said.extend(bytes);
    let channel = memory::Memory::saying(&said);
    let _ = kiln_export::nbd::serve(&channel, &memory::disk());
    let told = channel.told();

    let mut rest = &told[18..];
    // The handshake ends with the third acknowledgement.
    for _ in 0..3 {
        loop {
            let (kind, len) = (word(&rest[12..]), word(&rest[16..]) as usize);
            rest = &rest[20 + len..];
            if kind == 1 {
                break;
            }
        }
    }
    while !rest.is_empty() {
        rest = match word(rest) {
            0x6744_6698 => &rest[16..],
            0x668e_33ef => &rest[20 + word(&rest[16..]) as usize..],
            other => panic!("{other:#x} starts no reply"),
        };
    }
});

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}
