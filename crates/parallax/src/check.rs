//! Whether a pool is whole: every map can be walked, every checksum is right, and the free map says what the maps say.

use kiln_block::ByteOffset;

use crate::PoolError;
use crate::catalog::Is;
use crate::core::Core;
use crate::format::{BLOCK, BLOCK_LEN, index};
use crate::leaf::GROUP;
use crate::node::{Entry, FANOUT, Kind, ROOT_LEVEL, leaves_below};
use crate::pool::Pool;
use crate::reclaim::Share;
use crate::sync::atomic::Ordering;

/// What [`Pool::verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Nodes of maps that were read.
    pub nodes: u64,
    /// Blocks of data that maps reach.
    pub data_blocks: u64,
    /// What is wrong, a sentence each; at most a thousand.
    pub problems: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    fn problem(&mut self, text: String) {
        if self.problems.len() < 1000 {
            self.problems.push(text);
        }
    }
}

/// Which blocks of data a walk reads.
#[derive(PartialEq, Eq)]
enum Read {
    None,
    /// Those that are not marked as good already.
    Rest,
}

/// Which block of a disk each data block belongs to: it has the same place in every map. A disk has at most
/// 2³² blocks.
#[derive(Default)]
struct Places(Vec<Vec<u32>>);

/// Blocks of the pool whose places are kept together.
const TOGETHER: usize = 1 << 16;
const NOWHERE: u32 = u32::MAX;

impl Places {
    /// Notes a place, unless there is one: returns the one there is.
    fn at(&mut self, block: u64, lba: u64) -> u64 {
        let block = index(block);
        if self.0.len() <= block / TOGETHER {
            self.0.resize(block / TOGETHER + 1, Vec::new());
        }
        let part = &mut self.0[block / TOGETHER];
        if part.is_empty() {
            part.resize(TOGETHER, NOWHERE);
        }
        let place = &mut part[block % TOGETHER];
        if *place == NOWHERE {
            *place = u32::try_from(lba).unwrap_or(NOWHERE);
        }
        if *place == NOWHERE { lba } else { u64::from(*place) }
    }
}

/// What a walk of all maps keeps in mind.
struct Walk<'a> {
    core: &'a Core,
    reached: Vec<u64>,
    places: Places,
    read: Read,
    /// Blocks whose data was read and is right.
    good: Vec<u64>,
    report: Report,
    bytes: Vec<u8>,
}

impl Walk<'_> {
    /// True the first time.
    fn reach(&mut self, block: u64) -> bool {
        let word = &mut self.reached[index(block / 64)];
        let first = *word >> (block % 64) & 1 == 0;
        *word |= 1 << (block % 64);
        first
    }

    /// A map, from leaf `cursor` on, of what was born after `keep`.
    fn map(&mut self, of: &str, at: (u32, u64), entry: Entry, keep: u64, cursor: u64) {
        let (level, first) = at;
        if entry.is_hole() || entry.birth <= keep || first + leaves_below(level) <= cursor {
            return;
        }
        if entry.birth > self.core.epoch.load(Ordering::Acquire) {
            self.report.problem(format!("{of}: leaf {first} was written in the future"));
        }
        if self.is_known(entry) && cursor == 0 && keep == 0 {
            return;
        }
        let node = match self.core.node(entry, level, first) {
            Ok(node) => node,
            Err(error) => return self.report.problem(format!("{of}: {error}")),
        };
        self.report.nodes += 1;
        // What was found out about the blocks of a group, which its leaves may share.
        let mut group = (0, Vec::new());
        for (place, child) in node.mapped() {
            let below = first + place as u64 * leaves_below(level - 1);
            if level > 1 {
                self.map(of, (level - 1, below), child, keep, cursor);
            } else if child.birth > keep && below >= cursor {
                if group.0 != place / GROUP {
                    group = (place / GROUP, Vec::new());
                }
                let before = group.1.iter().find(|(entry, _)| *entry == child);
                let known = before.map(|(_, known)| *known).unwrap_or_else(|| {
                    let known = self.is_known(child);
                    self.report.nodes += 1;
                    group.1.push((child, known));
                    known
                });
                if !known || cursor > 0 || keep > 0 {
                    self.leaf(of, below, child, keep);
                }
            }
        }
    }

    /// What is shared was looked at already, unless only a part of it was.
    fn is_known(&mut self, entry: Entry) -> bool {
        self.core.space.holds(entry.block) && !self.reach(entry.block)
    }

    fn leaf(&mut self, of: &str, number: u64, entry: Entry, keep: u64) {
        let leaf = match self.core.read_leaf(entry, number) {
            Ok(leaf) => leaf,
            Err(error) => return self.report.problem(format!("{of}: {error}")),
        };
        let stored = |entry: &Entry| entry.birth > keep && !entry.is_zeros();
        for (place, entry) in leaf.mapped().filter(|(_, entry)| stored(entry)) {
            self.data(of, number * FANOUT + place as u64, entry);
        }
    }

    fn data(&mut self, of: &str, lba: u64, entry: Entry) {
        if entry.kind != Kind::Data || !self.core.space.holds(entry.block) {
            return self.report.problem(format!("{of}: block {lba} points outside the pool"));
        }
        let other = self.places.at(entry.block, lba);
        if other != lba {
            let block = entry.block;
            self.report.problem(format!("{of}: block {lba} and {other} are both block {block}"));
        }
        if !self.reach(entry.block) {
            return;
        }
        self.report.data_blocks += 1;
        let (word, bit) = (index(entry.block / 64), 1 << (entry.block % 64));
        if self.read == Read::None || self.good.get(word).is_some_and(|good| good & bit != 0) {
            return;
        }
        let at = ByteOffset::new(entry.block * BLOCK_LEN);
        let found = match self.core.device.read_at(at, &mut self.bytes) {
            Err(error) => format!("{of}: block {lba}: {error}"),
            Ok(()) if self.core.sums.data(lba, &self.bytes) != entry.crc => {
                format!("{of}: block {lba} (block {} of the pool) is damaged", entry.block)
            }
            Ok(()) => {
                if let Some(good) = self.good.get_mut(word) {
                    *good |= bit;
                }
                return;
            }
        };
        self.report.problem(found);
    }
}

/// A map that is to be walked.
struct Root {
    of: String,
    entry: Entry,
    /// What was born until then is another's.
    keep: u64,
    /// Leaves below it are another's.
    cursor: u64,
}

impl Core {
    /// Every map there is, those that are walked whole first, so that "known" means "looked at whole".
    fn roots(&self) -> (Entry, Vec<Root>) {
        let catalog = self.catalog();
        let partly = |state: &&crate::catalog::State| state.is == Is::GivenUp || state.cursor > 0;
        let whole = catalog.all().filter(|state| !partly(state)).map(|state| {
            let owner = catalog.get(state.owner).map_or(String::new(), |o| format!("{}@", o.name));
            let of = format!("{owner}{}", state.name);
            Root { of, entry: state.root, keep: 0, cursor: 0 }
        });
        let partial = catalog.all().filter(partly).map(|state| {
            let keep = if state.is == Is::GivenUp { state.epoch } else { catalog.floor(state) };
            let of = "a deleted map".to_owned();
            Root { of, entry: state.root, keep, cursor: state.cursor }
        });
        (catalog.root.0, whole.chain(partial).collect())
    }

    fn walk(&self, read: Read, good: Vec<u64>) -> Walk<'_> {
        let mut walk = Walk {
            core: self,
            reached: vec![0; index(self.space.end().div_ceil(64))],
            places: Places::default(),
            read,
            good,
            report: Report::default(),
            bytes: vec![0; BLOCK],
        };
        let at = (ROOT_LEVEL, 0);
        let (catalog, roots) = self.roots();
        walk.map("the catalog", at, catalog, 0, 0);
        // A data block of the catalog is at no place of any disk.
        walk.places = Places::default();
        for root in roots {
            walk.map(&root.of, at, root.entry, root.keep, root.cursor);
        }
        walk
    }

    /// Bits of all blocks that stored maps reach, and what cannot be read of the maps.
    pub(crate) fn reached_blocks(&self) -> (Vec<u64>, Vec<String>) {
        let walk = self.walk(Read::None, Vec::new());
        (walk.reached, walk.report.problems)
    }
}

impl Pool {
    /// Walks everything. With `read_data`, every block is read and compared with its checksum; else only
    /// the maps are. Disks are read and written meanwhile; what is written meanwhile may not be looked at.
    pub fn verify(&self, read_data: bool) -> Result<Report, PoolError> {
        let core = &self.core;
        core.refuse_if_poisoned()?;
        self.core.checkpoint(|_, _| Ok(()))?;
        // A base may take its time to open, so that is over before anything is held.
        let bases = core.catalog().bases.numbers().into_iter();
        let absent: Vec<_> = bases.filter_map(|number| core.base(number).err()).collect();
        // First all data, while blocks may be given another use: what is wrong then may only be out of date, and what is
        // not found is looked for again.
        let mut good = Vec::new();
        if read_data {
            good.resize(index(core.space.end().div_ceil(64)), 0);
            good = core.walk(Read::Rest, good).good;
        }
        // While it is held nothing is stored and nothing becomes free, so the maps can be held against the free map.
        let mut commit = core.commit();
        core.refuse_if_poisoned()?;
        let mut taken = Vec::new();
        core.store_and_copy(&mut commit, Share::NONE, Some(&mut taken))?;
        let mut walk = core.walk(if read_data { Read::Rest } else { Read::None }, good);
        let (mut leaked, mut missing) = (0_u64, 0_u64);
        for (reached, taken) in walk.reached.iter().zip(taken) {
            leaked += u64::from((taken & !reached).count_ones());
            missing += u64::from((reached & !taken).count_ones());
        }
        if leaked > 0 {
            walk.report.problem(format!("{leaked} blocks are taken and nothing reaches them"));
        }
        if missing > 0 {
            walk.report.problem(format!("{missing} blocks are in use and not taken"));
        }
        absent.iter().for_each(|error| walk.report.problem(error.to_string()));
        Ok(walk.report)
    }
}
