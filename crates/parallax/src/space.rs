//! Which blocks are in use, which may be handed out, and which are free only after the next checkpoint.
//!
//! Two bits per block. *Used* is what the maps reach at this instant; a checkpoint stores it. *Busy* adds
//! what was handed out and not mapped yet, and what was unmapped since the last checkpoint: a power
//! cut may still bring back the map that reaches those, so nothing may be written over them.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::format::{Layout, MAP_BITS, index};

const PAGE_WORDS: u64 = MAP_BITS / 64;

/// Blocks of a request that is worth an aligned place: 64 KiB.
const ALIGNED: u64 = 16;
/// How many places are looked at for one.
const ALIGNED_TRIES: usize = 64;

/// A run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Run {
    pub(crate) start: u64,
    pub(crate) len: u64,
}

#[derive(Debug)]
struct Hand {
    busy: Vec<u64>,
    /// Where the search goes on, so that what is written together lies together.
    next: u64,
    free: u64,
}

#[derive(Debug)]
pub(crate) struct Space {
    first: u64,
    end: u64,
    /// Blocks that only metadata may take, so that a full pool can still commit.
    reserve: u64,
    used: Vec<AtomicU64>,
    /// Per page of the map, a bit for each slot that does not hold its present state.
    stale: Vec<AtomicU8>,
    hand: Mutex<Hand>,
    /// Unmapped since the last checkpoint began.
    freed: Mutex<Vec<Run>>,
    freed_blocks: AtomicU64,
}

impl Space {
    /// Space of which `used` (words of the stored map) is taken.
    pub(crate) fn new(layout: &Layout, stored: &[u64]) -> Space {
        let words = index(layout.blocks.div_ceil(64));
        let mut busy: Vec<u64> =
            stored.iter().copied().chain(std::iter::repeat(0)).take(words).collect();
        let used: Vec<AtomicU64> = busy.iter().map(|word| AtomicU64::new(*word)).collect();
        let mut free = 0;
        for block in 0..layout.data_start {
            busy[index(block / 64)] |= 1 << (block % 64);
        }
        for block in layout.blocks..words as u64 * 64 {
            busy[index(block / 64)] |= 1 << (block % 64);
        }
        for word in &busy {
            free += u64::from(word.count_zeros());
        }
        let data = layout.blocks - layout.data_start;
        Space {
            first: layout.data_start,
            end: layout.blocks,
            reserve: (data / 16).clamp(128, 32768),
            used,
            stale: (0..layout.blocks.div_ceil(MAP_BITS)).map(|_| AtomicU8::new(3)).collect(),
            hand: Mutex::new(Hand { busy, next: layout.data_start, free }),
            freed: Mutex::new(Vec::new()),
            freed_blocks: AtomicU64::new(0),
        }
    }

    fn hand(&self) -> MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks for data, at most `want` in a row.
    pub(crate) fn take(&self, want: u64) -> Option<Run> {
        let mut hand = self.hand();
        let left = hand.free.checked_sub(self.reserve).filter(|left| *left > 0)?;
        self.find(&mut hand, want.min(left))
    }

    /// Blocks for metadata, which may use the reserve.
    pub(crate) fn take_reserved(&self, want: u64) -> Option<Run> {
        self.find(&mut self.hand(), want)
    }

    fn find(&self, hand: &mut Hand, want: u64) -> Option<Run> {
        if hand.free == 0 {
            return None;
        }
        let start = next_free(&hand.busy, hand.next, self.end)
            .or_else(|| next_free(&hand.busy, self.first, hand.next))?;
        let start = self.aligned(&hand.busy, start, want).unwrap_or(start);
        let mut len = 0;
        while len < want && start + len < self.end && !bit(&hand.busy, start + len) {
            hand.busy[index((start + len) / 64)] |= 1 << ((start + len) % 64);
            len += 1;
        }
        hand.free -= len;
        hand.next = start + len;
        Some(Run { start, len })
    }

    /// The next aligned place with room for a long request, if there is one not far from here: the page cache below
    /// keeps an aligned request in one piece.
    fn aligned(&self, busy: &[u64], start: u64, want: u64) -> Option<u64> {
        let mut block = start;
        for _ in 0..ALIGNED_TRIES {
            let place = block.next_multiple_of(ALIGNED);
            if want < ALIGNED || place + ALIGNED > self.end {
                return None;
            }
            if busy[index(place / 64)] >> (place % 64) & ((1 << ALIGNED) - 1) == 0 {
                return Some(place);
            }
            block = next_free(busy, place + ALIGNED, self.end)?;
        }
        None
    }

    /// Takes back blocks that were handed out and never mapped.
    pub(crate) fn give_back(&self, run: Run) {
        self.settle(&[run]);
    }

    /// Blocks that may be handed out, without the reserve.
    pub(crate) fn available(&self) -> u64 {
        self.hand().free.saturating_sub(self.reserve)
    }

    /// Blocks that may be handed out to metadata.
    pub(crate) fn available_reserved(&self) -> u64 {
        self.hand().free
    }

    pub(crate) fn reserve(&self) -> u64 {
        self.reserve
    }

    /// Whether a block can hold what a map points at; a hostile map may point anywhere.
    pub(crate) fn holds(&self, block: u64) -> bool {
        (self.first..self.end).contains(&block)
    }

    /// A map reaches the block from now on.
    pub(crate) fn set_used(&self, block: u64) {
        self.use_run(Run { start: block, len: 1 });
    }

    /// A map reaches these blocks from now on.
    pub(crate) fn use_run(&self, run: Run) {
        for (word, mask) in words_of(run) {
            self.used[word].fetch_or(mask, Ordering::Relaxed);
        }
        self.touch(run);
    }

    /// What the map says of these blocks changes.
    fn touch(&self, run: Run) {
        if run.len > 0 {
            for page in run.start / MAP_BITS..=(run.start + run.len - 1) / MAP_BITS {
                self.stale[index(page)].store(3, Ordering::Relaxed);
            }
        }
    }

    /// Keeps blocks from being handed out that a log names; false for what is no such run.
    pub(crate) fn hold(&self, run: Run) -> bool {
        let end = run.start.checked_add(run.len);
        let held = run.start >= self.first && end.is_some_and(|end| end <= self.end);
        if held {
            let mut hand = self.hand();
            for (word, mask) in words_of(run) {
                hand.free -= u64::from((!hand.busy[word] & mask).count_ones());
                hand.busy[word] |= mask;
            }
        }
        held
    }

    /// Of blocks that a log named, those that nothing reaches are free.
    pub(crate) fn release_unused(&self, run: Run) {
        let mut hand = self.hand();
        for (word, mask) in words_of(run) {
            let unused = hand.busy[word] & mask & !self.used[word].load(Ordering::Relaxed);
            hand.free += u64::from(unused.count_ones());
            hand.busy[word] &= !unused;
        }
    }

    /// Also keeps the block from being handed out: for blocks a replayed log names.
    pub(crate) fn claim(&self, block: u64) {
        self.set_used(block);
        let mut hand = self.hand();
        if !bit(&hand.busy, block) {
            hand.busy[index(block / 64)] |= 1 << (block % 64);
            hand.free -= 1;
        }
    }

    /// No map reaches the blocks any more; they are free once the next checkpoint is durable.
    pub(crate) fn unmap(&self, blocks: &[u64]) {
        for run in blocks.chunk_by(|a, b| a + 1 == *b) {
            self.unmap_run(Run { start: run[0], len: run.len() as u64 });
        }
    }

    /// The same for a run. What a stored map says may be wrong, and outside of the pool.
    pub(crate) fn unmap_run(&self, run: Run) {
        let start = run.start.clamp(self.first, self.end);
        let end = run.start.saturating_add(run.len).clamp(self.first, self.end);
        let run = Run { start, len: end - start };
        if run.len == 0 {
            return;
        }
        for (word, mask) in words_of(run) {
            self.used[word].fetch_and(!mask, Ordering::Relaxed);
        }
        self.touch(run);
        let mut freed = self.freed.lock().unwrap_or_else(PoisonError::into_inner);
        match freed.last_mut() {
            Some(last) if last.start + last.len == run.start => last.len += run.len,
            _ => freed.push(run),
        }
        self.freed_blocks.fetch_add(run.len, Ordering::Relaxed);
    }

    /// Whether so many blocks wait to become free that a checkpoint is worth it: 256 MiB.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.freed_blocks.load(Ordering::Relaxed) > 65536
    }

    /// What the checkpoint that begins now will make free.
    pub(crate) fn take_freed(&self) -> Vec<Run> {
        let mut freed = self.freed.lock().unwrap_or_else(PoisonError::into_inner);
        self.freed_blocks.store(0, Ordering::Relaxed);
        std::mem::take(&mut *freed)
    }

    /// The checkpoint is durable: its freed blocks may be handed out.
    pub(crate) fn settle(&self, runs: &[Run]) {
        let lowest = runs.iter().filter(|run| run.len > 0).map(|run| run.start).min();
        let mut hand = self.hand();
        for (word, mask) in runs.iter().flat_map(|run| words_of(*run)) {
            hand.free += u64::from((hand.busy[word] & mask).count_ones());
            hand.busy[word] &= !mask;
        }
        // What was used before is taken again first: the file below has its space already, and memory its pages.
        hand.next = lowest.unwrap_or(hand.next).min(hand.next);
    }

    pub(crate) fn is_used(&self, block: u64) -> bool {
        self.used[index(block / 64)].load(Ordering::Relaxed) >> (block % 64) & 1 == 1
    }

    /// Blocks in use.
    pub(crate) fn used_count(&self) -> u64 {
        self.used.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// Replaces what is in use by what a walk of all maps found.
    pub(crate) fn replace_used(&self, reached: &[u64]) {
        let mut hand = self.hand();
        for (place, word) in reached.iter().enumerate() {
            let was = self.used[place].swap(*word, Ordering::Relaxed);
            let now_free = was & !word;
            hand.busy[place] = hand.busy[place] & !now_free | word;
        }
        hand.free = hand.busy.iter().map(|word| u64::from(word.count_zeros())).sum();
        for page in &self.stale {
            page.store(3, Ordering::Relaxed);
        }
    }

    /// The pages that a slot of the map does not hold in their present state, which from now on
    /// it does. Only called while nothing changes.
    pub(crate) fn pages_for(&self, slot: u8) -> Vec<(u64, Vec<u64>)> {
        let mut pages = Vec::new();
        for (page, stale) in (0..).zip(&self.stale) {
            if stale.fetch_and(!(1 << slot), Ordering::Relaxed) >> slot & 1 == 1 {
                let from = index(page * PAGE_WORDS);
                let to = (from + index(PAGE_WORDS)).min(self.used.len());
                let words = &self.used[from..to];
                pages.push((page, words.iter().map(|w| w.load(Ordering::Relaxed)).collect()));
            }
        }
        pages
    }

    /// The pages could not be stored after all.
    pub(crate) fn all_stale(&self) {
        for page in &self.stale {
            page.store(3, Ordering::Relaxed);
        }
    }
}

/// The words a run has bits in, and which.
fn words_of(run: Run) -> impl Iterator<Item = (usize, u64)> {
    let end = run.start + run.len;
    let words = if run.len == 0 { 0..0 } else { run.start / 64..(end - 1) / 64 + 1 };
    words.map(move |word| {
        let from = run.start.max(word * 64) % 64;
        let len = end.min(word * 64 + 64) - run.start.max(word * 64);
        (index(word), u64::MAX >> (64 - len) << from)
    })
}

fn bit(words: &[u64], block: u64) -> bool {
    words[index(block / 64)] >> (block % 64) & 1 == 1
}

fn next_free(busy: &[u64], from: u64, to: u64) -> Option<u64> {
    let mut block = from;
    while block < to {
        let rest = !busy[index(block / 64)] >> (block % 64);
        if rest != 0 {
            let found = block + u64::from(rest.trailing_zeros());
            return (found < to).then_some(found);
        }
        block = (block / 64 + 1) * 64;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_block::ByteLen;

    fn space() -> Space {
        let size = ByteLen::mib(4);
        Space::new(&Layout::new(size, size, ByteLen::kib(64)), &[])
    }

    #[test]
    fn what_was_unmapped_is_not_handed_out_before_a_checkpoint() {
        let space = space();
        let mut taken = Vec::new();
        while let Some(run) = space.take(100) {
            taken.extend(run.start..run.start + run.len);
        }
        taken.iter().for_each(|block| space.set_used(*block));
        assert_eq!(space.available(), 0);
        space.unmap(&taken[10..20]);
        assert_eq!(space.take(1), None, "a power cut may bring the old map back");
        let freed = space.take_freed();
        space.settle(&freed);
        assert_eq!(space.take(100).map(|run| run.len), Some(10));
    }

    #[test]
    fn metadata_finds_room_when_data_does_not() {
        let space = space();
        while space.take(64).is_some() {}
        assert_eq!(space.available_reserved(), space.reserve());
        assert!(space.take_reserved(1).is_some());
    }

    #[test]
    fn each_slot_of_the_map_gets_every_change_once() {
        let space = space();
        assert_eq!(space.pages_for(0).len(), 1);
        assert_eq!(space.pages_for(0).len(), 0);
        assert_eq!(space.pages_for(1).len(), 1);
        space.set_used(100);
        assert_eq!(space.pages_for(0).len(), 1);
        assert_eq!(space.pages_for(1).len(), 1);
        assert_eq!(space.pages_for(1).len(), 0);
    }
}
