//! Whether a pool is whole: every map can be walked, every checksum is right, and the free map says what the maps say.

use std::collections::HashMap;

use kiln_block::ByteOffset;

use crate::PoolError;
use crate::catalog::{Catalog, Is};
use crate::core::Core;
use crate::format::{BLOCK, BLOCK_LEN, index};
use crate::leaf::GROUP;
use crate::node::{Entry, FANOUT, Kind, ROOT_LEVEL, leaves_below};
use crate::pool::Pool;

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

/// What a walk of all maps keeps in mind.
struct Walk<'a> {
    core: &'a Core,
    reached: Vec<u64>,
    /// Which block of a disk a data block belongs to: it has the same place in every map.
    places: HashMap<u64, u64>,
    read_data: bool,
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
        if entry.birth > self.core.epoch.load(std::sync::atomic::Ordering::Acquire) {
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
        for (place, entry) in leaf.mapped().filter(|(_, entry)| entry.birth > keep) {
            self.data(of, number * FANOUT + place as u64, entry);
        }
    }

    fn data(&mut self, of: &str, lba: u64, entry: Entry) {
        if entry.kind != Kind::Data || !self.core.space.holds(entry.block) {
            return self.report.problem(format!("{of}: block {lba} points outside the pool"));
        }
        let other = *self.places.entry(entry.block).or_insert(lba);
        if other != lba {
            let block = entry.block;
            self.report.problem(format!("{of}: block {lba} and {other} are both block {block}"));
        }
        if !self.reach(entry.block) {
            return;
        }
        self.report.data_blocks += 1;
        if self.read_data {
            let at = ByteOffset::new(entry.block * BLOCK_LEN);
            match self.core.device.read_at(at, &mut self.bytes) {
                Err(error) => self.report.problem(format!("{of}: block {lba}: {error}")),
                Ok(()) if self.core.sums.data(lba, &self.bytes) != entry.crc => {
                    self.report.problem(format!(
                        "{of}: block {lba} (block {} of the pool) is damaged",
                        entry.block
                    ))
                }
                Ok(()) => {}
            }
        }
    }
}

impl Core {
    fn walk(&self, catalog: &Catalog, read_data: bool) -> Walk<'_> {
        let mut walk = Walk {
            core: self,
            reached: vec![0; index(self.layout.blocks.div_ceil(64))],
            places: HashMap::new(),
            read_data,
            report: Report::default(),
            bytes: vec![0; BLOCK],
        };
        let root = (ROOT_LEVEL, 0);
        walk.map("the catalog", root, catalog.root.0, 0, 0);
        // A data block of the catalog is at no place of any disk.
        walk.places.clear();
        // Whole maps first, so that "known" means "looked at whole".
        let partly = |state: &&crate::catalog::State| state.is == Is::GivenUp || state.cursor > 0;
        for state in catalog.all().filter(|state| !partly(state)) {
            let owner = catalog.get(state.owner).map_or(String::new(), |o| format!("{}@", o.name));
            walk.map(&format!("{owner}{}", state.name), root, state.root, 0, 0);
        }
        for state in catalog.all().filter(partly) {
            let keep = if state.is == Is::GivenUp { state.epoch } else { catalog.floor(state) };
            walk.map("a deleted map", root, state.root, keep, state.cursor);
        }
        walk
    }

    /// Bits of all blocks that stored maps reach.
    pub(crate) fn reached_blocks(&self) -> Result<Vec<u64>, PoolError> {
        let catalog = self.catalog();
        let walk = self.walk(&catalog, false);
        match walk.report.problems.first() {
            None => Ok(walk.reached),
            // With a map that cannot be read, what it reaches would be given away.
            Some(problem) => Err(PoolError::Damaged { found: problem.clone() }),
        }
    }
}

impl Pool {
    /// Walks everything. With `read_data`, every block is read and compared with its checksum; else only
    /// the maps are. Disks can be read meanwhile, and not written to.
    pub fn verify(&self, read_data: bool) -> Result<Report, PoolError> {
        // Twice: the catalog's own pages are stored after the change of a checkpoint was made.
        self.core.checkpoint(|_, _| Ok(()))?;
        self.core.checkpoint(|core, catalog| {
            let mut walk = core.walk(catalog, read_data);
            let (mut leaked, mut missing) = (0_u64, 0_u64);
            for block in core.layout.data_start..core.layout.blocks {
                let reached = walk.reached[index(block / 64)] >> (block % 64) & 1 == 1;
                match (reached, core.space.is_used(block)) {
                    (true, false) => missing += 1,
                    (false, true) => leaked += 1,
                    _ => {}
                }
            }
            if leaked > 0 {
                walk.report.problem(format!("{leaked} blocks are taken and nothing reaches them"));
            }
            if missing > 0 {
                walk.report.problem(format!("{missing} blocks are in use and not taken"));
            }
            Ok(walk.report)
        })
    }
}
