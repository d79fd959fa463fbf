//! A back-end that stops or dies, and the next one at its path: nothing is lost, nothing is done twice.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, FileDevice, MemoryDevice};
use kiln_export::Export;
use kiln_export::vhost_user::{Options, Server};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vm_memory::{Bytes, GuestAddress};

use crate::machine::{IN, Machine, OK, OUT, SIZE};
use crate::serve::Backend;

const DISK: ByteLen = ByteLen::mib(4);

/// A folder whose path is short enough for sockets, wherever the tests run.
pub(crate) fn socket_folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("kiln-vhost").tempdir_in("/tmp").unwrap()
}

pub(crate) fn start(path: &Path, device: Arc<dyn BlockDevice>) -> Server {
    Server::start(path, Export::new(device), Options::default()).unwrap()
}

#[test]
fn the_next_server_carries_out_what_the_last_one_left() {
    let folder = socket_folder();
    let path = folder.path().join("s");
    let device = Arc::new(MemoryDevice::new(DISK));
    let server = start(&path, Arc::clone(&device) as _);
    let mut machine = Machine::on(&path);
    assert_eq!(machine.ask(OUT, 0, &[1; 512]).0, OK);
    server.stop();
    assert!(!path.exists(), "the path goes with the server");
    assert!(machine.frontend().get_features().is_err(), "and so does the connection");
    machine.put(0, OUT, 1, &[2; 512]);
    machine.kick(0);
    assert_eq!(machine.collect(0), []);

    let _server = start(&path, Arc::clone(&device) as _);
    machine.connect(&path);
    machine.wait(0, 1);
    assert_eq!(device.to_vec()[..1024], [[1; 512], [2; 512]].concat());
}

/// What a back-end notes about a request, byte by byte as the specification says.
fn note(machine: &Machine, head: u16, in_flight: bool, counter: u64) {
    let (_, file) = machine.inflight.as_ref().unwrap();
    let at = 16 + 16 * u64::from(head);
    std::os::unix::fs::FileExt::write_at(file, &[in_flight.into()], at).unwrap();
    std::os::unix::fs::FileExt::write_at(file, &counter.to_le_bytes(), at + 8).unwrap();
}

fn note_last(machine: &Machine, head: u16, used: u16) {
    let (_, file) = machine.inflight.as_ref().unwrap();
    let bytes = [head.to_le_bytes(), used.to_le_bytes()].concat();
    std::os::unix::fs::FileExt::write_at(file, &bytes, 12).unwrap();
}

/// Three requests were taken and only the second came back. The back-end died before it noted that, or after.
#[test]
fn requests_in_flight_are_carried_out_again_and_finished_ones_are_not() {
    for noted in [true, false] {
        let folder = socket_folder();
        let path = folder.path().join("s");
        let device = Arc::new(MemoryDevice::new(DISK));
        let server = start(&path, Arc::clone(&device) as _);
        let mut machine = Machine::on(&path);
        assert_eq!(machine.ask(OUT, 100, &[1; 512]).0, OK);
        server.stop();

        let heads: Vec<u16> =
            (0..4_u8).map(|index| machine.put(0, OUT, index.into(), &[10 + index; 512])).collect();
        for (counter, head) in (10..).zip(&heads[..3]) {
            note(&machine, *head, true, counter);
        }
        let (used, before) = (machine.queues[0].used(), machine.used_index(0));
        let slot = used + 4 + 8 * u64::from(before % SIZE);
        machine.memory.write_obj([u32::from(heads[1]), 1], GuestAddress(slot)).unwrap();
        machine.memory.write_obj(before + 1, GuestAddress(used + 2)).unwrap();
        note_last(&machine, heads[1], if noted { before + 1 } else { before });
        if noted {
            note(&machine, heads[1], false, 11);
        }
        assert_eq!(machine.collect(0), [(heads[1], 1)]);

        let _server = start(&path, Arc::clone(&device) as _);
        machine.connect(&path);
        let again: Vec<u16> = machine.wait(0, 3).iter().map(|(head, _)| *head).collect();
        assert_eq!(again, [heads[0], heads[2], heads[3]], "in their order, then what is new");
        let disk = device.to_vec();
        for (sector, wanted) in [(0, 10), (1, 0), (2, 12), (3, 13)] {
            assert_eq!(disk[sector * 512], wanted, "sector {sector}");
        }
        assert_eq!(machine.ask(IN, 100, &[0; 512]), (OK, vec![1; 512]));
    }
}

/// The guest has been told that writes are durable; a new back-end would not know.
#[test]
fn what_the_guest_said_of_the_cache_survives_its_back_end() {
    let folder = socket_folder();
    let path = folder.path().join("s");
    let flags = VhostUserConfigFlags::WRITABLE;
    let cache =
        |machine: &mut Machine| machine.frontend().get_config(32, 1, flags, &[0]).unwrap().1[0];
    let device = Arc::new(MemoryDevice::new(DISK));
    let server = start(&path, Arc::clone(&device) as _);
    let mut machine = Machine::on(&path);
    machine.frontend().set_config(32, flags, &[0]).unwrap();
    server.stop();
    let server = start(&path, Arc::clone(&device) as _);
    machine.connect(&path);
    assert_eq!(cache(&mut machine), 0);
    machine.frontend().set_config(32, flags, &[1]).unwrap();
    server.stop();
    let server = start(&path, device);
    machine.connect(&path);
    assert_eq!(cache(&mut machine), 1);
    drop(machine);
    // A machine that starts anew knows of no settings, and is told.
    assert_eq!(cache(&mut Machine::on(&path)), 1);
    drop(server);
}

/// Connects as soon as somebody listens there.
fn connect(machine: &mut Machine, path: &PathBuf) {
    loop {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(socket) => return machine.attach(socket),
            Err(_) => std::thread::yield_now(),
        }
    }
}

/// Writes go on while their back-end is killed, wherever that finds it.
#[test]
fn a_killed_back_end_loses_no_request_and_finishes_none_twice() {
    let folder = socket_folder();
    let (path, disk) = (folder.path().join("s"), folder.path().join("disk"));
    let file = FileDevice::create(&disk, DISK).unwrap();
    let mut machine = Machine::new(1);
    let mut dice = Dice::seeded(5);
    let mut wanted = vec![0; usize::try_from(DISK.get()).unwrap()];
    let mut backend = Backend::start(&path, &disk);
    connect(&mut machine, &path);
    for kill in 0..20 {
        for _ in 0..5 {
            let mut heads: Vec<u16> = (0..20_u64)
                .map(|slot| {
                    let mut bytes = vec![0; 4096];
                    dice.fill(&mut bytes);
                    // No two requests of a round touch the same sector.
                    let sector = slot * 64 + dice.below(56);
                    let at = usize::try_from(sector * 512).unwrap();
                    wanted[at..at + 4096].copy_from_slice(&bytes);
                    machine.put(0, OUT, sector, &bytes)
                })
                .collect();
            machine.kick(0);
            let mut back = Vec::new();
            if dice.below(2) == 0 {
                // Some came back already, perhaps.
                for _ in 0..dice.below(20_000) {
                    back.extend(machine.collect(0));
                }
                drop(backend);
                backend = Backend::start(&path, &disk);
                connect(&mut machine, &path);
            }
            back.extend(machine.wait(0, 20 - back.len()));
            let mut back: Vec<u16> = back.iter().map(|(head, _)| *head).collect();
            back.sort_unstable();
            heads.sort_unstable();
            assert_eq!(back, heads, "each came back once, kill {kill}");
        }
    }
    drop(backend);
    let mut found = vec![0; wanted.len()];
    file.read_at(ByteOffset::ZERO, &mut found).unwrap();
    assert!(found == wanted, "every write is on the disk");
}
