//! Which blocks are in use, which may be handed out, and which are free only after the next checkpoint.
//!
//! Two bits per block. *Used* is what the maps reach at this instant; a checkpoint stores it. *Busy* adds
//! what was handed out and not mapped yet, and what was unmapped since the last checkpoint: a power
//! cut may still bring back the map that reaches those, so nothing may be written over them.

//!
//! While a checkpoint stores the pool as it was at one instant, *used* stands still at that instant but for the
//! checkpoint's own nodes; what disks change meanwhile is kept aside and added when it has been copied.

use std::sync::OnceLock;

use crate::format::{Layout, MAP_BITS, index};
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, PoisonError};

const PAGE_WORDS: u64 = MAP_BITS / 64;

/// Blocks of a request that is worth an aligned place: 64 KiB.
pub(crate) const ALIGNED: u64 = 16;
/// How many places are looked at for one.
const ALIGNED_TRIES: usize = 64;

/// How many stretches of 64 blocks are looked at for one that is free.
const ROOMY_TRIES: usize = 4096;

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
    /// Nothing from here on was handed out since the pool was opened, nor was in use then.
    virgin: u64,
    /// The word at which the search for room for metadata goes on.
    roomy: usize,
}

/// A change of what is in use that waits for a checkpoint to have copied the rest.
#[derive(Debug, Clone, Copy)]
struct Later {
    run: Run,
    used: bool,
}

impl Hand {
    fn hand_out(&mut self, run: Run) {
        for (word, mask) in words_of(run) {
            self.busy[word] |= mask;
        }
        self.free -= run.len;
        self.virgin = self.virgin.max(run.start + run.len);
    }
}

type Page = Box<[AtomicU64]>;

#[derive(Debug)]
pub(crate) struct Space {
    first: u64,
    /// Moves when the pool grows.
    end: AtomicU64,
    /// Blocks that only metadata may take, so that a full pool can still commit.
    reserve: AtomicU64,
    /// By page of the map; a page exists once something on it was used.
    used: Vec<OnceLock<Page>>,
    /// Per page of the map, a bit for each slot that does not hold its present state.
    stale: Vec<AtomicU8>,
    hand: Mutex<Hand>,
    /// Unmapped since the last checkpoint began.
    freed: Mutex<Vec<Run>>,
    /// Nodes among them, which are kept for one checkpoint more.
    freed_nodes: Mutex<Vec<Run>>,
    waiting: AtomicU64,
    standing: AtomicBool,
    later: Mutex<Vec<Later>>,
}

fn reserve_of(data: u64) -> u64 {
    (data / 16).clamp(128, 32768)
}

impl Space {
    /// Space of which `stored` (words of the stored map) is taken.
    pub(crate) fn new(layout: &Layout, stored: &[u64]) -> Space {
        let words = index(layout.blocks.div_ceil(64));
        let mut busy: Vec<u64> =
            stored.iter().copied().chain(std::iter::repeat(0)).take(words).collect();
        let pages = index(layout.limit().div_ceil(MAP_BITS));
        let used: Vec<OnceLock<Page>> = (0..pages).map(|_| OnceLock::new()).collect();
        for (page, words) in used.iter().zip(busy.chunks(index(PAGE_WORDS))) {
            if words.iter().any(|word| *word != 0) {
                let rest = std::iter::repeat_n(&0, index(PAGE_WORDS) - words.len());
                page.get_or_init(|| words.iter().chain(rest).map(|w| AtomicU64::new(*w)).collect());
            }
        }
        mark_beyond(&mut busy, layout.blocks);
        for block in 0..layout.data_start {
            busy[index(block / 64)] |= 1 << (block % 64);
        }
        let free = busy.iter().map(|word| u64::from(word.count_zeros())).sum();
        let last = stored.iter().rposition(|word| *word != 0).map_or(0, |word| word as u64 + 1);
        // A damaged map may have something in use behind the end.
        let virgin = (last * 64).clamp(layout.data_start, layout.blocks.max(layout.data_start));
        Space {
            first: layout.data_start,
            end: AtomicU64::new(layout.blocks),
            reserve: AtomicU64::new(reserve_of(layout.blocks - layout.data_start)),
            used,
            stale: (0..pages).map(|_| AtomicU8::new(3)).collect(),
            hand: Mutex::new(Hand { busy, next: layout.data_start, free, virgin, roomy: 0 }),
            freed: Mutex::new(Vec::new()),
            freed_nodes: Mutex::new(Vec::new()),
            waiting: AtomicU64::new(0),
            standing: AtomicBool::new(false),
            later: Mutex::new(Vec::new()),
        }
    }

    /// There are blocks up to `end` now.
    pub(crate) fn grow(&self, end: u64) {
        let mut hand = self.hand();
        let was = self.end();
        if end <= was {
            return;
        }
        for block in was..end.min(was.next_multiple_of(64)) {
            hand.busy[index(block / 64)] &= !(1 << (block % 64));
        }
        hand.busy.resize(index(end.div_ceil(64)), 0);
        mark_beyond(&mut hand.busy, end);
        hand.free += end - was;
        self.reserve.store(reserve_of(end - self.first), Ordering::Relaxed);
        self.end.store(end, Ordering::Release);
    }

    /// One behind the last block.
    pub(crate) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    fn hand(&self) -> MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn freed(&self) -> MutexGuard<'_, Vec<Run>> {
        self.freed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn freed_nodes(&self) -> MutexGuard<'_, Vec<Run>> {
        self.freed_nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn later(&self) -> MutexGuard<'_, Vec<Later>> {
        self.later.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self, page: u64) -> &Page {
        let words = || (0..PAGE_WORDS).map(|_| AtomicU64::new(0)).collect();
        self.used[index(page)].get_or_init(words)
    }

    fn word(&self, word: usize) -> &AtomicU64 {
        &self.page(word as u64 / PAGE_WORDS)[word % index(PAGE_WORDS)]
    }

    fn note(&self, run: Run, used: bool) {
        for (word, mask) in words_of(run) {
            let word = self.word(word);
            match used {
                true => word.fetch_or(mask, Ordering::Relaxed),
                false => word.fetch_and(!mask, Ordering::Relaxed),
            };
        }
        if run.len > 0 {
            for page in run.start / MAP_BITS..=(run.start + run.len - 1) / MAP_BITS {
                self.stale[index(page)].store(3, Ordering::Relaxed);
            }
        }
    }

    /// Blocks for data, at most `want` in a row, and whether some of them may never have been written to.
    pub(crate) fn take(&self, want: u64) -> Option<(Run, bool)> {
        let mut hand = self.hand();
        let left = hand.free.checked_sub(self.reserve()).filter(|left| *left > 0)?;
        let virgin = hand.virgin;
        let run = self.find(&mut hand, want.min(left))?;
        Some((run, run.start + run.len > virgin))
    }

    /// Blocks for metadata, which may use the reserve. What a checkpoint stores should lie in a row: whoever flushes
    /// meanwhile waits for every piece of it.
    pub(crate) fn take_reserved(&self, want: u64) -> Option<Run> {
        let mut hand = self.hand();
        if want >= ALIGNED {
            let virgin = hand.virgin;
            let place =
                roomy(&mut hand, self.first).or((virgin + want < self.end()).then_some(virgin));
            let run = place.map(|start| self.stretch(&hand, start, want));
            if let Some(run) = run.filter(|run| run.len > 0) {
                hand.hand_out(run);
                return Some(run);
            }
        }
        self.find(&mut hand, want)
    }

    fn find(&self, hand: &mut Hand, want: u64) -> Option<Run> {
        if hand.free == 0 {
            return None;
        }
        let start = next_free(&hand.busy, hand.next, self.end())
            .or_else(|| next_free(&hand.busy, self.first, hand.next))?;
        let start = self.aligned(&hand.busy, start, want).unwrap_or(start);
        let mut run = self.stretch(hand, start, want);
        // A short piece at the end would leave the requests after it unaligned; a full pool cannot be choosy.
        let roomy = hand.free > self.reserve() + 4 * want;
        if run.len < want && run.len > ALIGNED && roomy {
            run.len -= run.len % ALIGNED;
        }
        hand.hand_out(run);
        hand.next = run.start + run.len;
        Some(run)
    }

    /// The free blocks from `start` on, at most `want`.
    fn stretch(&self, hand: &Hand, start: u64, want: u64) -> Run {
        let mut len = 0;
        while len < want && start + len < self.end() && !bit(&hand.busy, start + len) {
            len += 1;
        }
        Run { start, len }
    }

    /// The next aligned place with room for a long request, if there is one not far from here: the page cache below
    /// keeps an aligned request in one piece.
    fn aligned(&self, busy: &[u64], start: u64, want: u64) -> Option<u64> {
        let mut block = start;
        for _ in 0..ALIGNED_TRIES {
            let place = block.next_multiple_of(ALIGNED);
            if want < ALIGNED || place + ALIGNED > self.end() {
                return None;
            }
            if busy[index(place / 64)] >> (place % 64) & ((1 << ALIGNED) - 1) == 0 {
                return Some(place);
            }
            block = next_free(busy, place + ALIGNED, self.end())?;
        }
        None
    }

    /// Takes back blocks that were handed out and never mapped.
    pub(crate) fn give_back(&self, run: Run) {
        self.settle(&[run]);
    }

    /// The same for blocks that nothing was written to.
    pub(crate) fn give_back_untouched(&self, runs: &[Run]) {
        self.settle(runs);
        let mut hand = self.hand();
        if let Some(last) = runs.iter().find(|run| run.start + run.len == hand.virgin) {
            hand.virgin = last.start;
        }
    }

    /// Blocks that may be handed out, without the reserve.
    pub(crate) fn available(&self) -> u64 {
        self.hand().free.saturating_sub(self.reserve())
    }

    pub(crate) fn reserve(&self) -> u64 {
        self.reserve.load(Ordering::Relaxed)
    }

    /// Whether a block can hold what a map points at; a hostile map may point anywhere.
    pub(crate) fn holds(&self, block: u64) -> bool {
        (self.first..self.end()).contains(&block)
    }

    /// A map reaches these blocks from now on.
    pub(crate) fn use_run(&self, run: Run) {
        if !self.put_off(run, true) {
            self.note(run, true);
        }
    }

    fn put_off(&self, run: Run, used: bool) -> bool {
        if !self.standing.load(Ordering::Acquire) {
            return false;
        }
        let mut later = self.later();
        let standing = self.standing.load(Ordering::Acquire);
        if standing {
            later.push(Later { run, used });
        }
        standing
    }

    /// What is in use stands still from here on. Only called while no map changes.
    pub(crate) fn stand_still(&self) {
        self.standing.store(true, Ordering::Release);
    }

    /// What is in use has been copied, and is again what it is now.
    pub(crate) fn go_on(&self) {
        let mut later = self.later();
        for Later { run, used } in later.drain(..) {
            self.note(run, used);
        }
        self.standing.store(false, Ordering::Release);
    }

    /// The checkpoint under way has put something there.
    pub(crate) fn set_stored(&self, block: u64) {
        self.note(Run { start: block, len: 1 }, true);
    }

    /// What the checkpoint under way stores does not reach these blocks; returns those there are, which are
    /// free once it is durable.
    pub(crate) fn unstore(&self, blocks: &[u64]) -> Vec<Run> {
        let runs = blocks.chunk_by(|a, b| a + 1 == *b);
        let runs = runs.map(|run| self.within(Run { start: run[0], len: run.len() as u64 }));
        let runs: Vec<Run> = runs.filter(|run| run.len > 0).collect();
        runs.iter().for_each(|run| self.note(*run, false));
        runs
    }

    /// The part of a run that there is: what a stored map says may be wrong.
    fn within(&self, run: Run) -> Run {
        let end = self.end();
        let start = run.start.clamp(self.first, end);
        Run { start, len: run.start.saturating_add(run.len).clamp(start, end) - start }
    }

    /// Keeps blocks from being handed out that a log names; false for what is no such run.
    pub(crate) fn hold(&self, run: Run) -> bool {
        let end = run.start.checked_add(run.len);
        let held = run.start >= self.first && end.is_some_and(|end| end <= self.end());
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
            let unused = hand.busy[word] & mask & !self.word(word).load(Ordering::Relaxed);
            hand.free += u64::from(unused.count_ones());
            hand.busy[word] &= !unused;
        }
    }

    /// Also keeps the block from being handed out: for blocks a replayed log names.
    pub(crate) fn claim(&self, block: u64) {
        self.set_stored(block);
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

    /// The same for a run.
    pub(crate) fn unmap_run(&self, run: Run) {
        let run = self.within(run);
        if run.len == 0 {
            return;
        }
        if !self.put_off(run, false) {
            self.note(run, false);
        }
        self.add_freed(run);
    }

    /// The same for nodes.
    pub(crate) fn unmap_nodes(&self, blocks: &[u64]) {
        for run in blocks.chunk_by(|a, b| a + 1 == *b) {
            let run = self.within(Run { start: run[0], len: run.len() as u64 });
            if run.len > 0 {
                if !self.put_off(run, false) {
                    self.note(run, false);
                }
                self.freed_nodes().push(run);
            }
        }
    }

    /// Nodes that the checkpoint that begins now does not have any more.
    pub(crate) fn take_freed_nodes(&self) -> Vec<Run> {
        std::mem::take(&mut *self.freed_nodes())
    }

    /// The checkpoint that took them came to nothing.
    pub(crate) fn put_freed_nodes_back(&self, runs: Vec<Run>) {
        self.freed_nodes().extend(runs);
    }

    fn add_freed(&self, run: Run) {
        let mut freed = self.freed();
        match freed.last_mut() {
            Some(last) if last.start + last.len == run.start => last.len += run.len,
            _ => freed.push(run),
        }
        self.waiting.fetch_add(run.len, Ordering::Relaxed);
    }

    /// Blocks that wait for a checkpoint to become free.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// What the checkpoint that begins now will make free.
    pub(crate) fn take_freed(&self) -> Vec<Run> {
        let mut freed = self.freed();
        self.waiting.store(0, Ordering::Relaxed);
        std::mem::take(&mut *freed)
    }

    /// The checkpoint that took them came to nothing.
    pub(crate) fn put_freed_back(&self, runs: Vec<Run>) {
        runs.into_iter().for_each(|run| self.add_freed(run));
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

    /// Blocks in use.
    pub(crate) fn used_count(&self) -> u64 {
        let pages = self.used.iter().filter_map(OnceLock::get);
        pages
            .flat_map(|p| p.iter())
            .map(|w| u64::from(w.load(Ordering::Relaxed).count_ones()))
            .sum()
    }

    /// One bit per block: whether it is in use.
    pub(crate) fn bits(&self) -> Vec<u64> {
        let mut bits = Vec::new();
        for page in &self.used {
            match page.get() {
                Some(words) => bits.extend(words.iter().map(|word| word.load(Ordering::Relaxed))),
                None => bits.resize(bits.len() + index(PAGE_WORDS), 0),
            }
        }
        bits.truncate(index(self.end().div_ceil(64)));
        bits
    }

    /// Replaces what is in use by what a walk of all maps found.
    pub(crate) fn replace_used(&self, reached: &[u64]) {
        let mut hand = self.hand();
        let was = self.bits();
        for (place, (word, was)) in reached.iter().zip(was).enumerate() {
            let page = self.page(place as u64 / PAGE_WORDS);
            page[place % index(PAGE_WORDS)].store(*word, Ordering::Relaxed);
            hand.busy[place] = hand.busy[place] & !(was & !word) | word;
        }
        hand.free = hand.busy.iter().map(|word| u64::from(word.count_zeros())).sum();
        drop(hand);
        self.all_stale();
    }

    /// The pages that a slot of the map does not hold in their present state, which from now on it does, and how many
    /// pages the map has that way, if it had `map_used`. Only called while nothing changes, or what changes is put off.
    pub(crate) fn pages_for(&self, slot: u8, map_used: u64) -> (Vec<(u64, Vec<u64>)>, u64) {
        let words = |page: usize| {
            let words = self.used[page].get().map(|words| words.iter());
            words.into_iter().flatten().map(|word| word.load(Ordering::Relaxed))
        };
        let count = index(self.end().div_ceil(MAP_BITS));
        let last = (0..count).rev().find(|page| words(*page).any(|word| word != 0));
        let map_used = map_used.max(last.map_or(0, |last| last as u64 + 1));
        let mut pages = Vec::new();
        for page in 0..index(map_used).min(count) {
            let stale = self.stale[page].fetch_and(!(1 << slot), Ordering::Relaxed);
            if stale >> slot & 1 == 1 {
                pages.push((page as u64, words(page).collect()));
            }
        }
        (pages, map_used)
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

/// Nothing behind `end` can be taken.
fn mark_beyond(busy: &mut [u64], end: u64) {
    if !end.is_multiple_of(64)
        && let Some(last) = busy.last_mut()
    {
        *last |= !0 << (end % 64);
    }
}

/// Where 64 blocks in a row are free among those that were used before, if such a place is found soon. The next search goes
/// on from there.
fn roomy(hand: &mut Hand, first: u64) -> Option<u64> {
    let (low, high) = (index(first.div_ceil(64)), index(hand.virgin / 64));
    if low >= high {
        return None;
    }
    let from = if (low..high).contains(&hand.roomy) { hand.roomy } else { low };
    let all = (from..high).chain(low..from).take(ROOMY_TRIES);
    let mut last = from;
    let found = all.inspect(|word| last = *word).find(|word| hand.busy[*word] == 0);
    hand.roomy = last;
    found.map(|word| word as u64 * 64)
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
mod tests;
