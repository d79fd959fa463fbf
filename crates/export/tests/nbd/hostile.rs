//! Clients that mean harm, or are broken: they lose their connection, and nobody else notices.

use std::io::Write as _;
use std::sync::Arc;

use kiln_block::testing::Dice;
use kiln_block::{ByteLen, MemoryDevice};
use kiln_export::nbd::Server;

use crate::client::*;
use crate::gate::{self, SLOW};
use crate::sockets::socket_folder;

fn memory() -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(ByteLen::mib(64)))
}

#[test]
fn rubbish_instead_of_a_handshake_is_hung_up_on() {
    let exports = one(memory());
    let mut dice = Dice::seeded(1);
    for round in 0..200 {
        let mut client =
            if round % 2 == 0 { Client::silent(&exports) } else { Client::greeted(&exports, 3) };
        let mut rubbish = vec![0; 2000];
        dice.fill(&mut rubbish);
        // The server may have hung up before all of it is out.
        let _ = client.stream.write_all(&rubbish);
        client.hung_up();
    }
}

#[test]
fn rubbish_instead_of_a_request_is_hung_up_on() {
    let exports = one(memory());
    for structured in [false, true] {
        let mut client = Client::with_disk(&exports, structured);
        client.send(&[0xa5; 28]);
        client.cut_off();
    }
}

#[test]
fn what_came_before_rubbish_is_answered() {
    let device = memory();
    let mut client = Client::with_disk(&one(device.clone()), false);
    let mut message = request(WRITE, 0, 1, 0, 512).to_vec();
    message.extend([7; 512]);
    message.extend([0xff; 28]);
    client.send(&message);
    client.cut_off();
    assert_eq!(device.to_vec()[..512], [7; 512]);
}

#[test]
fn an_option_that_is_too_long_is_hung_up_on() {
    let mut client = Client::greeted(&one(memory()), 3);
    client.send(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff");
    client.cut_off();
}

#[test]
fn an_endless_handshake_is_hung_up_on() {
    let mut client = Client::greeted(&one(memory()), 3);
    for _ in 0..300 {
        if client.stream.write_all(&option(3, &[])).is_err() {
            break;
        }
    }
    client.cut_off();
}

#[test]
fn handshake_flags_that_do_not_exist_are_hung_up_on() {
    let mut client = Client::greeted(&one(memory()), 1 << 20);
    client.cut_off();
}

#[test]
fn a_write_above_the_limit_is_hung_up_on_and_costs_no_memory() {
    for len in [(32 << 20) + 1, u32::MAX] {
        let mut client = Client::with_disk(&one(memory()), true);
        client.request(WRITE, 0, 1, 0, len);
        client.cut_off();
    }
}

#[test]
fn hanging_up_at_any_byte_of_a_conversation_is_no_trouble() {
    let folder = socket_folder();
    let path = folder.path().join("s");
    let address = format!("unix:{}", path.display()).parse().unwrap();
    let server = Server::start(&address, one(memory())).unwrap();
    let mut words = 3_u32.to_be_bytes().to_vec();
    words.extend(option(8, &[]));
    words.extend(option(10, &queries("disk", &["base:allocation"])));
    words.extend(option(7, &go("disk", &[])));
    words.extend(request(WRITE, FUA, 1, 4096, 64));
    words.extend([9; 64]);
    words.extend(request(READ, 0, 2, 0, 65536));
    words.extend(request(FLUSH, 0, 3, 0, 0));
    words.extend(request(BLOCK_STATUS, 0, 4, 0, 65536));
    for end in 0..=words.len() {
        let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let _ = stream.write_all(&words[..end]);
        // Half of them just leave; the other half says so and hears the server out.
        if end % 2 == 0 {
            Client { stream, server: None }.hung_up();
        }
    }
    let mut client = Client::connect(&path).choose(false);
    assert_eq!(client.read(4096, 64).map(|bytes| bytes.len()), Ok(64));
    client.request(DISCONNECT, 0, 0, 0, 0);
    client.cut_off();
    assert_eq!(server.stop(std::time::Duration::from_secs(600)), 0, "no connection is left");
}

#[test]
fn half_a_write_changes_nothing() {
    for len in [512, 100_000] {
        let device = memory();
        let mut client = Client::with_disk(&one(device.clone()), false);
        client.request(WRITE, 0, 1, 0, len);
        client.send(&vec![7; len as usize - 1]);
        client.hung_up();
        assert!(device.to_vec().iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_client_that_does_not_listen_stalls_only_itself() {
    let folder = socket_folder();
    let path = folder.path().join("s");
    let address = format!("unix:{}", path.display()).parse().unwrap();
    let gate = gate::shut(ByteLen::mib(64));
    let server = Server::start(&address, one(gate.clone())).unwrap();
    let mut deaf = Client::connect(&path).choose(false);
    // Far more than any socket holds; it waits for memory and for the client to listen.
    for cookie in 0..64 {
        deaf.request(READ, 0, cookie, SLOW, 16 << 20);
    }
    gate.until_waiting(3);
    gate.open();
    let mut other = Client::connect(&path).choose(false);
    for _ in 0..10 {
        assert_eq!(other.read(0, 4096), Ok(vec![0; 4096]));
    }
    drop(deaf);
    other.request(DISCONNECT, 0, 0, 0, 0);
    other.cut_off();
    assert_eq!(server.stop(std::time::Duration::from_secs(600)), 0);
}

#[test]
fn a_client_that_talks_slowly_is_understood() {
    let mut client = Client::with_disk(&one(memory()), false);
    let mut message = request(WRITE, 0, 1, 0, 20).to_vec();
    message.extend([3; 20]);
    message.extend(request(READ, 0, 2, 0, 20));
    for byte in message {
        client.send(&[byte]);
        std::thread::yield_now();
    }
    assert_eq!(client.reply(), Reply::Simple(1, 0));
    assert_eq!(client.reply(), Reply::Simple(2, 0));
    assert_eq!(client.bytes(20), [3; 20]);
    client.hung_up();
}
