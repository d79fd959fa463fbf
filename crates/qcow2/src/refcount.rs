//! Refcounts of an image that is being written from front to back.
//!
//! Clusters are counted as they are used. When the last cluster a refcount block tells about was left behind, the
//! block is put where the image has got to; the table that leads to the blocks comes at the end.

use std::io;

/// Refcounts have 16 bits.
const BYTES: u64 = 2;

/// Where the image has got to, and what uses each of its clusters.
#[derive(Debug)]
pub(crate) struct Refcounts {
    cluster: u64,
    /// Counts of the clusters of the present block.
    counts: Vec<u16>,
    /// Where the blocks before it are.
    blocks: Vec<u64>,
    /// The first cluster that nobody uses.
    next: u64,
}

/// A cluster's place and its bytes.
pub(crate) type Put<'a> = dyn FnMut(u64, &[u8]) -> io::Result<()> + 'a;

impl Refcounts {
    pub(crate) fn new(cluster: u64) -> Refcounts {
        Refcounts { cluster, counts: Vec::new(), blocks: Vec::new(), next: 0 }
    }

    fn per_block(&self) -> u64 {
        self.cluster / BYTES
    }

    /// Where the next cluster will be.
    pub(crate) fn end(&self) -> u64 {
        self.next * self.cluster
    }

    /// Takes the next `count` clusters, each used once, in a row; returns where they start. They are at most as
    /// many as a block tells about, less one.
    pub(crate) fn take(&mut self, count: u64, put: &mut Put<'_>) -> io::Result<u64> {
        if self.next + count > self.block_end() {
            self.close_block(put)?;
        }
        let start = self.next;
        self.next += count;
        self.counts.extend((0..count).map(|_| 1));
        Ok(start * self.cluster)
    }

    /// Counts one more use of the last cluster, if that can be counted.
    pub(crate) fn share_last(&mut self) -> bool {
        match self.counts.last_mut() {
            Some(count) if *count < u16::MAX => {
                *count += 1;
                true
            }
            _ => false,
        }
    }

    /// Whether the next cluster that is taken will follow the last.
    pub(crate) fn goes_on(&self) -> bool {
        self.next < self.block_end()
    }

    /// The first cluster that the present block tells nothing about.
    fn block_end(&self) -> u64 {
        (self.blocks.len() as u64 + 1) * self.per_block()
    }

    /// Puts the present block, as the first cluster that the next one tells about. What is left before that
    /// stays unused.
    fn close_block(&mut self, put: &mut Put<'_>) -> io::Result<()> {
        let place = self.block_end();
        self.counts.resize(usize::try_from(self.per_block()).unwrap_or(usize::MAX), 0);
        put(place * self.cluster, &bytes_of(&self.counts))?;
        self.blocks.push(place * self.cluster);
        self.counts.clear();
        self.counts.push(1);
        self.next = place + 1;
        Ok(())
    }

    /// Puts the last block and the table; returns where the table is and its clusters.
    pub(crate) fn finish(mut self, put: &mut Put<'_>) -> io::Result<(u64, u64)> {
        let per_block = self.per_block();
        let per_cluster = self.cluster / 8;
        // Table and last blocks count themselves, so their number is found step by step.
        let (mut table, mut blocks) = (1, 1);
        loop {
            let all = self.next + table + blocks;
            let needs = all.div_ceil(per_block) - self.blocks.len() as u64;
            let needs_table = (self.blocks.len() as u64 + needs).div_ceil(per_cluster);
            if needs <= blocks && needs_table <= table {
                break;
            }
            blocks = blocks.max(needs);
            table = table.max(needs_table);
        }
        let table_at = self.next * self.cluster;
        self.counts.extend((0..table + blocks).map(|_| 1));
        let first_block = self.next + table;
        let size = usize::try_from(per_block).unwrap_or(usize::MAX);
        for (number, place) in (0..blocks).zip(first_block..) {
            let from = usize::try_from(number).unwrap_or(usize::MAX).saturating_mul(size);
            let mut counts = self.counts.get(from..).unwrap_or(&[]).to_vec();
            counts.resize(size, 0);
            put(place * self.cluster, &bytes_of(&counts))?;
            self.blocks.push(place * self.cluster);
        }
        let mut bytes: Vec<u8> = self.blocks.iter().flat_map(|at| at.to_be_bytes()).collect();
        bytes.resize(usize::try_from(table * self.cluster).unwrap_or(usize::MAX), 0);
        put(table_at, &bytes)?;
        Ok((table_at, table))
    }
}

pub(crate) fn bytes_of(counts: &[u16]) -> Vec<u8> {
    counts.iter().flat_map(|count| count.to_be_bytes()).collect()
}
