//! A queue's rings: requests are taken, noted, given back, and the guest is told once for many.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::disk::Memory;
use super::inflight::Notes;

/// What a front-end's queues may have at most; QEMU allows no more.
pub(crate) const MOST_ENTRIES: u16 = 1024;

/// What a front-end says of a queue before it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    pub(crate) size: u16,
    /// Guest-physical addresses of the three parts.
    pub(crate) table: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    /// Where writes to the used ring are noted, while they are.
    pub(crate) log_used_at: Option<u64>,
    /// The next entry of the available ring.
    pub(crate) base: u16,
    pub(crate) kick: Option<Arc<File>>,
    pub(crate) call: Option<Arc<File>>,
    pub(crate) error: Option<Arc<File>>,
    pub(crate) enabled: bool,
}

/// The rings of a queue that runs.
#[derive(Debug)]
pub(crate) struct Ring {
    queue: Queue,
    memory: Memory,
    notes: Option<Notes>,
    log_used_at: Option<u64>,
    call: Option<Arc<File>>,
    error: Option<Arc<File>>,
    /// The used ring's index when the guest was told last.
    told: u16,
    /// Requests that a former back-end took and did not finish, the oldest last.
    again: Vec<u16>,
    /// The guest wrote nonsense into a ring: nothing is taken from it any more.
    broken: bool,
}

/// The rings are not where or what they may be.
#[derive(Debug)]
pub(crate) struct BadRings;

impl Ring {
    pub(crate) fn new(
        setup: &Setup,
        memory: Memory,
        event_idx: bool,
        mut notes: Option<Notes>,
    ) -> Result<Ring, BadRings> {
        let mut queue = Queue::new(MOST_ENTRIES).map_err(|_| BadRings)?;
        queue.try_set_size(setup.size).map_err(|_| BadRings)?;
        queue.try_set_desc_table_address(GuestAddress(setup.table)).map_err(|_| BadRings)?;
        queue.try_set_avail_ring_address(GuestAddress(setup.available)).map_err(|_| BadRings)?;
        queue.try_set_used_ring_address(GuestAddress(setup.used)).map_err(|_| BadRings)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        let guest = memory.guest.as_ref();
        if !queue.is_valid(guest) {
            return Err(BadRings);
        }
        let used = queue.used_idx(guest, Ordering::Acquire).map_err(|_| BadRings)?.0;
        queue.set_next_used(used);
        queue.set_next_avail(setup.base);
        let mut again = notes.as_mut().map(|notes| notes.recover(used)).unwrap_or_default();
        again.reverse();
        if !again.is_empty() {
            // A front-end whose back-end died knows what came back, and not what was taken.
            let taken = u16::try_from(again.len()).map_err(|_| BadRings)?;
            queue.set_next_avail(used.wrapping_add(taken));
        }
        Ok(Ring {
            queue,
            memory,
            notes,
            log_used_at: setup.log_used_at,
            call: setup.call.clone(),
            error: setup.error.clone(),
            told: used,
            again,
            broken: false,
        })
    }

    pub(crate) fn table(&self) -> (GuestAddress, u16) {
        (GuestAddress(self.queue.desc_table()), self.queue.size())
    }

    /// Which entry of the available ring is next.
    pub(crate) fn next_available(&self) -> u16 {
        self.queue.next_avail()
    }

    pub(crate) fn set_call(&mut self, call: Option<Arc<File>>) {
        self.call = call;
    }

    pub(crate) fn set_error(&mut self, error: Option<Arc<File>>) {
        self.error = error;
    }

    /// Takes up to `most` requests: the heads of their chains.
    pub(crate) fn take(&mut self, most: usize, heads: &mut Vec<u16>) {
        while heads.len() < most
            && let Some(head) = self.again.pop()
        {
            heads.push(head);
        }
        if self.broken || heads.len() == most {
            return;
        }
        let size = self.queue.size();
        let Ok(mut available) = self.queue.iter(self.memory.guest.as_ref()) else {
            return self.give_up();
        };
        while heads.len() < most {
            let Some(chain) = available.next() else { return };
            let head = chain.head_index();
            if head >= size {
                return self.give_up();
            }
            if let Some(notes) = &mut self.notes {
                notes.begin(head);
            }
            heads.push(head);
        }
    }

    /// Asks for a kick when there is more; `false` where there already is.
    pub(crate) fn ask_for_kick(&mut self) -> bool {
        self.tell();
        if self.broken {
            return true;
        }
        let asked = self.queue.enable_notification(self.memory.guest.as_ref());
        self.mark_used();
        match asked {
            Ok(more) => !more,
            Err(_) => {
                self.give_up();
                true
            }
        }
    }

    /// Whether the guest has put something there.
    pub(crate) fn has_more(&self) -> bool {
        let guest = self.memory.guest.as_ref();
        !self.broken
            && self
                .queue
                .avail_idx(guest, Ordering::Acquire)
                .is_ok_and(|index| index.0 != self.queue.next_avail())
    }

    /// Gives requests back, each with how many bytes were written for it, and tells the guest.
    pub(crate) fn give_back(&mut self, finished: &[(u16, u32)]) {
        let guest = self.memory.guest.as_ref();
        for (head, written) in finished {
            if let Some(notes) = &self.notes {
                notes.ending(*head);
            }
            if self.queue.add_used(guest, *head, *written).is_err() {
                return self.give_up();
            }
            if let Some(notes) = &self.notes {
                notes.ended(*head, self.queue.next_used());
            }
        }
        self.mark_used();
        self.tell();
    }

    /// Tells the guest that requests came back, if it wants to know.
    ///
    /// A guest that begins to want it writes so, and then looks for itself. Between the two it has a
    /// barrier, which QEMU leaves out where it emulates a single processor: the guest may look before what it
    /// wrote can be seen here. So this is asked once more before a thread sleeps, about everything that came
    /// back since the guest was last told.
    pub(crate) fn tell(&mut self) {
        let used = self.queue.next_used();
        let untold = used.wrapping_sub(self.told);
        if untold == 0 {
            return;
        }
        // A guest that polls is never told; what it was not told long ago is not news.
        self.told = used.wrapping_sub(untold.min(1 << 15));
        fence(Ordering::SeqCst);
        let size = u64::from(self.queue.size());
        let event_idx = self.queue.event_idx_enabled();
        let at = self.queue.avail_ring() + if event_idx { 4 + 2 * size } else { 0 };
        let Ok(word) = self.memory.guest.load(GuestAddress(at), Ordering::Relaxed) else {
            return self.give_up();
        };
        let word = u16::from_le(word);
        let wanted = if event_idx {
            used.wrapping_sub(word).wrapping_sub(1) < used.wrapping_sub(self.told)
        } else {
            u32::from(word) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            self.told = used;
            signal(self.call.as_deref());
        }
    }

    /// Tells the guest in any case: whoever gave something back before may have died before it did.
    pub(crate) fn tell_anyway(&self) {
        signal(self.call.as_deref());
    }

    fn mark_used(&self) {
        if let Some(at) = self.log_used_at {
            self.memory.mark(at, 6 + 8 * u64::from(self.queue.size()));
        }
    }

    fn give_up(&mut self) {
        self.broken = true;
        signal(self.error.as_deref());
    }
}

/// Adds one to an event counter.
fn signal(event: Option<&File>) {
    if let Some(mut event) = event {
        // One that is full has been noticed by nobody, and the next is no better.
        let _ = event.write(&1_u64.to_ne_bytes());
    }
}
