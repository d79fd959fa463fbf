//! Disks that fail: the client learns what and where, and nothing else is harmed.

use std::sync::Arc;

use kiln_block::testing::{Act, FaultDisk};
use kiln_block::{
    BlockDevice, BlockSource, ByteLen, ByteOffset, DeviceError, MemoryDevice, ReadOnly,
};

use crate::client::*;

fn fault() -> Arc<FaultDisk<MemoryDevice>> {
    Arc::new(FaultDisk::new(MemoryDevice::new(ByteLen::mib(4))))
}

const SYSTEM_EIO: i32 = 5;
const SYSTEM_ENOSPC: i32 = 28;

#[test]
fn every_kind_of_request_reports_a_failing_disk_and_the_next_one_succeeds() {
    for structured in [false, true] {
        let disk = fault();
        let mut client = Client::with_disk(&one(disk.clone()), structured);
        for len in [4096, 100_000] {
            disk.fail(Act::Read, 0, SYSTEM_EIO, false);
            assert_eq!(client.read(0, len), Err(EIO));
            assert!(client.read(0, len).is_ok());
            disk.fail(Act::Write, 0, SYSTEM_EIO, false);
            assert_eq!(client.write(0, 0, &vec![1; len as usize]), EIO);
            assert_eq!(client.write(0, 0, &vec![1; len as usize]), 0);
            disk.fail(Act::Write, 0, SYSTEM_ENOSPC, false);
            assert_eq!(client.write(FUA, 0, &vec![1; len as usize]), ENOSPC);
        }
        for (command, act) in [
            (TRIM, Act::Write),
            (WRITE_ZEROES, Act::Write),
            (CACHE, Act::Read),
            (FLUSH, Act::Flush),
        ] {
            disk.fail(act, 0, SYSTEM_EIO, false);
            assert_eq!(client.ask(command, 0, 0, 4096), EIO, "{command}");
            assert_eq!(client.ask(command, 0, 0, 4096), 0, "{command}");
        }
        client.hung_up();
    }
}

#[test]
fn a_write_whose_flush_fails_is_not_answered_as_durable() {
    let disk = fault();
    let mut client = Client::with_disk(&one(disk.clone()), true);
    disk.fail(Act::Flush, 0, SYSTEM_EIO, true);
    assert_eq!(client.write(FUA, 0, &[1; 512]), EIO);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), EIO);
    assert_eq!(client.write(0, 0, &[1; 512]), 0, "a plain write promises nothing");
    client.hung_up();
}

#[test]
fn a_failure_within_a_sparse_read_is_one_error_and_no_data() {
    let disk = fault();
    for at in [0, 256 << 10, 512 << 10] {
        disk.write_at(ByteOffset::new(at), &[1; 4096]).unwrap();
    }
    let mut client = Client::with_disk(&one(disk.clone()), true);
    for call in 0..3 {
        disk.fail(Act::Read, call, SYSTEM_EIO, false);
        client.request(READ, 0, 5, 0, 1 << 20);
        let reply = client.reply();
        assert_eq!((reply.cookie(), reply.error()), (5, EIO), "call {call}");
        disk.heal();
    }
    assert!(client.read(0, 1 << 20).is_ok());
    client.hung_up();
}

/// A disk of which one place is damaged.
struct Damaged;

impl BlockSource for Damaged {
    fn size(&self) -> ByteLen {
        ByteLen::mib(1)
    }

    fn read(&self, at: u64, _: &mut [u8]) -> Result<(), DeviceError> {
        let at = ByteOffset::new(at);
        Err(DeviceError::Damaged { at, found: "disk root, block 17: wrong checksum".to_owned() })
    }
}

#[test]
fn an_error_says_in_words_what_is_wrong_and_where() {
    let mut client = Client::with_disk(&one(Arc::new(ReadOnly(Damaged))), true);
    client.request(READ, 0, 1, 4096, 512);
    let reply = client.reply();
    assert_eq!(reply.error(), EIO);
    assert_eq!(reply.sentence(), "damaged at byte 4096: disk root, block 17: wrong checksum");
    client.hung_up();
    let disk = fault();
    let mut client = Client::with_disk(&one(disk.clone()), true);
    disk.fail(Act::Read, 0, SYSTEM_EIO, false);
    client.request(READ, 0, 1, 8192, 512);
    let sentence = client.reply().sentence();
    assert!(sentence.starts_with("cannot read at byte 8192: "), "the cause follows: {sentence}");
    client.hung_up();
}

/// A disk with a bug.
struct Panics;

impl BlockSource for Panics {
    fn size(&self) -> ByteLen {
        ByteLen::mib(1)
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), DeviceError> {
        panic!("a bug in a disk, as the test wants it")
    }
}

#[test]
fn a_disk_that_panics_costs_its_client_the_connection_and_nobody_else() {
    let exports = one(Arc::new(ReadOnly(Panics)));
    let disk = Arc::new(MemoryDevice::new(ByteLen::mib(1)));
    exports.add("other", kiln_export::Export::new(disk)).unwrap();
    let folder = crate::sockets::socket_folder();
    let path = folder.path().join("s");
    let address = format!("unix:{}", path.display()).parse().unwrap();
    let server = kiln_export::nbd::Server::start(&address, exports).unwrap();
    for len in [512, 100_000] {
        let mut client = Client::connect(&path).choose(false);
        client.request(READ, 0, 1, 0, len);
        client.cut_off();
    }
    let mut other = Client::connect(&path);
    other.option(7, &go("other", &[]));
    assert_eq!(other.read(0, 512), Ok(vec![0; 512]));
    assert_eq!(server.stop(std::time::Duration::from_secs(600)), 0);
}
