//! [`Measured`]: a disk that counts what is done with it.
//!
//! Counting costs two looks at the clock and a few relaxed additions for each operation.

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, Extent, buffers_len};
use serde::{Deserialize, Serialize};

/// Buckets of a histogram: the last one holds everything from half a minute on.
const BUCKETS: usize = 36;

/// Latencies by the power of two of their nanoseconds: entry `n` counts those below `2^n` and not below `2^(n-1)`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Histogram(pub Vec<u64>);

impl Histogram {
    /// The time that this share of the operations stayed below, as the upper end of a bucket; nothing if there were
    /// none. `share` is between 0 and 1.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let all: u64 = self.0.iter().sum();
        let mut seen = 0_u64;
        for (at, count) in (0_u32..).zip(&self.0) {
            seen += count;
            // Counts far below 2^53 are exact, and nobody reads more than three digits of this.
            if all > 0 && precise(seen) >= precise(all) * share {
                return Some(Duration::from_nanos(1_u64.checked_shl(at).unwrap_or(u64::MAX)));
            }
        }
        None
    }
}

/// A count as a number to calculate with.
fn precise(count: u64) -> f64 {
    let high = u32::try_from(count >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(count & 0xffff_ffff).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

/// What one kind of operation came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OperationFigures {
    /// How many were begun and ended.
    pub count: u64,
    /// How many of them failed.
    pub failed: u64,
    /// Bytes they were about.
    pub bytes: u64,
    /// Time they took, all together, in nanoseconds.
    pub nanoseconds: u64,
    /// How long each took.
    pub latency: Histogram,
}

#[derive(Debug)]
struct Counter {
    failed: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
    latency: [AtomicU64; BUCKETS],
}

impl Default for Counter {
    fn default() -> Counter {
        Counter {
            failed: AtomicU64::default(),
            bytes: AtomicU64::default(),
            nanoseconds: AtomicU64::default(),
            latency: std::array::from_fn(|_| AtomicU64::default()),
        }
    }
}

fn bucket(nanoseconds: u64) -> usize {
    let bits = u64::BITS - nanoseconds.leading_zeros();
    usize::try_from(bits).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

impl Counter {
    fn count<T>(
        &self,
        bytes: ByteLen,
        act: impl FnOnce() -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let begun = Instant::now();
        let ended = act();
        let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.bytes.fetch_add(bytes.get(), Ordering::Relaxed);
        self.nanoseconds.fetch_add(took, Ordering::Relaxed);
        self.latency[bucket(took)].fetch_add(1, Ordering::Relaxed);
        if ended.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        ended
    }

    fn figures(&self) -> OperationFigures {
        let latency: Vec<u64> =
            self.latency.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        OperationFigures {
            count: latency.iter().sum(),
            failed: self.failed.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            nanoseconds: self.nanoseconds.load(Ordering::Relaxed),
            latency: Histogram(latency),
        }
    }
}

/// What was counted on a disk, however often it is open.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    read: Counter,
    write: Counter,
    discard: Counter,
    flush: Counter,
}

impl Counters {
    /// What came together so far, for the disk of that name.
    pub(crate) fn figures(&self, name: &str, served: bool) -> crate::reply::DiskFigures {
        crate::reply::DiskFigures {
            name: name.to_owned(),
            served,
            size: 0,
            referenced: 0,
            read: self.read.figures(),
            write: self.write.figures(),
            discard: self.discard.figures(),
            flush: self.flush.figures(),
        }
    }
}

/// A disk that counts what is done with it.
pub struct Measured {
    device: Arc<dyn BlockDevice>,
    counters: Arc<Counters>,
}

impl fmt::Debug for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Measured").field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl Measured {
    /// Counts from zero.
    pub fn new(device: Arc<dyn BlockDevice>) -> Measured {
        Measured::counting(device, Arc::default())
    }

    pub(crate) fn counting(device: Arc<dyn BlockDevice>, counters: Arc<Counters>) -> Measured {
        Measured { device, counters }
    }

    /// What was counted so far.
    pub fn figures(&self, name: &str) -> crate::reply::DiskFigures {
        self.counters.figures(name, true)
    }
}

impl BlockDevice for Measured {
    fn size(&self) -> ByteLen {
        self.device.size()
    }

    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        let len = buffers_len(buffers);
        self.counters.read.count(len, || self.device.read_vectored_at(at, buffers))
    }

    fn write_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        let len = buffers_len(buffers);
        self.counters.write.count(len, || self.device.write_vectored_at(at, buffers))
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.counters.discard.count(len, || self.device.discard(at, len))
    }

    fn write_zeroes(
        &self,
        at: ByteOffset,
        len: ByteLen,
        keep_allocated: bool,
    ) -> Result<(), DeviceError> {
        self.counters.discard.count(len, || self.device.write_zeroes(at, len, keep_allocated))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.counters.flush.count(ByteLen::ZERO, || self.device.flush())
    }

    fn settle(&self) -> Result<(), DeviceError> {
        self.device.settle()
    }

    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        self.device.extents(at, len)
    }

    fn is_read_only(&self) -> bool {
        self.device.is_read_only()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_block::MemoryDevice;
    use kiln_block::testing::Abilities;

    #[test]
    fn what_is_done_with_a_disk_is_counted_with_its_bytes_and_failures() {
        let disk = Measured::new(Arc::new(MemoryDevice::new(ByteLen::kib(64))));
        disk.write_at(ByteOffset::ZERO, &[1; 4096]).unwrap();
        disk.write_at(ByteOffset::new(4096), &[1; 512]).unwrap();
        disk.read_at(ByteOffset::new(1 << 20), &mut [0; 8]).unwrap_err();
        disk.discard(ByteOffset::ZERO, ByteLen::kib(8)).unwrap();
        disk.flush().unwrap();
        let figures = disk.figures("disk");
        assert_eq!((figures.write.count, figures.write.bytes), (2, 4608));
        assert_eq!((figures.read.count, figures.read.failed), (1, 1));
        assert_eq!((figures.discard.count, figures.discard.bytes), (1, 8192));
        assert_eq!(figures.flush.latency.0.iter().sum::<u64>(), 1);
    }

    #[test]
    fn buckets_are_powers_of_two_and_the_last_takes_the_rest() {
        assert_eq!([0, 1, 2, 3, 4, 1023, 1024].map(bucket), [0, 1, 2, 2, 3, 10, 11]);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        let histogram = Histogram(vec![0, 0, 90, 0, 0, 10]);
        assert_eq!(histogram.quantile(0.9), Some(Duration::from_nanos(4)));
        assert_eq!(histogram.quantile(0.99), Some(Duration::from_nanos(32)));
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn measuring_changes_nothing_about_a_disk() {
        let memory = Arc::new(MemoryDevice::new(ByteLen::mib(1)));
        kiln_block::testing::conforms(
            &Measured::new(memory),
            Abilities { granularity: 1, writable: true },
        );
    }
}
