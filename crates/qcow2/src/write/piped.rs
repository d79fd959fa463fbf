//! An image in a pipe: header, refcounts, L1 table, L2 tables, data.

use std::collections::BTreeMap;
use std::io::Write;

use kiln_block::{BlockDevice, ByteLen};

use super::{BATCH, Progress, Shape, Written, data_runs, go_on, read_clusters};
use crate::entry::stored_entry;
use crate::header::NewHeader;
use crate::refcount::bytes_of;
use crate::{Compression, Qcow2Error};

/// Runs of clusters, by the number of the L2 table that tells about them.
type Plan = BTreeMap<u64, Vec<(u64, u64)>>;

/// Writes a disk as an image, front to back. The disk must not change meanwhile.
pub fn write_stream(
    device: &dyn BlockDevice,
    out: &mut impl Write,
    cluster: ByteLen,
    progress: &mut Progress<'_>,
) -> Result<Written, Qcow2Error> {
    let shape = Shape::new(device, cluster)?;
    let mut plan = Plan::new();
    for (number, start, end) in shape.tables() {
        go_on(progress, 0)?;
        let runs = data_runs(device, &shape, (start, end))?;
        if !runs.is_empty() {
            plan.insert(number, runs);
        }
    }
    let data: u64 = plan.values().flatten().map(|(from, to)| (to - from) / shape.cluster).sum();
    let place = Places::new(&shape, plan.len() as u64, data);
    let header = NewHeader {
        cluster_bits: shape.bits,
        size: shape.size,
        l1_entries: u32::try_from(shape.l1_entries).unwrap_or(u32::MAX),
        l1_offset: place.l1 * shape.cluster,
        refcounts_at: shape.cluster,
        refcount_clusters: u32::try_from(place.table).unwrap_or(u32::MAX),
        compression: Compression::Deflate,
    };
    let mut out = Clusters { out, cluster: shape.cluster };
    out.put(header.encode().to_vec())?;
    let blocks = 1 + place.table..1 + place.table + place.blocks;
    out.put(blocks.flat_map(|block| (block * shape.cluster).to_be_bytes()).collect())?;
    let per_block = shape.cluster / 2;
    for block in 0..place.blocks {
        let used = place.end.saturating_sub(block * per_block).min(per_block);
        out.put(bytes_of(&vec![1; usize::try_from(used).unwrap_or(0)]))?;
    }
    let mut next = place.l2;
    let mut l1 = vec![0; usize::try_from(shape.l1_entries).unwrap_or(0)];
    for number in plan.keys() {
        if let Some(entry) = l1.get_mut(usize::try_from(*number).unwrap_or(usize::MAX)) {
            *entry = stored_entry(next * shape.cluster);
        }
        next += 1;
    }
    out.put(l1.iter().flat_map(|entry| entry.to_be_bytes()).collect())?;
    for (number, runs) in &plan {
        let mut table = vec![0; shape.index(shape.covers())];
        for (from, to) in runs {
            let first = shape.index(from - number * shape.covers());
            for entry in &mut table[first..first + shape.index(to - from)] {
                *entry = stored_entry(next * shape.cluster);
                next += 1;
            }
        }
        out.put(table.iter().flat_map(|entry| entry.to_be_bytes()).collect())?;
    }
    let mut buffer = Vec::new();
    for (from, to) in plan.values().flatten() {
        let mut at = *from;
        while at < *to {
            go_on(progress, at)?;
            buffer.resize(usize::try_from(BATCH.min(to - at)).unwrap_or(0), 0);
            read_clusters(device, &shape, at, &mut buffer)?;
            out.out.write_all(&buffer)?;
            at += buffer.len() as u64;
        }
    }
    out.out.flush()?;
    go_on(progress, shape.disk)?;
    Ok(Written {
        stored: ByteLen::new(data * shape.cluster),
        file: ByteLen::new(place.end * shape.cluster),
    })
}

/// Clusters at which the parts start.
struct Places {
    /// Clusters of the refcount table, which is the second cluster.
    table: u64,
    /// Refcount blocks behind it.
    blocks: u64,
    l1: u64,
    l2: u64,
    end: u64,
}

impl Places {
    fn new(shape: &Shape, l2: u64, data: u64) -> Places {
        let fixed = 1 + shape.l1_clusters() + l2 + data;
        let (mut table, mut blocks) = (1, 1);
        // They count themselves, so their number is found step by step.
        loop {
            let needs = (fixed + table + blocks).div_ceil(shape.cluster / 2);
            let needs_table = needs.div_ceil(shape.cluster / 8);
            if needs <= blocks && needs_table <= table {
                break;
            }
            blocks = blocks.max(needs);
            table = table.max(needs_table);
        }
        let l1 = 1 + table + blocks;
        let l2_at = l1 + shape.l1_clusters();
        Places { table, blocks, l1, l2: l2_at, end: l2_at + l2 + data }
    }
}

/// An output in whole clusters.
struct Clusters<'a, W> {
    out: &'a mut W,
    cluster: u64,
}

impl<W: Write> Clusters<'_, W> {
    /// Puts bytes and fills their last cluster.
    fn put(&mut self, mut bytes: Vec<u8>) -> std::io::Result<()> {
        let cluster = usize::try_from(self.cluster).unwrap_or(usize::MAX);
        bytes.resize(bytes.len().next_multiple_of(cluster), 0);
        self.out.write_all(&bytes)
    }
}
