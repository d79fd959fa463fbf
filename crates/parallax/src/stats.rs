//! What a pool did since it was opened, counted where it happens.

use std::time::Duration;

use kiln_block::ByteLen;

use crate::core::Core;
use crate::pool::Pool;
use crate::sync::atomic::{AtomicU64, Ordering};

/// What a pool did since it was opened, and what it has before it. Each number is right by itself; together they
/// are of no single instant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Leaves of maps that were found in memory.
    pub leaf_hits: u64,
    /// Leaves that had to be read.
    pub leaf_misses: u64,
    /// Nodes above leaves that were found in memory.
    pub node_hits: u64,
    /// Nodes that had to be read.
    pub node_misses: u64,
    /// Memory that maps take now.
    pub cached: ByteLen,
    /// Flushes that were asked for.
    pub flushes: u64,
    /// Syncs of the device, checkpoints' too. Flushes that come while one is under way share the next.
    pub syncs: u64,
    /// Batches written to the log.
    pub batches: u64,
    /// Changes of maps in them.
    pub batched_records: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Checkpoints that a write, a flush or a change of the catalog had to make itself.
    pub foreground_checkpoints: u64,
    /// How long checkpoints took, all together.
    pub checkpoint_time: Duration,
    /// How long no map could be changed for them, all together.
    pub standstill_time: Duration,
    /// The longest of these.
    pub longest_standstill: Duration,
    /// Blocks that became free when deleted states were reclaimed.
    pub reclaimed_blocks: u64,
    /// Deleted states whose space is not free yet.
    pub reclaiming: u64,
    /// Blocks that become free with the next checkpoint.
    pub waiting_blocks: u64,
    /// Bytes of data written to the pool.
    pub data_written: ByteLen,
    /// Bytes written to its log.
    pub log_written: ByteLen,
    /// Bytes of nodes, catalog, free map and superblocks.
    pub metadata_written: ByteLen,
    /// How often the pool took more of its filesystem.
    pub growths: u64,
}

/// A number that only grows, counted by many.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn at_least(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) flushes: Counter,
    pub(crate) syncs: Counter,
    pub(crate) batches: Counter,
    pub(crate) batched_records: Counter,
    pub(crate) checkpoints: Counter,
    pub(crate) foreground_checkpoints: Counter,
    /// Nanoseconds, as the next two.
    pub(crate) checkpoint_time: Counter,
    pub(crate) standstill_time: Counter,
    pub(crate) longest_standstill: Counter,
    pub(crate) reclaimed_blocks: Counter,
    /// Bytes, as the next two.
    pub(crate) data_written: Counter,
    pub(crate) log_written: Counter,
    pub(crate) metadata_written: Counter,
    pub(crate) growths: Counter,
}

/// A duration as a counter keeps it.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Core {
    fn stats(&self) -> PoolStats {
        let of = &self.counters;
        let (leaf_hits, leaf_misses) = self.leaves.asked();
        let (node_hits, node_misses) = self.nodes.asked();
        PoolStats {
            leaf_hits,
            leaf_misses,
            node_hits,
            node_misses,
            cached: self.cached(),
            flushes: of.flushes.get(),
            syncs: of.syncs.get(),
            batches: of.batches.get(),
            batched_records: of.batched_records.get(),
            checkpoints: of.checkpoints.get(),
            foreground_checkpoints: of.foreground_checkpoints.get(),
            checkpoint_time: Duration::from_nanos(of.checkpoint_time.get()),
            standstill_time: Duration::from_nanos(of.standstill_time.get()),
            longest_standstill: Duration::from_nanos(of.longest_standstill.get()),
            reclaimed_blocks: of.reclaimed_blocks.get(),
            reclaiming: self.leaving.load(Ordering::Acquire) as u64,
            waiting_blocks: self.space.waiting(),
            data_written: ByteLen::new(of.data_written.get()),
            log_written: ByteLen::new(of.log_written.get()),
            metadata_written: ByteLen::new(of.metadata_written.get()),
            growths: of.growths.get(),
        }
    }
}

impl Pool {
    /// What the pool did since it was opened.
    pub fn stats(&self) -> PoolStats {
        self.core.stats()
    }
}
