//! What changes while a disk is served: its size, the machine's memory, who watches what is written.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, MemoryDevice};
use kiln_export::Export;
use kiln_export::vhost_user::{ListenError, Options, Server};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::{VhostBackend, VhostUserDirtyLogRegion};

use crate::machine::{FLUSH, HIGH, IN, Machine, OK, OUT, bit};
use crate::requests::served;
use crate::restart::{socket_folder, start};

#[test]
fn a_machine_learns_that_its_disk_has_grown() {
    let folder = socket_folder();
    let path = folder.path().join("s");
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(1)));
    let server = start(&path, Arc::clone(&device) as _);
    assert!(!server.notify_resize(), "nobody is there");
    let mut machine = Machine::on(&path);
    assert!(server.is_connected());
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    machine.frontend().set_backend_request_fd(&theirs).unwrap();
    drop(theirs);
    assert_ne!(machine.ask(OUT, 2048, &[1; 512]).0, OK);
    device.grow(ByteLen::mib(2)).unwrap();
    assert!(server.notify_resize());
    let mut message = [0; 12];
    ours.read_exact(&mut message).unwrap();
    let words: Vec<u32> =
        message.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
    assert_eq!(words, [2, 1, 0], "the configuration changed; no answer is expected");
    let flags = VhostUserConfigFlags::empty();
    let (_, space) = machine.frontend().get_config(0, 8, flags, &[0; 8]).unwrap();
    assert_eq!(space, 4096_u64.to_le_bytes());
    assert_eq!(machine.ask(OUT, 2048, &[1; 512]).0, OK);
    drop(machine);
    // The channel is closed when the front-end has left, and not before.
    assert_eq!(ours.read(&mut message).unwrap(), 0);
    assert!(!server.notify_resize());
}

/// Pages that are marked in the log, and the log emptied.
fn marked(log: &File) -> Vec<u64> {
    let mut bits = vec![0; usize::try_from(log.metadata().unwrap().len()).unwrap()];
    log.read_exact_at(&mut bits, 0).unwrap();
    log.write_all_at(&vec![0; bits.len()], 0).unwrap();
    let marked = |page: &u64| bits[usize::try_from(page / 8).unwrap()] & 1 << (page % 8) != 0;
    (0..bits.len() as u64 * 8).filter(marked).collect()
}

#[test]
fn every_page_that_is_written_is_logged_while_a_machine_is_saved() {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(1)));
    served(Machine::new(1), device, |machine| {
        let log = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
        let len = (HIGH >> 15) + (8 << 20 >> 15);
        ftruncate(&log, len).unwrap();
        assert_eq!(machine.ask(IN, 0, &[1; 4096]).0, OK);
        assert_eq!(marked(&log), [0; 0], "nobody asked for it yet");

        let region = VhostUserDirtyLogRegion {
            mmap_size: len,
            mmap_offset: 0,
            mmap_handle: log.as_raw_fd(),
        };
        machine.frontend().set_log_base(0, Some(region)).unwrap();
        let features = machine.features | bit::LOG_ALL;
        machine.frontend().set_features(features).unwrap();
        let used = machine.queues[0].used();
        let addresses = machine.addresses(0, Some(used));
        machine.frontend().set_vring_addr(0, &addresses).unwrap();
        marked(&log);

        let head = machine.put(0, IN, 0, &[1; 4096]);
        machine.kick(0);
        machine.wait(0, 1);
        let place = machine.place(0, head);
        let ring = used >> 12;
        // The status is in the first page of the place, the data reaches into the second.
        assert_eq!(marked(&log), [ring, place >> 12, (place >> 12) + 1]);
        assert_eq!(machine.ask(FLUSH, 0, &[]).0, OK);
        assert_eq!(marked(&log).len(), 2, "a status, and the ring");

        let features = machine.features;
        machine.frontend().set_features(features).unwrap();
        let addresses = machine.addresses(0, None);
        machine.frontend().set_vring_addr(0, &addresses).unwrap();
        marked(&log);
        assert_eq!(machine.ask(IN, 0, &[1; 512]).0, OK);
        assert_eq!(marked(&log), [0; 0], "and nobody wants it any more");
    });
}

#[test]
fn memory_may_be_given_anew_while_requests_are_under_way() {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(1)));
    served(Machine::new(1), device, |machine| {
        for round in 0..50 {
            for sector in 0..20 {
                machine.put(0, OUT, sector, &[round; 512]);
            }
            machine.kick(0);
            let regions = machine.regions();
            machine.frontend().set_mem_table(&regions).unwrap();
            machine.wait(0, 20);
        }
        assert_eq!(machine.ask(IN, 19, &[0; 512]), (OK, vec![49; 512]));
    });
}

#[test]
fn a_queue_that_is_stopped_says_where_and_goes_on_from_there() {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(1)));
    served(Machine::new(1), device, |machine| {
        for count in 1..4_u32 {
            assert_eq!(machine.ask(OUT, 0, &[1; 512]).0, OK);
            assert_eq!(machine.frontend().get_vring_base(0).unwrap(), count);
            machine.start(0);
        }
    });
}

#[test]
fn one_machine_is_served_after_another() {
    let folder = socket_folder();
    let path = folder.path().join("s");
    let server = start(&path, Arc::new(MemoryDevice::new(ByteLen::mib(1))));
    for round in 0..3 {
        let mut machine = Machine::on(&path);
        assert_eq!(machine.ask(OUT, 0, &[round; 512]).0, OK);
        assert_eq!(machine.ask(IN, 0, &[9; 512]), (OK, vec![round; 512]));
    }
    assert_eq!(server.path(), path);
}

#[test]
fn a_server_that_lives_keeps_its_path() {
    let folder = socket_folder();
    let path = folder.path().join("s");
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(1)));
    let first = start(&path, Arc::clone(&device) as _);
    let error = Server::start(&path, Export::new(device), Options::default()).unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
    Machine::on(&path).ask(OUT, 0, &[1; 512]);
    drop(first);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
}
