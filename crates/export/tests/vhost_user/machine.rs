//! The other side: a front-end with guest memory, and a driver that fills its queues.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Feature bits by name.
pub(crate) mod bit {
    pub(crate) const RO: u64 = 1 << 5;
    pub(crate) const FLUSH: u64 = 1 << 9;
    pub(crate) const DISCARD: u64 = 1 << 13;
    pub(crate) const LOG_ALL: u64 = 1 << 26;
    pub(crate) const EVENT_IDX: u64 = 1 << 29;
}

/// Request types and their answers.
pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;
pub(crate) const DISCARD: u32 = 11;
pub(crate) const WRITE_ZEROES: u32 = 13;
pub(crate) const OK: u8 = 0;
pub(crate) const FAILED: u8 = 1;
pub(crate) const UNSUPPORTED: u8 = 2;
/// What nobody answers with.
pub(crate) const UNANSWERED: u8 = 0xee;

/// Descriptor flags.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Entries of a queue.
pub(crate) const SIZE: u16 = 64;
/// Guest memory: so much from 0 on, and as much again from `HIGH` on.
pub(crate) const LOW_LEN: u64 = 8 << 20;
pub(crate) const HIGH: u64 = 4 << 30;
/// What each queue takes for its rings, from the bottom of memory on.
const RINGS: u64 = 16 << 10;
/// Memory for requests begins here; each head has a place of its own.
const ARENA: u64 = 1 << 20;
const PLACE: u64 = 16 << 10;

/// A machine: its memory survives back-ends.
pub(crate) struct Machine {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) queues: Vec<Queue>,
    pub(crate) features: u64,
    pub(crate) inflight: Option<(VhostUserInflight, File)>,
    pub(crate) frontend: Option<Frontend>,
}

/// A queue as its driver sees it.
pub(crate) struct Queue {
    index: u16,
    available: u16,
    pub(crate) seen: u16,
    next_descriptor: u16,
    kick: EventFd,
    call: EventFd,
    pub(crate) error: EventFd,
}

/// A piece of a request.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub(crate) at: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

fn memory() -> GuestMemoryMmap {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&file, LOW_LEN * 2).unwrap();
    let len = usize::try_from(LOW_LEN).unwrap();
    let low = FileOffset::new(file.try_clone().unwrap(), 0);
    let high = FileOffset::new(file, LOW_LEN);
    GuestMemoryMmap::from_ranges_with_files([
        (GuestAddress(0), len, Some(low)),
        (GuestAddress(HIGH), len, Some(high)),
    ])
    .unwrap()
}

impl Machine {
    /// A machine that is off, with queues that nobody has used.
    pub(crate) fn new(queues: u16) -> Machine {
        let queues = (0..queues).map(Queue::new).collect();
        let features = bit::FLUSH | bit::DISCARD | 1 << 14 | 1 << 11 | 1 << 28 | 1 << 30 | 1 << 32;
        Machine { memory: memory(), queues, features, inflight: None, frontend: None }
    }

    /// One with a single queue, connected to a server at `path` and running.
    pub(crate) fn on(path: &Path) -> Machine {
        let mut machine = Machine::new(1);
        machine.connect(path);
        machine
    }

    /// Connects and starts all queues where the guest's used rings say that a former back-end stopped.
    pub(crate) fn connect(&mut self, path: &Path) {
        self.attach(UnixStream::connect(path).unwrap());
    }

    pub(crate) fn attach(&mut self, socket: UnixStream) {
        let mut frontend = Frontend::from_stream(socket, 256);
        let offered = frontend.get_features().unwrap();
        assert_eq!(self.features & !offered, 0, "all of them are offered");
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD));
        frontend.set_owner().unwrap();
        frontend.set_features(self.features).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert!(frontend.get_queue_num().unwrap() >= self.queues.len() as u64);
        if self.inflight.is_none() {
            let queues = u16::try_from(self.queues.len()).unwrap();
            let asked = VhostUserInflight::new(0, 0, queues, SIZE);
            self.inflight = Some(frontend.get_inflight_fd(&asked).unwrap());
        }
        let (kept, file) = self.inflight.as_ref().unwrap();
        frontend.set_inflight_fd(kept, file.as_raw_fd()).unwrap();
        frontend.set_mem_table(&self.regions()).unwrap();
        self.frontend = Some(frontend);
        for index in 0..self.queues.len() {
            self.start(index);
        }
    }

    pub(crate) fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.memory
            .iter()
            .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
            .collect()
    }

    pub(crate) fn frontend(&mut self) -> &mut Frontend {
        self.frontend.as_mut().unwrap()
    }

    pub(crate) fn addresses(&self, index: usize, log: Option<u64>) -> VringConfigData {
        let host = |at: u64| self.memory.get_host_address(GuestAddress(at)).unwrap() as u64;
        let queue = &self.queues[index];
        VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: log.is_some().into(),
            desc_table_addr: host(queue.table()),
            used_ring_addr: host(queue.used()),
            avail_ring_addr: host(queue.available_at()),
            log_addr: log,
        }
    }

    pub(crate) fn start(&mut self, index: usize) {
        let addresses = self.addresses(index, None);
        let used = self.used_index(index);
        let queue = &self.queues[index];
        let frontend = self.frontend.as_mut().unwrap();
        frontend.set_vring_num(index, SIZE).unwrap();
        frontend.set_vring_base(index, used).unwrap();
        frontend.set_vring_addr(index, &addresses).unwrap();
        frontend.set_vring_err(index, &queue.error).unwrap();
        frontend.set_vring_kick(index, &queue.kick).unwrap();
        frontend.set_vring_call(index, &queue.call).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
    }

    pub(crate) fn used_index(&self, index: usize) -> u16 {
        let at = GuestAddress(self.queues[index].used() + 2);
        self.memory.load(at, Ordering::Acquire).unwrap()
    }

    /// Puts a descriptor where the test wants it.
    pub(crate) fn describe(&self, table: u64, index: u16, part: Part) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&part.at.to_le_bytes());
        bytes[8..12].copy_from_slice(&part.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&part.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&part.next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(table + 16 * u64::from(index))).unwrap();
    }

    /// Where the memory is that belongs to a descriptor's number, on a queue.
    pub(crate) fn place(&self, index: usize, head: u16) -> u64 {
        ARENA + (index as u64 * u64::from(SIZE) + u64::from(head)) * PLACE
    }

    /// Makes a request available without telling anybody: a header, data and a status. Returns its head.
    /// It takes three descriptors; whoever has more than 21 requests under way takes care of the rest.
    pub(crate) fn put(&mut self, index: usize, kind: u32, sector: u64, data: &[u8]) -> u16 {
        let head = self.prepare(index, kind, sector, data);
        self.publish(index);
        head
    }

    /// As [`Machine::put`], but unseen until [`Machine::publish`].
    pub(crate) fn prepare(&mut self, index: usize, kind: u32, sector: u64, data: &[u8]) -> u16 {
        let queue = &mut self.queues[index];
        let head = queue.next_descriptor;
        queue.next_descriptor = (head + 3) % (SIZE - 1);
        let (table, place) = (queue.table(), self.place(index, head));
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.write(place, &header);
        self.write(place + 16, &[UNANSWERED]);
        self.write(place + 512, data);
        let writable = if matches!(kind, IN | GET_ID) { WRITE } else { 0 };
        let len = u32::try_from(data.len()).unwrap();
        let part = |at, len, flags, next| Part { at, len, flags, next };
        let second = if data.is_empty() { head + 2 } else { head + 1 };
        self.describe(table, head, part(place, 16, NEXT, second));
        self.describe(table, head + 1, part(place + 512, len, writable | NEXT, head + 2));
        self.describe(table, head + 2, part(place + 16, 1, WRITE, 0));
        self.list(index, head);
        head
    }

    /// Makes a chain available that begins at `head`.
    pub(crate) fn offer(&mut self, index: usize, head: u16) {
        self.list(index, head);
        self.publish(index);
    }

    /// Enters a chain into the ring of what is available; the server sees it with the next [`Machine::publish`].
    fn list(&mut self, index: usize, head: u16) {
        let queue = &mut self.queues[index];
        let slot = queue.available_at() + 4 + 2 * u64::from(queue.available % SIZE);
        queue.available = queue.available.wrapping_add(1);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
    }

    /// Shows the server all that was prepared, in one step: it may be looking already, kick or no kick.
    pub(crate) fn publish(&self, index: usize) {
        self.set_available(index, self.queues[index].available);
    }

    pub(crate) fn set_available(&self, index: usize, available: u16) {
        let at = GuestAddress(self.queues[index].available_at() + 2);
        self.memory.store(available, at, Ordering::Release).unwrap();
    }

    pub(crate) fn available(&self, index: usize) -> u16 {
        self.queues[index].available
    }

    pub(crate) fn kick(&self, index: usize) {
        self.queues[index].kick.write(1).unwrap();
    }

    /// What came back since the last look: heads, and how many bytes were written for each.
    pub(crate) fn collect(&mut self, index: usize) -> Vec<(u16, u32)> {
        let used = self.used_index(index);
        let queue = &mut self.queues[index];
        let mut found = Vec::new();
        while queue.seen != used {
            let at = queue.used() + 4 + 8 * u64::from(queue.seen % SIZE);
            let [head, len]: [u32; 2] = self.memory.read_obj(GuestAddress(at)).unwrap();
            found.push((u16::try_from(head).unwrap(), len));
            queue.seen = queue.seen.wrapping_add(1);
        }
        found
    }

    /// Waits until `count` requests came back.
    pub(crate) fn wait(&mut self, index: usize, count: usize) -> Vec<(u16, u32)> {
        let mut found = Vec::new();
        loop {
            found.extend(self.collect(index));
            if found.len() >= count {
                assert_eq!(found.len(), count, "and no more");
                return found;
            }
            // A driver says from which one on it wants to be told, and looks once more.
            let queue = &self.queues[index];
            let event = GuestAddress(queue.available_at() + 4 + 2 * u64::from(SIZE));
            self.memory.store(queue.seen, event, Ordering::SeqCst).unwrap();
            std::sync::atomic::fence(Ordering::SeqCst);
            if self.used_index(index) == self.queues[index].seen {
                self.queues[index].until_called();
            }
        }
    }

    /// Has a request carried out: its status, and its data afterwards.
    pub(crate) fn ask(&mut self, kind: u32, sector: u64, data: &[u8]) -> (u8, Vec<u8>) {
        let head = self.put(0, kind, sector, data);
        self.kick(0);
        let [(back, written)] = self.wait(0, 1)[..] else { unreachable!() };
        assert_eq!(back, head);
        let place = self.place(0, head);
        let status = self.read(place + 16, 1)[0];
        if status == OK && matches!(kind, IN | GET_ID) {
            assert_eq!(written as usize, data.len() + 1);
        }
        (status, self.read(place + 512, data.len()))
    }

    pub(crate) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }
}

impl Queue {
    fn new(index: u16) -> Queue {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Queue {
            index,
            available: 0,
            seen: 0,
            next_descriptor: 0,
            kick: event(),
            call: event(),
            error: event(),
        }
    }

    pub(crate) fn table(&self) -> u64 {
        u64::from(self.index) * RINGS
    }

    pub(crate) fn available_at(&self) -> u64 {
        self.table() + (4 << 10)
    }

    pub(crate) fn used(&self) -> u64 {
        self.table() + (8 << 10)
    }

    pub(crate) fn until_called(&self) {
        until(&self.call, "the guest is told");
    }
}

/// Waits for an event, for as long as a loaded machine may need.
pub(crate) fn until(event: &EventFd, what: &str) {
    // SAFETY: the descriptor is open for as long as `event` is borrowed.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let limit = rustix::time::Timespec::try_from(Duration::from_secs(60)).unwrap();
    let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ready, 1, "{what}");
    event.read().unwrap();
}
