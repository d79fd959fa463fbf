//! What a driver may ask for, and what it gets.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use kiln_block::testing::{Act, Dice, FaultDisk, GateDisk};
use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice, zeros};
use kiln_export::Export;
use kiln_export::vhost_user::{self, Options};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

use crate::machine::{
    DISCARD, FAILED, FLUSH, GET_ID, HIGH, IN, INDIRECT, Machine, NEXT, OK, OUT, Part, SIZE,
    UNSUPPORTED, WRITE, WRITE_ZEROES, bit,
};

const DISK: ByteLen = ByteLen::mib(8);
const EIO: i32 = 5;

/// A machine and the thread that serves it on a pair of sockets.
pub(crate) fn served(
    mut machine: Machine,
    device: Arc<dyn BlockDevice>,
    test: impl FnOnce(&mut Machine),
) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let options =
        Options { serial: "serial-of-some-twenty-or-more".to_owned(), ..Options::default() };
    let serving =
        std::thread::spawn(move || vhost_user::serve(theirs, Export::new(device), &options));
    machine.attach(ours);
    test(&mut machine);
    drop(machine);
    serving.join().unwrap().unwrap();
}

fn with_memory(test: impl FnOnce(&mut Machine, &MemoryDevice)) {
    let device = Arc::new(MemoryDevice::new(DISK));
    served(Machine::new(1), Arc::clone(&device) as _, |machine| test(machine, &device));
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn what_is_written_is_on_the_disk_and_read_back() {
    with_memory(|machine, device| {
        let mut bytes = vec![0; 4096];
        Dice::seeded(1).fill(&mut bytes);
        assert_eq!(machine.ask(OUT, 8, &bytes).0, OK);
        assert_eq!(device.to_vec()[4096..8192], bytes);
        assert_eq!(machine.ask(IN, 8, &[0xff; 4096]), (OK, bytes.clone()));
        assert_eq!(machine.ask(IN, 9, &[0xff; 512]), (OK, bytes[512..1024].to_vec()));
        assert_eq!(machine.ask(FLUSH, 0, &[]).0, OK);
    });
}

/// A driver may cut a request wherever it likes, and put the pieces anywhere.
#[test]
fn a_request_may_be_in_pieces_of_any_length_in_any_memory() {
    with_memory(|machine, device| {
        let mut bytes = vec![0; 1024];
        Dice::seeded(2).fill(&mut bytes);
        let (table, at) = (machine.queues[0].table(), HIGH + 100);
        let mut message = vec![0; 16];
        message[..4].copy_from_slice(&OUT.to_le_bytes());
        message[8] = 2;
        message.extend(&bytes);
        // The header's end and the data's beginning share a piece; one piece has no length at all.
        let mut done = 0;
        for (index, len) in (0..).zip([5_usize, 30, 0, 1, 700, 304]) {
            let place = at + 2000 * u64::from(index);
            machine.write(place, &message[done..done + len]);
            let len32 = u32::try_from(len).unwrap();
            let part = Part { at: place, len: len32, flags: NEXT, next: index + 1 };
            machine.describe(table, index, part);
            done += len;
        }
        machine.describe(table, 6, Part { at: 3 << 20, len: 1, flags: WRITE, next: 0 });
        machine.offer(0, 0);
        machine.kick(0);
        assert_eq!(machine.wait(0, 1), [(0, 1)]);
        assert_eq!(machine.read(3 << 20, 1), [OK]);
        assert_eq!(device.to_vec()[1024..2048], bytes);
    });
}

#[test]
fn a_request_may_be_in_a_table_of_its_own() {
    with_memory(|machine, device| {
        let table = machine.queues[0].table();
        let place = machine.place(0, 0);
        let indirect = HIGH + 4096;
        let mut header = [0; 16];
        header[0] = 1;
        machine.write(place, &header);
        machine.write(place + 512, &[7; 1024]);
        let part = |at, len, flags, next| Part { at, len, flags, next };
        machine.describe(indirect, 0, part(place, 16, NEXT, 2));
        machine.describe(indirect, 2, part(place + 512, 512, NEXT, 1));
        machine.describe(indirect, 1, part(place + 1024, 512, NEXT, 3));
        machine.describe(indirect, 3, part(place + 16, 1, WRITE, 0));
        machine.describe(table, 9, part(indirect, 64, INDIRECT, 0));
        machine.offer(0, 9);
        machine.kick(0);
        assert_eq!(machine.wait(0, 1), [(9, 1)]);
        assert_eq!(machine.read(place + 16, 1), [OK]);
        assert_eq!(device.to_vec()[..1024], [7; 1024]);
    });
}

#[test]
fn the_serial_number_is_the_one_that_was_chosen() {
    with_memory(|machine, _| {
        assert_eq!(machine.ask(GET_ID, 0, &[0; 20]), (OK, b"serial-of-some-twent".to_vec()));
        assert_eq!(machine.ask(GET_ID, 0, &[0; 6]), (OK, b"serial".to_vec()));
    });
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeros_and_others_stay() {
    with_memory(|machine, device| {
        for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)] {
            device.write_at(ByteOffset::ZERO, &vec![9; 1 << 20]).unwrap();
            let ranges = [range(0, 8, flags), range(16, 1, flags), range(2047, 1, flags)].concat();
            assert_eq!(machine.ask(kind, 0, &ranges).0, OK);
            let found = device.to_vec();
            for (sector, bytes) in found[..1 << 20].chunks(512).enumerate() {
                let cleared = sector < 8 || sector == 16 || sector == 2047;
                let wanted = if cleared { 0 } else { 9 };
                assert!(bytes.iter().all(|byte| *byte == wanted), "sector {sector}");
            }
        }
    });
}

/// Everything about a request is looked at before anything is done.
#[test]
fn what_cannot_be_done_changes_nothing() {
    with_memory(|machine, device| {
        device.write_at(ByteOffset::ZERO, &vec![9; 8 << 20]).unwrap();
        let sectors = DISK.get() / 512;
        for (kind, sector, data, answer) in [
            (OUT, sectors - 1, vec![1; 1024], FAILED),
            (OUT, sectors, vec![1; 512], FAILED),
            (OUT, u64::MAX, vec![1; 512], FAILED),
            (OUT, u64::MAX / 512, vec![1; 512], FAILED),
            (OUT, 0, vec![1; 100], FAILED),
            (IN, sectors, vec![1; 512], FAILED),
            (IN, 0, vec![1; 513], FAILED),
            (DISCARD, 0, vec![], FAILED),
            (DISCARD, 0, vec![0; 15], FAILED),
            (DISCARD, 0, [range(0, 1, 0), range(sectors, 1, 0)].concat(), FAILED),
            (DISCARD, 0, range(0, 1, 1), UNSUPPORTED),
            (WRITE_ZEROES, 0, range(0, 1, 2), UNSUPPORTED),
            (WRITE_ZEROES, 0, range(0, u32::MAX, 0), FAILED),
            (WRITE_ZEROES, 0, range(u64::MAX, 1, 0), FAILED),
            (WRITE_ZEROES, 0, range(0, 1, 0).repeat(33), FAILED),
            (77, 0, vec![1; 512], UNSUPPORTED),
        ] {
            let (status, _) = machine.ask(kind, sector, &data);
            assert_eq!(status, answer, "{kind} at {sector}, {} bytes", data.len());
        }
        assert!(device.to_vec().iter().all(|byte| *byte == 9), "nothing was changed");
        assert_eq!(machine.ask(OUT, sectors - 1, &[1; 512]).0, OK, "the last sector is there");
    });
}

#[test]
fn a_disk_that_may_only_be_read_says_so_and_refuses() {
    let mut machine = Machine::new(1);
    machine.features = machine.features & !(bit::DISCARD | 1 << 14) | bit::RO;
    served(machine, Arc::new(zeros(DISK)), |machine| {
        assert_eq!(machine.ask(IN, 0, &[1; 512]), (OK, vec![0; 512]));
        assert_eq!(machine.ask(OUT, 0, &[1; 512]).0, FAILED);
        assert_eq!(machine.ask(DISCARD, 0, &range(0, 1, 0)).0, FAILED);
        assert_eq!(machine.ask(FLUSH, 0, &[]).0, OK);
    });
}

#[test]
fn errors_of_the_disk_reach_the_guest() {
    let disk = Arc::new(FaultDisk::new(MemoryDevice::new(DISK)));
    served(Machine::new(1), Arc::clone(&disk) as _, |machine| {
        for (act, kind, data) in [
            (Act::Read, IN, &[1_u8; 512][..]),
            (Act::Write, OUT, &[1; 512]),
            (Act::Flush, FLUSH, &[]),
        ] {
            disk.fail(act, 0, EIO, false);
            assert_eq!(machine.ask(kind, 0, data).0, FAILED, "{kind}");
            disk.heal();
            assert_eq!(machine.ask(kind, 0, data).0, OK, "{kind}");
        }
    });
}

/// Writes are volatile until the guest says that it counts on them, and then they are not.
#[test]
fn writes_are_durable_before_they_are_done_when_the_guest_counts_on_it() {
    let cache = |machine: &mut Machine, value: u8| {
        let flags = VhostUserConfigFlags::WRITABLE;
        machine.frontend().set_config(32, flags, &[value]).unwrap();
        let (_, found) = machine.frontend().get_config(32, 1, flags, &[0]).unwrap();
        assert_eq!(found, [value]);
    };
    let disk = Arc::new(FaultDisk::new(MemoryDevice::new(DISK)));
    served(Machine::new(1), Arc::clone(&disk) as _, |machine| {
        let (_, found) =
            machine.frontend().get_config(32, 1, VhostUserConfigFlags::empty(), &[0]).unwrap();
        assert_eq!(found, [1], "the cache is volatile at first");
        assert_eq!(machine.ask(OUT, 0, &[1; 512]).0, OK);
        assert_eq!(disk.calls(Act::Flush), 0);

        cache(machine, 0);
        let zeroes = range(8, 1, 0);
        for (count, (kind, data)) in
            (1..).zip([(OUT, &[1; 512][..]), (WRITE_ZEROES, &zeroes), (DISCARD, &zeroes)])
        {
            assert_eq!(machine.ask(kind, 0, data).0, OK);
            assert_eq!(disk.calls(Act::Flush), count);
        }
        assert_eq!(machine.ask(IN, 0, &[0; 512]).0, OK);
        assert_eq!(disk.calls(Act::Flush), 3, "reads have nothing to flush");
        disk.fail(Act::Flush, 0, EIO, false);
        assert_eq!(machine.ask(OUT, 0, &[1; 512]).0, FAILED, "what is not durable is not done");

        cache(machine, 1);
        assert_eq!(machine.ask(OUT, 0, &[1; 512]).0, OK);
        assert_eq!(disk.calls(Act::Flush), 4);
    });

    let disk = Arc::new(FaultDisk::new(MemoryDevice::new(DISK)));
    let mut machine = Machine::new(1);
    machine.features &= !(bit::FLUSH | 1 << 11);
    served(machine, Arc::clone(&disk) as _, |machine| {
        assert_eq!(machine.ask(OUT, 0, &[1; 512]).0, OK);
        assert_eq!(disk.calls(Act::Flush), 1, "a guest that cannot flush counts on every write");
    });
}

/// What a kill of this process could undo is not done yet: the guest outlives the process, and saw no power cut.
#[test]
fn a_write_is_done_once_it_is_settled_and_fails_if_it_cannot_be() {
    let zeroes = range(8, 1, 0);
    let writes = [(OUT, &[1; 512][..]), (WRITE_ZEROES, &zeroes), (DISCARD, &zeroes)];

    let memory = MemoryDevice::new(DISK);
    let disk = Arc::new(GateDisk::new(memory, |act, _| act == Act::Settle));
    served(Machine::new(1), Arc::clone(&disk) as _, |machine| {
        for (kind, data) in writes {
            disk.shut();
            machine.put(0, kind, 0, data);
            machine.kick(0);
            disk.until_waiting(1);
            assert_eq!(machine.collect(0), [], "request {kind} is not settled yet");
            disk.open();
            machine.wait(0, 1);
        }
        assert_eq!(machine.ask(IN, 0, &[0; 512]).0, OK);
        assert_eq!(disk.callers(Act::Settle).len(), 3, "reads have nothing to settle");
    });

    let disk = Arc::new(FaultDisk::new(MemoryDevice::new(DISK)));
    served(Machine::new(1), Arc::clone(&disk) as _, |machine| {
        for is_volatile in [1, 0] {
            let flags = VhostUserConfigFlags::WRITABLE;
            machine.frontend().set_config(32, flags, &[is_volatile]).unwrap();
            for (kind, data) in writes {
                disk.fail(Act::Settle, 0, EIO, false);
                assert_eq!(machine.ask(kind, 0, data).0, FAILED, "request {kind}");
                assert_eq!(machine.ask(kind, 0, data).0, OK, "request {kind}");
            }
        }
        // Together they are settled, or fail; a read among them does not.
        disk.fail(Act::Settle, 0, EIO, true);
        let heads = [OUT, IN, OUT].map(|kind| machine.put(0, kind, 0, &[1; 512]));
        machine.kick(0);
        machine.wait(0, 3);
        let found = heads.map(|head| machine.read(machine.place(0, head) + 16, 1)[0]);
        assert_eq!(found, [FAILED, OK, FAILED]);
    });
}

/// Several flushes that wait together cost the disk one.
#[test]
fn flushes_that_arrive_together_are_one() {
    let disk = Arc::new(FaultDisk::new(MemoryDevice::new(DISK)));
    served(Machine::new(1), Arc::clone(&disk) as _, |machine| {
        for sector in 0..8 {
            machine.prepare(0, OUT, sector, &[1; 512]);
            machine.prepare(0, FLUSH, 0, &[]);
        }
        machine.publish(0);
        machine.kick(0);
        machine.wait(0, 16);
        assert_eq!(disk.calls(Act::Flush), 1);
        assert_eq!(disk.calls(Act::Write), 8);
    });
}

#[test]
fn queues_run_side_by_side_and_ask_for_few_kicks() {
    for features in [0, bit::EVENT_IDX] {
        let mut machine = Machine::new(4);
        machine.features |= features;
        let device = Arc::new(MemoryDevice::new(DISK));
        served(machine, Arc::clone(&device) as _, |machine| {
            let mut dice = Dice::seeded(3);
            let mut wanted = vec![0; usize::try_from(DISK.get()).unwrap()];
            for round in 0..40 {
                let mut counts = [0; 4];
                for (index, count) in counts.iter_mut().enumerate() {
                    *count = usize::try_from(dice.below(u64::from(SIZE / 3))).unwrap();
                    for slot in 0..*count {
                        // Every request of a round has a sector of its own.
                        let sector = (index * 1024 + slot * 8) as u64 + round % 8;
                        let mut bytes = vec![0; 512];
                        dice.fill(&mut bytes);
                        let at = usize::try_from(sector).unwrap() * 512;
                        wanted[at..at + 512].copy_from_slice(&bytes);
                        machine.put(index, OUT, sector, &bytes);
                    }
                    machine.kick(index);
                }
                for (index, count) in counts.into_iter().enumerate() {
                    machine.wait(index, count);
                }
            }
            assert!(device.to_vec() == wanted, "every write is where it belongs");
        });
    }
}

#[test]
fn the_configuration_describes_the_disk() {
    with_memory(|machine, _| {
        let flags = VhostUserConfigFlags::empty();
        let (_, space) = machine.frontend().get_config(0, 60, flags, &[0; 60]).unwrap();
        let word = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
        assert_eq!(space[..8], (DISK.get() / 512).to_le_bytes());
        assert_eq!((word(8), word(12), word(20)), (2 << 20, 126, 512), "segments and sectors");
        assert_eq!((space[24], space[25], space[26]), (3, 0, 8), "4 KiB are natural");
        assert_eq!(space[34], 16, "queues");
        assert_eq!((word(36), word(40), word(44)), (1 << 21, 32, 8), "discard");
        assert_eq!((word(48), word(52), space[56]), (1 << 21, 32, 1), "write-zeroes");
        let (_, more) = machine.frontend().get_config(56, 100, flags, &[0; 100]).unwrap();
        assert_eq!((more[0], more[4]), (1, 0), "zeros follow");
    });
}
