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
//! | 0 | 1 | 0 none, 1 disk, 2 snapshot, 3 map being given up, 4 [part of a base](crate::base_records) |
//! | 1 | 1 | bit 0: hidden; bit 1: flushes do not sync |
//! | 2 | 2 | bytes of the name |
//! | 4 | 15 | root of the map |
//! | 24 | 11 × 8 | id, owner, parent, epoch, size, referenced, written, quota, created, cursor, base |
//! | 112 | 128 | name |
//! | 240 | 16 | identity of a snapshot that was received; zeros: it was taken here |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use kiln_block::ByteLen;

use crate::PoolError;
use crate::base::{Base, Shown};
use crate::base_records::{self, BaseRecords};
use crate::format::{BLOCK, BLOCK_LEN, get, index, put};
use crate::head::Head;
use crate::leaf::LeafMap;
use crate::node::Entry;
use crate::space::Run;

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
    /// What shows where its map says nothing.
    pub(crate) shown: Shown,
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
            self.shown.pack(),
        ];
        for (place, number) in numbers.into_iter().enumerate() {
            put(bytes, 24 + place * 8, number);
        }
        bytes[112..112 + self.name.len()].copy_from_slice(self.name.as_bytes());
        bytes[240..256].copy_from_slice(&self.identity);
    }

    /// What starts as another is, and where that came from.
    pub(crate) fn evolved(of: &State, is: Is, id: u64, created: u64, name: &str) -> State {
        State {
            is,
            hidden: false,
            throw_away: false,
            name: name.to_owned(),
            id,
            owner: 0,
            epoch: 0,
            written: 0,
            quota: 0,
            created,
            cursor: 0,
            identity: [0; 16],
            ..*of
        }
    }

    /// Whether it stands for a snapshot whose record was lost.
    pub(crate) fn stands_in(&self) -> bool {
        self.is == Is::Snapshot && self.owner == self.id
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
            shown: Shown::unpack(number(10)),
            identity,
        };
        let counts = [state.referenced, state.written, state.quota];
        let sound = state.id != 0
            && check_size(ByteLen::new(state.size)).is_ok()
            && state.shown.blocks <= state.size / BLOCK_LEN
            && counts.iter().all(|blocks| *blocks < 1 << 50);
        if !sound {
            return Err("a record with an impossible number");
        }
        Ok(Some(state))
    }
}

/// A record and where it is stored.
#[derive(Debug)]
struct Kept {
    state: State,
    slot: u64,
}

/// All records, by what is asked of them: some three hundred bytes of memory for each. Nothing but listing and checking
/// them looks at more than it is asked about.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    states: BTreeMap<u64, Box<Kept>>,
    /// Which record is where; 0 for none.
    by_slot: Vec<u64>,
    free_slots: BTreeSet<u64>,
    /// Hidden snapshots and maps being given up.
    leaving: BTreeSet<u64>,
    /// Those of them that can be dealt with now, by urgency.
    ready: BTreeSet<(u8, u64)>,
    /// By owner (0 for disks) and name.
    names: BTreeMap<(u64, Box<str>), u64>,
    /// By parent.
    children: BTreeSet<(u64, u64)>,
    /// Pages that differ from what is stored.
    pub(crate) dirty: BTreeSet<u64>,
    pub(crate) pages: u64,
    pub(crate) root: Root,
    /// Leaves of the map of pages.
    pub(crate) leaves: BTreeMap<u64, LeafMap>,
    /// Disks that are open, or were since the last checkpoint.
    pub(crate) heads: BTreeMap<u64, Arc<Head>>,
    /// Snapshots that are open.
    pub(crate) views: BTreeMap<u64, Weak<Head>>,
    pub(crate) next_id: u64,
    pub(crate) bases: BaseRecords,
    /// Why reclaiming stopped: a map that is to be given up cannot be read. Its space stays taken.
    pub(crate) reclaim_stopped: Option<PoolError>,
    /// The latest epoch of a stand-in for a snapshot whose record was lost.
    stood_in: Option<u64>,
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
    /// Takes the records of a stored page. With `losses`, those that make no sense are named there and left out.
    pub(crate) fn load_page(
        &mut self,
        page: u64,
        bytes: &[u8],
        mut losses: Option<&mut Vec<String>>,
    ) -> Result<(), PoolError> {
        for (slot, record) in (page * PER_PAGE..).zip(bytes.chunks_exact(RECORD)) {
            if record[0] == base_records::KIND {
                match (self.bases.load(slot, record), &mut losses) {
                    (Ok(()), _) => continue,
                    (Err(what), Some(losses)) => losses.push(format!("{what} in page {page}")),
                    (Err(what), None) => {
                        let found = format!("{what} in page {page} of the catalog");
                        return Err(PoolError::Damaged { found });
                    }
                }
                self.free_slots.insert(slot);
                continue;
            }
            let found = match State::decode(record) {
                Ok(Some(state)) if self.states.contains_key(&state.id) => {
                    Err("an id that is used twice")
                }
                found => found,
            };
            match found {
                Ok(Some(state)) => self.enter(Box::new(Kept { state, slot })),
                Ok(None) => {
                    self.free_slots.insert(slot);
                }
                Err(what) => {
                    let found = format!("{what} in page {page} of the catalog");
                    let Some(losses) = &mut losses else {
                        return Err(PoolError::Damaged { found });
                    };
                    self.free_slots.insert(slot);
                    losses.push(found);
                }
            }
        }
        self.pages = self.pages.max(page + 1);
        Ok(())
    }

    /// Puts bases together once all pages are loaded. With `losses`, what is not whole is named there and left out.
    pub(crate) fn load_bases(
        &mut self,
        mut losses: Option<&mut Vec<String>>,
    ) -> Result<(), PoolError> {
        for (slots, found) in self.bases.put_together() {
            self.free_slots.extend(slots);
            match &mut losses {
                Some(losses) => losses.push(found),
                None => return Err(PoolError::Damaged { found }),
            }
        }
        Ok(())
    }

    /// Forgets where it is stored, so that the next checkpoint stores all of it.
    pub(crate) fn store_anew(&mut self) {
        self.root = Root::default();
        self.leaves.clear();
        self.dirty = (0..self.pages).collect();
        let used: BTreeSet<u64> =
            self.states.values().map(|kept| kept.slot).chain(self.bases.slots()).collect();
        self.free_slots = (0..self.pages * PER_PAGE).filter(|slot| !used.contains(slot)).collect();
    }

    /// A stand-in that nothing descends from any more is of no use. Called once all records are there.
    pub(crate) fn forget_stand_ins(&mut self) {
        let useless =
            |state: &&State| state.stands_in() && self.children_of(state.id).next().is_none();
        let useless: Vec<u64> = self.all().filter(useless).map(|state| state.id).collect();
        useless.into_iter().for_each(|id| self.remove(id));
        self.stood_in = self.all().filter(|state| state.stands_in()).map(|s| s.epoch).max();
        let hidden: Vec<u64> = self.leaving.iter().copied().collect();
        hidden.into_iter().for_each(|id| self.note_ready(id));
    }

    /// A parent that is missing or leads in a circle, or an id that is yet to be given, would be believed for ever.
    pub(crate) fn check(&self) -> Result<(), PoolError> {
        for state in self.all() {
            let parent = self.get(state.parent);
            let sound = state.parent == 0
                || parent.is_some_and(|parent| {
                    parent.is == Is::Snapshot
                        && (state.is != Is::Snapshot || parent.epoch < state.epoch)
                });
            let based = state.shown.is_nothing() || self.bases.get(state.shown.base).is_some();
            if !sound || !based || state.id >= self.next_id {
                return Err(PoolError::Damaged {
                    found: format!("the catalog's record of {:?}", state.name),
                });
            }
        }
        Ok(())
    }

    fn enter(&mut self, kept: Box<Kept>) {
        let (state, slot) = (&kept.state, index(kept.slot));
        let (id, parent) = (state.id, state.parent);
        self.bases.count(state.shown, true);
        if state.is != Is::GivenUp && !state.hidden {
            self.names.insert((state.owner, state.name.as_str().into()), id);
        } else {
            self.leaving.insert(id);
        }
        if self.by_slot.len() <= slot {
            self.by_slot.resize(slot + 1, 0);
        }
        self.by_slot[slot] = id;
        self.states.insert(id, kept);
        if parent != 0 {
            self.children.insert((parent, id));
            self.note_ready(parent);
        }
        self.note_ready(id);
    }

    /// A free slot, which is taken now.
    fn take_slot(&mut self) -> u64 {
        let slot = self.free_slots.pop_first().unwrap_or_else(|| {
            let first = self.pages * PER_PAGE;
            self.pages += 1;
            self.free_slots.extend(first + 1..first + PER_PAGE);
            first
        });
        self.dirty.insert(slot / PER_PAGE);
        slot
    }

    /// Adds a record.
    pub(crate) fn add(&mut self, state: State) {
        let slot = self.take_slot();
        self.enter(Box::new(Kept { state, slot }));
    }

    /// The number of a base, which is added if there is none that is the same.
    pub(crate) fn number_of(&mut self, base: Base) -> Result<u32, PoolError> {
        let mut bases = std::mem::take(&mut self.bases);
        let number = bases.number_of(base, || self.take_slot());
        self.bases = bases;
        number
    }

    /// Removes the records of bases that nothing shows any more, and says which.
    pub(crate) fn forget_unused_bases(&mut self) -> Vec<u32> {
        let (numbers, free) = self.bases.forget_unused();
        self.dirty.extend(free.iter().map(|slot| slot / PER_PAGE));
        self.free_slots.extend(free);
        numbers
    }

    /// Changes a record.
    pub(crate) fn change(&mut self, id: u64, change: impl FnOnce(&mut State)) {
        if let Some(mut kept) = self.take(id) {
            change(&mut kept.state);
            self.enter(kept);
        }
    }

    fn take(&mut self, id: u64) -> Option<Box<Kept>> {
        let kept = self.states.remove(&id)?;
        let state = &kept.state;
        self.bases.count(state.shown, false);
        // A hidden snapshot's name may by now be another's.
        if !self.leaving.remove(&id) {
            self.names.remove(&(state.owner, state.name.as_str().into()));
        }
        if state.parent != 0 {
            self.children.remove(&(state.parent, id));
            self.note_ready(state.parent);
        }
        self.note_ready(id);
        self.dirty.insert(kept.slot / PER_PAGE);
        Some(kept)
    }

    /// Removes a record.
    pub(crate) fn remove(&mut self, id: u64) {
        if let Some(kept) = self.take(id) {
            self.by_slot[index(kept.slot)] = 0;
            self.free_slots.insert(kept.slot);
        }
    }

    /// Whether and how urgently what leaves can be dealt with: what is under way, then maps being given up, then
    /// hidden snapshots with at most one child.
    fn note_ready(&mut self, id: u64) {
        for urgency in 0..3 {
            self.ready.remove(&(urgency, id));
        }
        let urgency = match self.get(id) {
            Some(state) if state.is == Is::GivenUp => 1,
            // Whoever it stands in for may have descended from this one, and be why it has to stay.
            Some(state) if self.may_be_needed(state) => return,
            Some(state) if state.hidden && state.cursor > 0 => 0,
            Some(state) if state.hidden && self.children_of(id).nth(1).is_none() => 2,
            _ => return,
        };
        self.ready.insert((urgency, id));
    }

    fn may_be_needed(&self, state: &State) -> bool {
        let older = self.stood_in.is_some_and(|epoch| state.epoch < epoch);
        older && !(state.cursor > 0 && self.children_of(state.id).count() == 1)
    }

    /// The bytes of a page.
    pub(crate) fn page(&self, page: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        for (slot, record) in (page * PER_PAGE..).zip(bytes.chunks_exact_mut(RECORD)) {
            let id = self.by_slot.get(index(slot)).copied().unwrap_or(0);
            match self.get(id) {
                Some(state) => state.encode(record),
                None => self.bases.encode(slot, record),
            }
        }
        bytes
    }

    pub(crate) fn get(&self, id: u64) -> Option<&State> {
        self.states.get(&id).map(|kept| &kept.state)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &State> {
        self.states.values().map(|kept| &kept.state)
    }

    /// All disks, by name.
    pub(crate) fn disks(&self) -> impl Iterator<Item = &State> {
        let none: Box<str> = "".into();
        self.names.range((0, none.clone())..(1, none)).filter_map(|(_, id)| self.get(*id))
    }

    fn named(&self, owner: u64, name: &str) -> Option<&State> {
        self.names.get(&(owner, name.into())).and_then(|id| self.get(*id))
    }

    pub(crate) fn disk(&self, name: &str) -> Result<&State, PoolError> {
        self.named(0, name).ok_or_else(|| PoolError::NoDisk { name: name.to_owned() })
    }

    pub(crate) fn snapshot(&self, disk: &str, name: &str) -> Result<&State, PoolError> {
        let owner = self.disk(disk)?.id;
        self.named(owner, name)
            .ok_or_else(|| PoolError::NoSnapshot { disk: disk.to_owned(), name: name.to_owned() })
    }

    /// The visible snapshots of a disk, oldest first.
    pub(crate) fn snapshots(&self, owner: u64) -> Vec<&State> {
        let mut found: Vec<&State> = self.snapshots_by_name(owner).collect();
        found.sort_by_key(|state| state.epoch);
        found
    }

    pub(crate) fn snapshots_by_name(&self, owner: u64) -> impl Iterator<Item = &State> {
        let none: Box<str> = "".into();
        let of = self.names.range((owner, none.clone())..(owner.saturating_add(1), none));
        of.filter(move |_| owner != 0).filter_map(|(_, id)| self.get(*id))
    }

    /// A new name must be one, and free.
    pub(crate) fn may_take(&self, owner: u64, name: &str) -> Result<(), PoolError> {
        let wrong = name.is_empty()
            || name.len() > MAX_NAME
            || name.contains(|c: char| c == '@' || c == '/' || c.is_control());
        if wrong {
            return Err(PoolError::BadName { name: name.chars().take(MAX_NAME).collect() });
        }
        match self.named(owner, name).is_some() {
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

    /// What is to be freed next.
    pub(crate) fn next_reclaim(&self) -> Option<u64> {
        self.ready.first().map(|(_, id)| *id)
    }

    /// Whether there is anything to free that can be.
    pub(crate) fn wants_reclaim(&self) -> bool {
        self.reclaim_stopped.is_none() && self.next_reclaim().is_some()
    }

    /// How many records wait to be dealt with.
    pub(crate) fn reclaimable(&self) -> usize {
        self.leaving.len()
    }

    pub(crate) fn children_of(&self, id: u64) -> impl Iterator<Item = u64> {
        self.children.range((id, 0)..=(id, u64::MAX)).map(|(_, child)| *child)
    }

    /// A disk in memory.
    pub(crate) fn head(&mut self, id: u64) -> Option<Arc<Head>> {
        if let Some(head) = self.heads.get(&id) {
            return Some(head.clone());
        }
        let state = self.get(id).filter(|state| state.is == Is::Disk)?;
        let head = Head::new(state, self.floor(state), false);
        if let Some(parent) = self.get(state.parent).filter(|p| p.hidden && p.cursor > 0) {
            let merged = Some((parent.cursor, self.floor(parent)));
            head.move_to(|place| place.merged = merged);
        }
        let head = Arc::new(head);
        self.heads.insert(id, head.clone());
        Some(head)
    }

    /// Forgets disks and snapshots that nobody has open and whose records are up to date.
    pub(crate) fn forget_closed(&mut self, give_back: impl Fn(Run)) {
        self.views.retain(|_, view| view.strong_count() > 0);
        self.heads.retain(|_, head| {
            let stays = Arc::strong_count(head) > 1 || head.dirty().is_dirty();
            if !stays {
                give_back(head.take_lease());
            }
            stays
        });
    }
}

/// A disk's size must be whole blocks.
pub(crate) fn check_size(size: ByteLen) -> Result<(), PoolError> {
    let good = size.is_aligned(crate::format::BLOCK_LEN) && size <= crate::MAX_DISK;
    if good { Ok(()) } else { Err(PoolError::BadSize { size }) }
}
