//! A guest that means harm: whatever it writes into its queues, the back-end lives, and the next proper
//! request is carried out.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use kiln_block::testing::Dice;
use kiln_block::{ByteLen, MemoryDevice};
use kiln_export::Export;
use kiln_export::vhost_user::{self, Options};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

use crate::machine::{
    FAILED, HIGH, IN, INDIRECT, LOW_LEN, Machine, NEXT, OK, OUT, Part, SIZE, UNANSWERED, WRITE,
    until,
};
use crate::requests::served;

fn served_by_memory(queues: u16, test: impl FnOnce(&mut Machine)) {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(8)));
    served(Machine::new(queues), device, test);
}

/// A chain of descriptors, as (address, length, flags, next), from descriptor 40 on.
type Chain<'a> = &'a [(u64, u32, u16, u16)];

const HEADER: u64 = 6 << 20;
const DATA: u64 = HEADER + 4096;
const STATUS: u64 = HEADER + 16;
/// Where indirect tables are put.
const TABLE: u64 = HIGH + (1 << 20);

/// Offers a chain, and returns how many bytes the device said it wrote and the status.
fn offer(machine: &mut Machine, chain: Chain<'_>) -> (u32, u8) {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&OUT.to_le_bytes());
    machine.write(HEADER, &header);
    machine.write(STATUS, &[UNANSWERED]);
    let table = machine.queues[0].table();
    for (index, (at, len, flags, next)) in (40..).zip(chain) {
        let part = Part { at: *at, len: *len, flags: *flags, next: *next };
        machine.describe(table, index, part);
        machine.describe(TABLE, index - 40, part);
    }
    machine.offer(0, 40);
    machine.kick(0);
    let [(head, written)] = machine.wait(0, 1)[..] else { unreachable!() };
    assert_eq!(head, 40, "a chain comes back by the name it had");
    (written, machine.read(STATUS, 1)[0])
}

#[test]
fn chains_without_sense_come_back_and_do_nothing() {
    let absurd: [(&str, Chain<'_>); 16] = [
        ("runs in a circle", &[(HEADER, 16, NEXT, 41), (DATA, 512, NEXT, 40)]),
        ("is its own successor", &[(DATA, 512, WRITE | NEXT, 40)]),
        ("leaves the table", &[(HEADER, 16, NEXT, SIZE)]),
        ("leaves it by far", &[(HEADER, 16, NEXT, u16::MAX)]),
        ("lies outside memory", &[(LOW_LEN, 16, NEXT, 41), (STATUS, 1, WRITE, 0)]),
        ("ends outside memory", &[(LOW_LEN - 8, 16, NEXT, 41), (STATUS, 1, WRITE, 0)]),
        ("has an end that overflows", &[(u64::MAX - 3, 16, NEXT, 41), (STATUS, 1, WRITE, 0)]),
        (
            "is too long",
            &[(HEADER, 16, NEXT, 41), (DATA, u32::MAX, NEXT, 42), (STATUS, 1, WRITE, 0)],
        ),
        (
            "reads after writing",
            &[(HEADER, 16, NEXT, 41), (STATUS, 1, WRITE | NEXT, 42), (DATA, 512, 0, 0)],
        ),
        ("has no room for a status", &[(HEADER, 16, NEXT, 41), (DATA, 512, 0, 0)]),
        ("has no length", &[(HEADER, 0, NEXT, 41), (DATA, 0, WRITE, 0)]),
        ("has an empty table", &[(TABLE, 0, INDIRECT, 0)]),
        ("has a table and a half", &[(TABLE, 24, INDIRECT, 0)]),
        ("has a table in a table", &[(TABLE, 16, INDIRECT, 0)]),
        ("goes on after a table", &[(TABLE, 16, INDIRECT | NEXT, 41), (STATUS, 1, WRITE, 0)]),
        ("has a table outside memory", &[(LOW_LEN, 64, INDIRECT, 0)]),
    ];
    served_by_memory(1, |machine| {
        for (what, chain) in absurd {
            assert_eq!(offer(machine, chain), (0, UNANSWERED), "a chain that {what}");
        }
        assert_eq!(machine.ask(OUT, 0, &[1; 512]).0, OK);
    });
}

#[test]
fn requests_without_sense_fail() {
    let wrong: [(&str, Chain<'_>); 4] = [
        ("no header", &[(STATUS, 1, WRITE, 0)]),
        ("half a header", &[(HEADER, 15, NEXT, 41), (STATUS, 1, WRITE, 0)]),
        ("a header to write to", &[(HEADER + 64, 16, WRITE | NEXT, 41), (STATUS, 1, WRITE, 0)]),
        (
            "data that is no whole sector",
            &[(HEADER, 16, NEXT, 41), (DATA, 511, NEXT, 42), (STATUS, 1, WRITE, 0)],
        ),
    ];
    served_by_memory(1, |machine| {
        for (what, chain) in wrong {
            assert_eq!(offer(machine, chain), (1, FAILED), "{what}");
        }
        assert_eq!(machine.ask(OUT, 0, &[1; 512]).0, OK);
    });
}

/// The same memory may be named often: the request is as long as its pieces, and costs no more memory.
#[test]
fn a_request_of_many_large_pieces_is_carried_out_or_refused() {
    served_by_memory(1, |machine| {
        let place = 5 << 20;
        let descriptors = 1020_u16;
        for index in 0..descriptors {
            let part = Part { at: place, len: 8192, flags: WRITE | NEXT, next: index + 2 };
            machine.describe(TABLE, index + 1, part);
        }
        machine.write(HEADER, &[0; 16]);
        machine.write(STATUS, &[UNANSWERED]);
        machine.describe(TABLE, 0, Part { at: HEADER, len: 16, flags: NEXT, next: 1 });
        let status = Part { at: STATUS, len: 1, flags: WRITE, next: 0 };
        machine.describe(TABLE, descriptors + 1, status);
        let table = machine.queues[0].table();
        let len = (u32::from(descriptors) + 2) * 16;
        machine.describe(table, 0, Part { at: TABLE, len, flags: INDIRECT, next: 0 });
        machine.offer(0, 0);
        machine.kick(0);
        assert_eq!(machine.wait(0, 1), [(0, 1020 * 8192 + 1)]);
        assert_eq!(machine.read(STATUS, 1), [OK], "8 MiB into 8 KiB");

        // 1026 descriptors are more than any driver was told it may use.
        for index in 1021..1025 {
            let part = Part { at: place, len: 8192, flags: WRITE | NEXT, next: index + 1 };
            machine.describe(TABLE, index, part);
        }
        machine.describe(TABLE, 1025, status);
        machine.describe(table, 0, Part { at: TABLE, len: 1026 * 16, flags: INDIRECT, next: 0 });
        machine.offer(0, 0);
        machine.kick(0);
        assert_eq!(machine.wait(0, 1), [(0, 0)]);
    });
}

/// A queue whose rings make no sense is left alone, and its machine's other queues go on.
#[test]
fn a_queue_with_nonsense_in_its_ring_stops_alone() {
    let nonsense: [fn(&mut Machine); 2] = [
        |machine| machine.offer(0, SIZE),
        |machine| machine.set_available(0, machine.available(0).wrapping_add(SIZE + 1)),
    ];
    for write in nonsense {
        served_by_memory(2, |machine| {
            write(machine);
            machine.kick(0);
            until(&machine.queues[0].error, "the machine is told of the error");
            machine.put(1, OUT, 0, &[1; 512]);
            machine.kick(1);
            machine.wait(1, 1);
            assert_eq!(machine.collect(0), [], "nothing came back from the first");
            machine.frontend().get_vring_base(0).unwrap();
        });
    }
}

#[test]
fn no_table_of_descriptors_is_too_strange() {
    served_by_memory(2, |machine| {
        let mut dice = Dice::seeded(4);
        for round in 0..2000_u64 {
            let table = machine.queues[0].table();
            for index in 0..SIZE {
                let at = match dice.below(8) {
                    0 => dice.roll(),
                    1 => LOW_LEN - dice.below(64),
                    2 => HIGH + dice.below(LOW_LEN),
                    // Its own rings are left out, or it would be told what came back by itself.
                    _ => (64 << 10) + dice.below(LOW_LEN - (128 << 10)),
                };
                let len = match dice.below(6) {
                    0 => u32::try_from(dice.below(1 << 32)).unwrap(),
                    1 => 16,
                    2 => 1,
                    _ => u32::try_from(dice.below(64 << 10)).unwrap(),
                };
                let flags = u16::try_from(dice.below(if round % 2 == 0 { 4 } else { 8 })).unwrap();
                let next = u16::try_from(dice.below(u64::from(SIZE) + 1)).unwrap();
                machine.describe(table, index, Part { at, len, flags, next });
            }
            for _ in 0..8 {
                let head = u16::try_from(dice.below(u64::from(SIZE))).unwrap();
                machine.offer(0, head);
            }
            machine.kick(0);
            machine.wait(0, 8);
        }
        machine.put(1, IN, 0, &[1; 512]);
        machine.kick(1);
        machine.wait(1, 1);
    });
}

/// The front-end is not the guest, but it need not be believed either.
#[test]
fn a_front_end_without_sense_is_hung_up_on() {
    let acts: [fn(&mut Machine) -> bool; 6] = [
        |machine| machine.frontend().set_vring_num(0, 3).is_err(),
        |machine| {
            let addresses = machine.addresses(0, None);
            let beyond = vhost::VringConfigData { used_ring_addr: 4096, ..addresses };
            machine.frontend().set_vring_addr(0, &beyond).is_err()
        },
        |machine| machine.frontend().set_features(u64::MAX).is_err(),
        |machine| {
            let flags = VhostUserConfigFlags::WRITABLE;
            machine.frontend().set_config(0, flags, &[1]).is_err()
        },
        |machine| {
            let (kept, file) = machine.inflight.as_ref().unwrap();
            let mut wrong = *kept;
            wrong.mmap_size = 64;
            let file = std::os::fd::AsRawFd::as_raw_fd(file);
            machine.frontend.as_mut().unwrap().set_inflight_fd(&wrong, file).is_err()
        },
        |machine| {
            let mut regions = machine.regions();
            regions[1].guest_phys_addr = 4096;
            machine.frontend().set_mem_table(&regions).is_err()
        },
    ];
    for (number, act) in acts.into_iter().enumerate() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let disk = Export::new(Arc::new(MemoryDevice::new(ByteLen::mib(1))));
        let options = Options { queues: 2, ..Options::default() };
        let serving = std::thread::spawn(move || vhost_user::serve(theirs, disk, &options));
        let mut machine = Machine::new(1);
        machine.attach(ours);
        let refused = act(&mut machine);
        drop(machine);
        let ended = serving.join().unwrap();
        assert!(refused && ended.is_err(), "act {number}: {ended:?}");
    }
}
