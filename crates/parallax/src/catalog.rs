//! The catalog: every disk, every snapshot, and every map that is being given up.
//!
//! States form a tree: each evolved from its parent, a snapshot, and owns exactly the blocks born
//! after the parent's epoch. Deleting a snapshot with one child merges it into the child; with
//! several it stays, hidden, until one is left. So no block needs a count of who uses it.
//!
//! A record takes 256 bytes, 16 to a page; pages are the blocks of a disk of their own.
//!
//! | offset | size | field |
//! |-------:|-----:|-------|
//! | 0 | 1 | 0 none, 1 disk, 2 snapshot, 3 map being given up |
//! | 1 | 1 | bit 0: hidden; bit 1: flushes do not sync |
//! | 2 | 2 | bytes of the name |
//! | 4 | 15 | root of the map |
//! | 24 | 11 × 8 | id, owner, parent, epoch, size, referenced, written, quota, created, cursor, 0 |
//! | 112 | 128 | name |
//! | 240 | 16 | identity of a snapshot that was received; zeros: it was taken here |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use kiln_block::ByteLen;

use crate::PoolError;
use crate::format::{BLOCK, get, index, put};
use crate::head::Head;
use crate::leaf::LeafMap;
use crate::node::Entry;

/// Bytes of the longest name.
pub(crate) const MAX_NAME: usize = 128;
const RECORD: usize = 256;
const PER_PAGE: u64 = (BLOCK / RECORD) as u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Is {
    Disk,
    Snapshot,
    /// A map whose own blocks are being freed: of a deleted disk, or of one that was rolled back.
    GivenUp,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) is: Is,
    pub(crate) hidden: bool,
    /// Flushes do not sync.
    pub(crate) throw_away: bool,
    pub(crate) name: String,
    pub(crate) root: Entry,
    pub(crate) id: u64,
    /// The disk of a snapshot.
    pub(crate) owner: u64,
    /// The snapshot it evolved from; 0 where there is none.
    pub(crate) parent: u64,
    /// When a snapshot was taken. Of a map being given up: what was born until then stays.
    pub(crate) epoch: u64,
    pub(crate) size: u64,
    /// Blocks its map reaches.
    pub(crate) referenced: u64,
    /// Blocks ever written to it.
    pub(crate) written: u64,
    /// The most blocks it may reference; 0 for any.
    pub(crate) quota: u64,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// Leaves below this were dealt with by the reclaim under way.
    pub(crate) cursor: u64,
    /// Of a snapshot that was received: what the sender's is called in streams.
    pub(crate) identity: [u8; 16],
}

impl State {
    fn encode(&self, bytes: &mut [u8]) {
        bytes.fill(0);
        bytes[0] = match self.is {
            Is::Disk => 1,
            Is::Snapshot => 2,
            Is::GivenUp => 3,
        };
        bytes[1] = u8::from(self.hidden) | u8::from(self.throw_away) << 1;
        let len = u16::try_from(self.name.len()).unwrap_or(0);
        bytes[2..4].copy_from_slice(&len.to_le_bytes());
        self.root.encode(&mut bytes[4..19]);
        let numbers = [
            self.id,
            self.owner,
            self.parent,
            self.epoch,
            self.size,
            self.referenced,
            self.written,
            self.quota,
            self.created,
            self.cursor,
        ];
        for (place, number) in numbers.into_iter().enumerate() {
            put(bytes, 24 + place * 8, number);
        }
        bytes[112..112 + self.name.len()].copy_from_slice(self.name.as_bytes());
        bytes[240..256].copy_from_slice(&self.identity);
    }

    fn decode(bytes: &[u8]) -> Result<Option<State>, &'static str> {
        let is = match bytes[0] {
            0 => return Ok(None),
            1 => Is::Disk,
            2 => Is::Snapshot,
            3 => Is::GivenUp,
            _ => return Err("a record of an unknown kind"),
        };
        let len = usize::from(u16::from_le_bytes([bytes[2], bytes[3]]));
        let name = bytes.get(112..112 + len).filter(|_| len <= MAX_NAME);
        let name = name.and_then(|name| std::str::from_utf8(name).ok());
        let number = |place: usize| get(bytes, 24 + place * 8);
        let mut identity = [0; 16];
        identity.copy_from_slice(&bytes[240..256]);
        let state = State {
            is,
            hidden: bytes[1] & 1 != 0,
            throw_away: bytes[1] & 2 != 0,
            name: name.ok_or("a record whose name is not text")?.to_owned(),
            root: Entry::decode(&bytes[4..19]),
            id: number(0),
            owner: number(1),
            parent: number(2),
            epoch: number(3),
            size: number(4),
            referenced: number(5),
            written: number(6),
            quota: number(7),
            created: number(8),
            cursor: number(9),
            identity,
        };
        let counts = [state.referenced, state.written, state.quota];
        let sound = state.id != 0
            && check_size(ByteLen::new(state.size)).is_ok()
            && counts.iter().all(|blocks| *blocks < 1 << 50);
        if !sound {
            return Err("a record with an impossible number");
        }
        Ok(Some(state))
    }
}

/// All records, by what is asked of them.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    states: BTreeMap<u64, State>,
    slots: BTreeMap<u64, u64>,
    by_slot: BTreeMap<u64, u64>,
    free_slots: BTreeSet<u64>,
    /// Hidden snapshots and maps being given up.
    leaving: BTreeSet<u64>,
    /// By owner (0 for disks) and name.
    names: BTreeMap<(u64, String), u64>,
    children: BTreeMap<u64, BTreeSet<u64>>,
    /// Pages that differ from what is stored.
    pub(crate) dirty: BTreeSet<u64>,
    pub(crate) pages: u64,
    pub(crate) root: Root,
    /// Leaves of the map of pages.
    pub(crate) leaves: BTreeMap<u64, LeafMap>,
    pub(crate) heads: BTreeMap<u64, Arc<Head>>,
    /// Snapshots that are open.
    pub(crate) views: BTreeMap<u64, Weak<Head>>,
    pub(crate) next_id: u64,
    /// Why reclaiming stopped: a map that is to be given up cannot be read. Its space stays taken.
    pub(crate) reclaim_stopped: Option<PoolError>,
}

/// A root that starts as a hole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Root(pub(crate) Entry);

impl Default for Root {
    fn default() -> Root {
        Root(Entry::HOLE)
    }
}

impl Catalog {
    /// Takes the records of a stored page.
    pub(crate) fn load_page(&mut self, page: u64, bytes: &[u8]) -> Result<(), PoolError> {
        for (slot, record) in (page * PER_PAGE..).zip(bytes.chunks_exact(RECORD)) {
            let damaged = |what: &str| PoolError::Damaged {
                found: format!("{what} in page {page} of the catalog"),
            };
            match State::decode(record).map_err(damaged)? {
                None => {
                    self.free_slots.insert(slot);
                }
                Some(state) if self.states.contains_key(&state.id) => {
                    return Err(damaged("an id that is used twice"));
                }
                Some(state) => {
                    self.slots.insert(state.id, slot);
                    self.by_slot.insert(slot, state.id);
                    self.enter(state);
                }
            }
        }
        self.pages = self.pages.max(page + 1);
        Ok(())
    }

    /// A parent that is missing or leads in a circle, or an id that is yet to be given, would be believed for ever.
    pub(crate) fn check(&self) -> Result<(), PoolError> {
        for state in self.states.values() {
            let parent = self.states.get(&state.parent);
            let sound = state.parent == 0
                || parent.is_some_and(|parent| {
                    parent.is == Is::Snapshot
                        && (state.is != Is::Snapshot || parent.epoch < state.epoch)
                });
            if !sound || state.id >= self.next_id {
                return Err(PoolError::Damaged {
                    found: format!("the catalog's record of {:?}", state.name),
                });
            }
        }
        Ok(())
    }

    fn enter(&mut self, state: State) {
        if state.is != Is::GivenUp && !state.hidden {
            self.names.insert((state.owner, state.name.clone()), state.id);
        } else {
            self.leaving.insert(state.id);
        }
        if state.parent != 0 {
            self.children.entry(state.parent).or_default().insert(state.id);
        }
        self.states.insert(state.id, state);
    }

    /// Adds a record.
    pub(crate) fn add(&mut self, state: State) {
        let slot = self.free_slots.pop_first().unwrap_or_else(|| {
            let first = self.pages * PER_PAGE;
            self.pages += 1;
            self.free_slots.extend(first + 1..first + PER_PAGE);
            first
        });
        self.slots.insert(state.id, slot);
        self.by_slot.insert(slot, state.id);
        self.dirty.insert(slot / PER_PAGE);
        self.enter(state);
    }

    /// Changes a record.
    pub(crate) fn change(&mut self, id: u64, change: impl FnOnce(&mut State)) {
        if let Some(mut state) = self.take(id) {
            change(&mut state);
            self.enter(state);
        }
    }

    fn take(&mut self, id: u64) -> Option<State> {
        let state = self.states.remove(&id)?;
        // A hidden snapshot's name may by now be another's.
        if !self.leaving.remove(&id) {
            self.names.remove(&(state.owner, state.name.clone()));
        }
        if let Some(siblings) = self.children.get_mut(&state.parent) {
            siblings.remove(&id);
            if siblings.is_empty() {
                self.children.remove(&state.parent);
            }
        }
        if let Some(slot) = self.slots.get(&id) {
            self.dirty.insert(slot / PER_PAGE);
        }
        Some(state)
    }

    /// Removes a record.
    pub(crate) fn remove(&mut self, id: u64) {
        self.take(id);
        if let Some(slot) = self.slots.remove(&id) {
            self.by_slot.remove(&slot);
            self.free_slots.insert(slot);
        }
    }

    /// The bytes of a page.
    pub(crate) fn page(&self, page: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        let range = page * PER_PAGE..(page + 1) * PER_PAGE;
        for (slot, id) in self.by_slot.range(range) {
            if let Some(state) = self.states.get(id) {
                state.encode(&mut bytes[index(slot % PER_PAGE) * RECORD..][..RECORD]);
            }
        }
        bytes
    }

    pub(crate) fn get(&self, id: u64) -> Option<&State> {
        self.states.get(&id)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &State> {
        self.states.values()
    }

    pub(crate) fn disk(&self, name: &str) -> Result<&State, PoolError> {
        let id = self.names.get(&(0, name.to_owned()));
        id.and_then(|id| self.get(*id)).ok_or_else(|| PoolError::NoDisk { name: name.to_owned() })
    }

    pub(crate) fn snapshot(&self, disk: &str, name: &str) -> Result<&State, PoolError> {
        let owner = self.disk(disk)?.id;
        let id = self.names.get(&(owner, name.to_owned()));
        id.and_then(|id| self.get(*id))
            .ok_or_else(|| PoolError::NoSnapshot { disk: disk.to_owned(), name: name.to_owned() })
    }

    /// The visible snapshots of a disk, oldest first.
    pub(crate) fn snapshots(&self, owner: u64) -> Vec<&State> {
        let from = (owner, String::new());
        let named = self.names.range(from..).take_while(|((of, _), _)| *of == owner && owner != 0);
        let mut found: Vec<&State> = named.filter_map(|(_, id)| self.get(*id)).collect();
        found.sort_by_key(|state| state.epoch);
        found
    }

    /// A new name must be one, and free.
    pub(crate) fn may_take(&self, owner: u64, name: &str) -> Result<(), PoolError> {
        let wrong = name.is_empty()
            || name.len() > MAX_NAME
            || name.contains(|c: char| c == '@' || c == '/' || c.is_control());
        if wrong {
            return Err(PoolError::BadName { name: name.chars().take(MAX_NAME).collect() });
        }
        match self.names.contains_key(&(owner, name.to_owned())) {
            true => Err(PoolError::Exists { name: name.to_owned() }),
            false => Ok(()),
        }
    }

    pub(crate) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// The epoch of a state's parent: what was born later is its own.
    pub(crate) fn floor(&self, state: &State) -> u64 {
        self.get(state.parent).map_or(0, |parent| parent.epoch)
    }

    /// What is left to free: maps being given up first, then hidden snapshots with at most one child.
    pub(crate) fn next_reclaim(&self) -> Option<u64> {
        let leaving = || self.leaving.iter().filter_map(|id| self.get(*id));
        let under_way = leaving().find(|state| state.hidden && state.cursor > 0);
        let given_up = || leaving().find(|state| state.is == Is::GivenUp);
        let hidden = || leaving().find(|s| s.hidden && self.children_of(s.id).len() <= 1);
        under_way.or_else(given_up).or_else(hidden).map(|state| state.id)
    }

    /// How many records wait to be dealt with.
    pub(crate) fn reclaimable(&self) -> usize {
        self.leaving.len()
    }

    pub(crate) fn children_of(&self, id: u64) -> Vec<u64> {
        self.children.get(&id).map(|ids| ids.iter().copied().collect()).unwrap_or_default()
    }

    /// Brings the records of disks up to date with what was written to them.
    pub(crate) fn note_heads(&mut self) {
        let heads: Vec<Arc<Head>> = self.heads.values().cloned().collect();
        for head in heads {
            let root = head.place().root;
            let (size, referenced, written) = (
                head.size.load(Ordering::Acquire),
                head.referenced.load(Ordering::Relaxed),
                head.written.load(Ordering::Relaxed),
            );
            let stale = self.get(head.id).is_some_and(|state| {
                (state.root, state.size, state.referenced, state.written)
                    != (root, size, referenced, written)
            });
            if stale {
                self.change(head.id, |state| {
                    state.root = root;
                    state.size = size;
                    state.referenced = referenced;
                    state.written = written;
                });
            }
        }
    }
}

/// A disk's size must be whole blocks.
pub(crate) fn check_size(size: ByteLen) -> Result<(), PoolError> {
    let good = size.is_aligned(crate::format::BLOCK_LEN) && size <= crate::MAX_DISK;
    if good { Ok(()) } else { Err(PoolError::BadSize { size }) }
}
