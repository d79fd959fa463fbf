//! What lives as long as anybody has a pool, or a disk of it, open.

use std::fs::File;
use std::ops::Deref;
use std::sync::Arc;

use crate::background::Worker;
use crate::core::Core;

/// A pool with its worker and its lock. Dropping the last one ends the worker, then lets the lock go.
#[derive(Debug)]
pub(crate) struct Opened {
    // Dropped in this order.
    _worker: Option<Worker>,
    core: Arc<Core>,
    /// Of a pool that is a file; the kernel drops it however the process ends.
    _lock: Option<File>,
}

impl Opened {
    pub(crate) fn new(core: Core, lock: Option<File>) -> Arc<Opened> {
        let core = Arc::new(core);
        Arc::new(Opened { _worker: Worker::start(&core), core, _lock: lock })
    }
}

impl Deref for Opened {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}
