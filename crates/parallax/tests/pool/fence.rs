//! Of two openings of one pool, whose lock was got around, the older one can write no more.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, MemoryDevice};
use kiln_parallax::{DiskOptions, Pool, PoolError};

use crate::world::{pool_on, small};

/// What the older one does first after it was taken over.
fn is_fenced(act: impl FnOnce(&Pool) -> Result<(), PoolError>) {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(8)));
    let old = pool_on(device.clone());
    old.create_disk("a", ByteLen::mib(1), &DiskOptions::default()).unwrap();
    old.snapshot("a", "s").unwrap();
    let stale = old.open_disk("a").unwrap();
    stale.write_at(ByteOffset::ZERO, &[1; 8192]).unwrap();
    stale.flush().unwrap();
    let new = Pool::open(device.clone(), &small()).unwrap();
    let disk = new.open_disk("a").unwrap();
    disk.write_at(ByteOffset::new(4096), &[2; 4096]).unwrap();
    disk.flush().unwrap();
    // It cannot know yet, and what it writes reaches nothing.
    stale.write_at(ByteOffset::ZERO, &[3; 4096]).unwrap();
    let error = act(&old).unwrap_err();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    assert!(text.contains("opened again elsewhere"), "{text}");
    for _ in 0..2 {
        assert!(matches!(old.snapshot("a", "t"), Err(PoolError::Fenced { .. })));
        assert!(matches!(old.flush(), Err(PoolError::Fenced { .. })));
        let refused = stale.write_at(ByteOffset::ZERO, &[4; 512]).unwrap_err();
        assert!(matches!(refused, DeviceError::Io { .. }), "{refused}");
    }
    drop((old, stale, disk, new));
    let pool = Pool::open(device, &small()).unwrap();
    let mut bytes = vec![0; 8192];
    pool.open_disk("a").unwrap().read_at(ByteOffset::ZERO, &mut bytes).unwrap();
    assert_eq!((bytes[0], bytes[4096]), (1, 2));
    let report = pool.verify(true).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn an_opening_that_was_taken_over_cannot_flush() {
    is_fenced(Pool::flush);
    let device = |source| PoolError::Device { act: "flush", source };
    is_fenced(|pool| pool.open_disk("a")?.flush().map_err(device));
}

#[test]
fn an_opening_that_was_taken_over_cannot_checkpoint_or_change_the_catalog() {
    is_fenced(Pool::checkpoint);
    is_fenced(Pool::gc);
    is_fenced(|pool| pool.snapshot("a", "u"));
    is_fenced(|pool| pool.rename("a", "b"));
    is_fenced(|pool| pool.delete_snapshot("a", "s"));
}

#[test]
fn an_opening_is_taken_over_however_often_the_pool_was_opened_since() {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(8)));
    let old = pool_on(device.clone());
    for checkpoints in 0..4 {
        let new = Pool::open(device.clone(), &small()).unwrap();
        (0..checkpoints).for_each(|_| new.checkpoint().unwrap());
    }
    assert!(matches!(old.checkpoint(), Err(PoolError::Fenced { opening: 1 })));
}

/// A device whose superblocks look as they did for whoever began to open the pool then, until it writes one itself.
struct BegunThen {
    device: Arc<MemoryDevice>,
    then: Vec<u8>,
    stored: AtomicBool,
}

impl BlockDevice for BegunThen {
    fn size(&self) -> ByteLen {
        self.device.size()
    }

    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        self.device.read_vectored_at(at, buffers)?;
        let from = usize::try_from(at.get()).unwrap();
        if let [buffer] = buffers
            && from < self.then.len()
            && !self.stored.load(Ordering::Relaxed)
        {
            let len = buffer.len();
            buffer.copy_from_slice(&self.then[from..from + len]);
        }
        Ok(())
    }

    fn write_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        if at.get() < self.then.len() as u64 {
            self.stored.store(true, Ordering::Relaxed);
        }
        self.device.write_vectored_at(at, buffers)
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.device.discard(at, len)
    }

    fn write_zeroes(
        &self,
        at: ByteOffset,
        len: ByteLen,
        keep_allocated: bool,
    ) -> Result<(), DeviceError> {
        self.device.write_zeroes(at, len, keep_allocated)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.device.flush()
    }
}

#[test]
fn of_two_openings_that_began_at_once_only_one_can_write() {
    for steps in 0..3 {
        let device = Arc::new(MemoryDevice::new(ByteLen::mib(8)));
        let pool = pool_on(device.clone());
        pool.create_disk("a", ByteLen::mib(1), &DiskOptions::default()).unwrap();
        drop(pool);
        let then = device.to_vec()[..4 * 4096].to_vec();
        let first = Pool::open(device.clone(), &small()).unwrap();
        let second = BegunThen { device: device.clone(), then, stored: AtomicBool::new(false) };
        let second = Pool::open(Arc::new(second), &small()).unwrap();
        (0..steps).for_each(|_| second.checkpoint().unwrap());
        let disk = first.open_disk("a").unwrap();
        disk.write_at(ByteOffset::ZERO, &[1; 4096]).unwrap();
        assert!(matches!(first.flush(), Err(PoolError::Fenced { opening: 2 })));
        let disk = second.open_disk("a").unwrap();
        disk.write_at(ByteOffset::ZERO, &[2; 4096]).unwrap();
        second.flush().unwrap();
        second.checkpoint().unwrap();
        assert!(second.verify(true).unwrap().is_clean());
    }
}
