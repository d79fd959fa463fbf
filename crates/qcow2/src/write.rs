//! Writing an image in one pass over a disk.
//!
//! [`write()`] goes to a file: data lies in the order of the disk, each L2 table behind what it tells about, refcounts and
//! tables at the end, and the header comes last, so that what was interrupted is no image.
//! [`write_stream`] goes to a pipe: tables come first, made from the disk's extents, so zeros that the
//! disk does not know of take space, and nothing can be compressed.

mod file;
mod piped;

use std::ops::ControlFlow;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, ExtentKind};

use crate::header::MAX_TABLE;
use crate::{Compression, Qcow2Error};

pub use file::write;
pub use piped::write_stream;

/// Bytes of the disk that are read at once.
const BATCH: u64 = 4 << 20;

/// How an image is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteOptions {
    /// The unit in which the disk is stored: a power of two from 4 KiB to 2 MiB.
    pub cluster: ByteLen,
    /// Whether clusters are compressed, and how.
    pub compression: Option<Compression>,
    /// Threads that compress.
    pub threads: usize,
}

impl Default for WriteOptions {
    fn default() -> WriteOptions {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        WriteOptions { cluster: ByteLen::kib(64), compression: None, threads }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the disk that are stored.
    pub stored: ByteLen,
    /// Bytes of the image.
    pub file: ByteLen,
}

/// Told how far into the disk the work has got; it may end it.
pub type Progress<'a> = dyn FnMut(ByteLen) -> ControlFlow<()> + 'a;

fn go_on(progress: &mut Progress<'_>, at: u64) -> Result<(), Qcow2Error> {
    match progress(ByteLen::new(at)) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Qcow2Error::Stopped),
    }
}

/// Numbers of an image that follow from its clusters and its disk.
#[derive(Debug, Clone, Copy)]
struct Shape {
    bits: u32,
    cluster: u64,
    /// Bytes of the disk; the image is made of whole sectors.
    size: u64,
    disk: u64,
    l1_entries: u64,
}

impl Shape {
    fn new(device: &dyn BlockDevice, cluster: ByteLen) -> Result<Shape, Qcow2Error> {
        let bits = cluster.get().trailing_zeros();
        if !cluster.get().is_power_of_two() || !(12..=21).contains(&bits) {
            return Err(Qcow2Error::Refused(format!(
                "clusters of {cluster} are not possible: a power of two from 4K to 2M"
            )));
        }
        let disk = device.size();
        let size = disk.get().div_ceil(512) * 512;
        let covers = cluster.get() / 8 * cluster.get();
        let l1_entries = size.div_ceil(covers).max(1);
        // The first refcount block has to tell about header and L1 table.
        let most_entries = (MAX_TABLE / 8).min((cluster.get() / 2 - 2) * cluster.get() / 8);
        if l1_entries > most_entries {
            let most = ByteLen::new(covers.saturating_mul(most_entries));
            return Err(Qcow2Error::TooLarge { size: disk, cluster, most });
        }
        Ok(Shape { bits, cluster: cluster.get(), size, disk: disk.get(), l1_entries })
    }

    /// How much of the disk an L2 table tells about.
    fn covers(&self) -> u64 {
        self.cluster / 8 * self.cluster
    }

    fn l1_clusters(&self) -> u64 {
        (self.l1_entries * 8).div_ceil(self.cluster)
    }

    /// The parts of the disk that one L2 table each tells about: its number, start and end.
    fn tables(self) -> impl Iterator<Item = (u64, u64, u64)> {
        let covers = self.covers();
        (0..self.disk.div_ceil(covers))
            .map(move |number| (number, number * covers, ((number + 1) * covers).min(self.disk)))
    }

    fn index(&self, bytes: u64) -> usize {
        usize::try_from(bytes / self.cluster).unwrap_or(usize::MAX)
    }
}

/// Runs of whole clusters in which a disk has data, within a part of it that starts at a cluster.
fn data_runs(
    device: &dyn BlockDevice,
    shape: &Shape,
    (start, end): (u64, u64),
) -> Result<Vec<(u64, u64)>, DeviceError> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for extent in device.extents(ByteOffset::new(start), ByteLen::new(end - start))? {
        if extent.kind != ExtentKind::Data {
            continue;
        }
        let from = extent.at.get() / shape.cluster * shape.cluster;
        let to = (extent.at.get() + extent.len.get()).next_multiple_of(shape.cluster);
        match runs.last_mut() {
            Some(last) if last.1 >= from => last.1 = to,
            _ => runs.push((from, to)),
        }
    }
    Ok(runs)
}

/// Reads clusters; behind the end of the disk there are zeros.
fn read_clusters(
    device: &dyn BlockDevice,
    shape: &Shape,
    at: u64,
    buffer: &mut [u8],
) -> Result<(), DeviceError> {
    let there = (shape.disk - at).min(buffer.len() as u64);
    let (there, beyond) = buffer.split_at_mut(usize::try_from(there).unwrap_or(0));
    beyond.fill(0);
    device.read_at(ByteOffset::new(at), there)
}
