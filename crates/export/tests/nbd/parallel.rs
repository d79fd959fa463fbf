//! Many requests at once, on one connection and on several, and stopping in the middle.

use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use kiln_block::testing::{Act, CrashDisk, Dice};
use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice};
use kiln_export::nbd::Server;

use crate::client::*;
use crate::gate::{self, SLOW};
use crate::sockets::socket_folder;

#[test]
fn reads_overtake_a_flush_that_takes_its_time() {
    let gate = gate::shut(ByteLen::mib(1));
    let mut client = Client::with_disk(&one(gate.clone()), false);
    client.request(FLUSH, 0, 1, 0, 0);
    gate.until_waiting(1);
    for _ in 0..3 {
        assert_eq!(client.read(0, 4096), Ok(vec![0; 4096]));
        assert_eq!(client.write(0, 0, &[0; 4096]), 0);
    }
    gate.open();
    assert_eq!(client.reply(), Reply::Simple(1, 0));
    client.hung_up();
}

#[test]
fn sixteen_requests_wait_for_the_disk_at_once() {
    let gate = gate::shut(ByteLen::mib(1));
    let mut client = Client::with_disk(&one(gate.clone()), false);
    for cookie in 0..24 {
        client.request(if cookie % 2 == 0 { FLUSH } else { CACHE }, 0, cookie, SLOW, 512);
    }
    gate.until_waiting(16);
    gate.open();
    let mut cookies: Vec<u64> = (0..24).map(|_| client.reply().cookie()).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..24).collect::<Vec<u64>>());
    client.hung_up();
}

/// Requests of all kinds in one stream, sent without waiting for any reply.
#[test]
fn a_pipeline_of_everything_is_answered_once_each_and_rightly() {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(8)));
    let mut content = vec![0; 8 << 20];
    Dice::seeded(3).fill(&mut content);
    device.write_at(ByteOffset::ZERO, &content).unwrap();
    let mut client = Client::with_disk(&one(device.clone()), true);
    let mut dice = Dice::seeded(4);
    // The front is read, the back is written: what is read does not depend on the order.
    let (mut message, mut reads, mut expected) = (Vec::new(), Vec::new(), content.clone());
    const COUNT: u64 = 1500;
    for cookie in 0..COUNT {
        match dice.below(8) {
            0..=3 => {
                let len = 1 + dice.below(if cookie % 50 == 0 { 300_000 } else { 5000 });
                let at = dice.below((4 << 20) - len);
                message.extend(request(READ, 0, cookie, at, u32::try_from(len).unwrap()));
                reads.push((cookie, at, len));
                continue;
            }
            4..=5 => {
                let at = (4 << 20) + cookie * 2048;
                let mut bytes = vec![0; usize::try_from(1 + dice.below(2048)).unwrap()];
                dice.fill(&mut bytes);
                let flags = if dice.below(10) == 0 { FUA } else { 0 };
                let len = u32::try_from(bytes.len()).unwrap();
                message.extend(request(WRITE, flags, cookie, at, len));
                message.extend(&bytes);
                let at = usize::try_from(at).unwrap();
                expected[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            6 => message.extend(request(FLUSH, 0, cookie, 0, 0)),
            _ => message.extend(request(CACHE, 0, cookie, 0, 4096)),
        }
    }
    let mut sender = client.stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        std::io::Write::write_all(&mut sender, &message).unwrap();
    });
    let mut answered = std::collections::BTreeSet::new();
    while answered.len() < usize::try_from(COUNT).unwrap() {
        let reply = client.reply();
        assert_eq!(reply.error(), 0, "{reply:?}");
        assert!(answered.insert(reply.cookie()), "{} is answered twice", reply.cookie());
        if let Reply::Chunk(cookie, true, 1, payload) = reply {
            let (_, at, len) = reads.iter().find(|read| read.0 == cookie).unwrap();
            assert_eq!(payload[..8], at.to_be_bytes());
            let at = usize::try_from(*at).unwrap();
            assert!(payload[8..] == content[at..at + usize::try_from(*len).unwrap()]);
        }
    }
    sending.join().unwrap();
    client.hung_up();
    assert!(device.to_vec() == expected);
}

#[test]
fn a_flush_on_one_connection_covers_writes_on_all() {
    let device = Arc::new(CrashDisk::new(ByteLen::kib(64)));
    let exports = one(device.clone());
    let mut writer = Client::with_disk(&exports, false);
    let mut flusher = Client::with_disk(&exports, false);
    for round in 1..=20_u8 {
        let at = u64::from(round) * 512;
        assert_eq!(writer.write(0, at, &[round; 512]), 0);
        assert_eq!(flusher.ask(FLUSH, 0, 0, 0), 0);
        for image in device.images_a_power_cut_may_leave(device.steps(), 4, round.into()) {
            assert_eq!(image[512 * usize::from(round)..][..512], [round; 512]);
        }
    }
    writer.hung_up();
    flusher.hung_up();
}

#[test]
fn stopping_answers_what_was_received_and_takes_the_socket_away() {
    let folder = socket_folder();
    let path = folder.path().join("s");
    let gate = gate::shut(ByteLen::mib(1));
    let address = format!("unix:{}", path.display()).parse().unwrap();
    let server = Server::start(&address, one(gate.clone())).unwrap();
    let mut client = Client::connect(&path).choose(false);
    client.request(FLUSH, 0, 1, 0, 0);
    client.request(CACHE, 0, 2, SLOW, 512);
    gate.until_waiting(2);
    let stopping = std::thread::spawn(move || server.stop(Duration::from_secs(600)));
    // The path goes before clients are waited for.
    while path.exists() {
        std::thread::yield_now();
    }
    gate.open();
    let mut cookies = [client.reply().cookie(), client.reply().cookie()];
    cookies.sort_unstable();
    assert_eq!(cookies, [1, 2]);
    assert_eq!(stopping.join().unwrap(), 0);
    client.cut_off();
}

#[test]
fn a_client_in_the_way_of_stopping_is_hung_up_on() {
    let folder = socket_folder();
    let path = folder.path().join("s");
    let gate = gate::shut(ByteLen::mib(1));
    let address = format!("unix:{}", path.display()).parse().unwrap();
    let server = Server::start(&address, one(gate.clone())).unwrap();
    let mut client = Client::connect(&path).choose(false);
    client.request(FLUSH, 0, 1, 0, 0);
    gate.until_waiting(1);
    assert_eq!(server.stop(Duration::ZERO), 1);
    gate.open();
    client.cut_off();
}

#[test]
fn idle_clients_do_not_hold_up_stopping() {
    let folder = socket_folder();
    let path = folder.path().join("s");
    let address = format!("unix:{}", path.display()).parse().unwrap();
    let disk = Arc::new(MemoryDevice::new(ByteLen::mib(1)));
    let server = Server::start(&address, one(disk)).unwrap();
    let mut negotiating = Client::connect(&path);
    let mut idle = Client::connect(&path).choose(true);
    assert_eq!(server.clients(), 2);
    assert_eq!(server.stop(Duration::from_secs(600)), 0);
    negotiating.cut_off();
    idle.cut_off();
}

#[test]
fn who_only_waits_for_flushes_is_served_by_one_thread_and_who_asks_for_more_is_not() {
    let gate = gate::shut(ByteLen::mib(1));
    gate.open();
    let mut client = Client::with_disk(&one(gate.clone()), false);
    // On a busy machine a thread may be put aside between its reply and its rest, and then another has to flush.
    let in_a_row =
        |threads: &[ThreadId]| threads.chunk_by(|a, b| a == b).any(|row| row.len() >= 20);
    for round in 0.. {
        assert_eq!(client.write(0, 0, &[7; 4096]), 0);
        assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
        let threads = gate.callers(Act::Flush);
        if in_a_row(&threads) {
            break;
        }
        assert!(round < 4000, "no thread was ever left to it: {threads:?}");
    }
    // Both arrive together, and the flush ends long after the read.
    gate.shut();
    client.send(&[request(FLUSH, 0, 1, 0, 0), request(CACHE, 0, 2, 0, 512)].concat());
    assert_eq!(client.reply().cookie(), 2);
    gate.open();
    assert_eq!(client.reply().cookie(), 1);
    client.hung_up();
}
