//! A disk whose flushes wait at a gate that the test opens, and so do reads at `SLOW` and beyond.

use std::sync::Arc;

use kiln_block::testing::{Act, GateDisk};
use kiln_block::{ByteLen, MemoryDevice};

/// Where reads start to wait.
pub(crate) const SLOW: u64 = 512 << 10;

/// One whose gate is shut.
pub(crate) fn shut(size: ByteLen) -> Arc<GateDisk<MemoryDevice>> {
    let gate = GateDisk::new(MemoryDevice::new(size), |act, at| {
        act == Act::Flush || (act == Act::Read && at.get() >= SLOW)
    });
    gate.shut();
    Arc::new(gate)
}
