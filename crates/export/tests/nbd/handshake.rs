//! Finding out what there is and choosing it.

use std::sync::Arc;

use kiln_block::{ByteLen, MemoryDevice, zeros};
use kiln_export::{AddExportError, Export, Exports};

use crate::client::{Client, go, one, option, queries, string};

const ACK: u32 = 1;
const UNSUPPORTED: u32 = (1 << 31) + 1;
const POLICY: u32 = (1 << 31) + 2;
const INVALID: u32 = (1 << 31) + 3;
const UNKNOWN: u32 = (1 << 31) + 6;
const TOO_BIG: u32 = (1 << 31) + 9;

fn memory() -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(ByteLen::mib(1)))
}

/// Two disks, of which one may only be read.
fn two() -> Exports {
    let exports = one(memory());
    exports
        .add("base", Export::new(Arc::new(zeros(ByteLen::gib(3)))).described("of zeros"))
        .unwrap();
    exports
}

fn export_info(size: u64, flags: u16) -> Vec<u8> {
    [&0_u16.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat()
}

fn block_sizes() -> Vec<u8> {
    let sizes = [1_u32, 4096, 32 << 20].map(u32::to_be_bytes).concat();
    [&3_u16.to_be_bytes()[..], &sizes].concat()
}

#[test]
fn go_tells_size_abilities_and_block_sizes_and_ends_the_handshake() {
    let mut client = Client::greeted(&two(), 3);
    let replies = client.option(7, &go("disk", &[]));
    // Flags, flush, FUA, trim, write-zeroes, several connections, cache, fast zero.
    assert_eq!(
        replies,
        [(3, export_info(1 << 20, 0b1101_0110_1101)), (3, block_sizes()), (ACK, vec![])]
    );
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    client.hung_up();
}

#[test]
fn a_read_only_disk_says_so_and_offers_no_change() {
    let mut client = Client::greeted(&two(), 3);
    client.option(8, &[]);
    let replies = client.option(6, &go("base", &[1, 2, 3, 0, 77]));
    assert_eq!(
        replies,
        [
            (3, export_info(3 << 30, 0b0101_1000_0111)),
            (3, block_sizes()),
            (3, b"\0\x01base".to_vec()),
            (3, b"\0\x02of zeros".to_vec()),
            (ACK, vec![])
        ]
    );
    client.hung_up();
}

#[test]
fn a_writable_disk_can_be_given_out_for_reading_only() {
    let exports = Exports::one("disk", Export::new(memory()).read_only()).unwrap();
    let mut client = Client::greeted(&exports, 3);
    let replies = client.option(7, &go("disk", &[]));
    assert_eq!(replies[0].1[10..], 0b0101_0000_0111_u16.to_be_bytes());
    assert_eq!(client.write(0, 0, &[1; 512]), crate::client::EPERM);
    client.hung_up();
}

#[test]
fn asking_about_a_disk_does_not_choose_it() {
    let mut client = Client::greeted(&two(), 3);
    assert_eq!(client.option(6, &go("disk", &[])).last(), Some(&(ACK, vec![])));
    assert_eq!(client.option(6, &go("base", &[])).last(), Some(&(ACK, vec![])));
    assert_eq!(client.option(2, &[]), [(ACK, vec![])]);
    client.hung_up();
}

#[test]
fn a_name_nobody_has_is_refused_and_another_may_be_tried() {
    let mut client = Client::greeted(&two(), 3);
    for name in ["nobody", ""] {
        assert_eq!(client.option(7, &go(name, &[]))[0].0, UNKNOWN);
    }
    assert_eq!(client.option(7, &go("disk", &[])).len(), 3);
    client.hung_up();
}

#[test]
fn the_empty_name_is_the_only_disks() {
    let mut client = Client::greeted(&one(memory()), 3);
    assert_eq!(client.option(7, &go("", &[1]))[2], (3, b"\0\x01disk".to_vec()));
    client.hung_up();
}

#[test]
fn disks_are_listed_in_order_with_what_was_said_about_them() {
    let mut client = Client::greeted(&two(), 3);
    let described = [string("base"), b"of zeros".to_vec()].concat();
    assert_eq!(client.option(3, &[]), [(2, described), (2, string("disk")), (ACK, vec![])]);
    assert_eq!(client.option(3, b"x")[0].0, INVALID);
    client.hung_up();
}

#[test]
fn disks_come_and_go_while_they_are_served() {
    let exports = one(memory());
    let mut client = Client::with_disk(&exports, false);
    assert_eq!(
        exports.add("disk", Export::new(memory())),
        Err(AddExportError::NameTaken { name: "disk".to_owned() })
    );
    assert!(exports.remove("disk").is_some());
    assert_eq!(exports.names(), Vec::<String>::new());
    assert_eq!(client.read(0, 1), Ok(vec![0]), "a client keeps the disk it has");
    let mut late = Client::greeted(&exports, 3);
    assert_eq!(late.option(7, &go("disk", &[]))[0].0, UNKNOWN);
    late.hung_up();
    client.hung_up();
}

#[test]
fn a_name_that_no_client_could_send_is_refused() {
    let exports = Exports::new();
    let error = exports.add(&"x".repeat(4097), Export::new(memory())).unwrap_err();
    assert_eq!(error, AddExportError::NameTooLong { len: 4097 });
}

#[test]
fn the_old_way_to_choose_works_with_and_without_padding() {
    for (flags, padding) in [(3, 0), (1, 124), (0, 124)] {
        let mut client = Client::greeted(&two(), flags);
        client.send(&option(1, b"disk"));
        assert_eq!(client.bytes(8), (1_u64 << 20).to_be_bytes());
        assert_eq!(client.bytes(2), 0b1101_0110_1101_u16.to_be_bytes());
        assert_eq!(client.bytes(padding), vec![0; padding]);
        assert_eq!(client.read(0, 16), Ok(vec![0; 16]));
        client.hung_up();
    }
}

#[test]
fn the_old_way_to_choose_hangs_up_on_an_unknown_name() {
    let mut client = Client::greeted(&two(), 3);
    client.send(&option(1, b"nobody"));
    client.cut_off();
}

#[test]
fn tls_is_refused_with_the_reason() {
    let mut client = Client::greeted(&two(), 3);
    let replies = client.option(5, &[]);
    assert_eq!(replies[0].0, POLICY);
    assert!(String::from_utf8_lossy(&replies[0].1).contains("TLS is not offered"));
    client.hung_up();
}

#[test]
fn options_of_the_future_are_declined() {
    let mut client = Client::greeted(&two(), 3);
    for number in [0, 4, 11, 12345] {
        assert_eq!(client.option(number, b"whatever")[0].0, UNSUPPORTED);
    }
    client.hung_up();
}

#[test]
fn metadata_contexts_are_listed_and_chosen() {
    let mut client = Client::greeted(&two(), 3);
    assert_eq!(client.option(10, &queries("disk", &["base:allocation"]))[0].0, INVALID);
    client.option(8, &[]);
    let listed = [&0_u32.to_be_bytes()[..], b"base:allocation"].concat();
    for wanted in [&[][..], &["base:"], &["x:y", "base:allocation"]] {
        let replies = client.option(9, &queries("disk", wanted));
        assert_eq!(replies, [(4, listed.clone()), (ACK, vec![])]);
    }
    assert_eq!(client.option(9, &queries("disk", &["qemu:"])), [(ACK, vec![])]);
    assert_eq!(client.option(9, &queries("nobody", &[]))[0].0, UNKNOWN);
    let chosen = [&1_u32.to_be_bytes()[..], b"base:allocation"].concat();
    let replies = client.option(10, &queries("disk", &["base:allocation"]));
    assert_eq!(replies, [(4, chosen), (ACK, vec![])]);
    client.hung_up();
}

#[test]
fn a_context_chosen_for_another_disk_or_taken_back_is_not_in_force() {
    let later: [(&str, &[&str]); 2] = [("base", &["base:allocation"]), ("disk", &[])];
    for (name, wanted) in later {
        let mut client = Client::greeted(&two(), 3);
        client.option(8, &[]);
        client.option(10, &queries("disk", &["base:allocation"]));
        client.option(10, &queries(name, wanted));
        client.option(7, &go("disk", &[]));
        assert_eq!(client.ask(crate::client::BLOCK_STATUS, 0, 0, 512), crate::client::EINVAL);
        client.hung_up();
    }
}

#[test]
fn options_whose_data_does_not_add_up_are_refused() {
    let mut client = Client::greeted(&two(), 3);
    client.option(8, &[]);
    let long = [go("disk", &[]), vec![0]].concat();
    for data in [&[][..], b"\xff\xff\xff\xffdisk", &long, &go("disk", &[3])[..9]] {
        assert_eq!(client.option(7, data)[0].0, INVALID);
        assert_eq!(client.option(9, data)[0].0, INVALID);
    }
    assert_eq!(client.option(7, b"\0\0\0\x02\xff\xfe\0\0")[0].0, INVALID, "names are UTF-8");
    let many = [string("disk"), 257_u32.to_be_bytes().to_vec()].concat();
    assert_eq!(client.option(9, &many)[0].0, TOO_BIG);
    client.hung_up();
}
