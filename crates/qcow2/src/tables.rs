//! [`TableCache`]: as much of the L1 and L2 tables as was asked for lately, and no more than it may hold.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_block::ByteLen;

use crate::Qcow2Error;
use crate::header::Place;

/// Bytes of a page: 512 entries, and what is read at once.
pub(crate) const PAGE: u64 = 4096;

/// A page of a table.
pub(crate) type Page = Arc<[u8; 4096]>;

/// Pages of tables, for all images of a chain together.
#[derive(Debug)]
pub struct TableCache {
    most: usize,
    next_owner: AtomicU64,
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    found: HashMap<(u64, u64), Held>,
    /// The oldest first.
    order: VecDeque<(u64, u64)>,
}

#[derive(Debug)]
struct Held {
    page: Page,
    /// Since it was last at the front of the order.
    used: bool,
}

impl TableCache {
    /// A cache of at most that size; an image of 100 GiB with clusters of 64 KiB has tables of 12.5 MiB.
    pub fn new(size: ByteLen) -> TableCache {
        let most = usize::try_from(size.get() / PAGE).unwrap_or(usize::MAX).max(4);
        TableCache { most, next_owner: AtomicU64::new(0), pages: Mutex::default() }
    }

    /// A number for a file, by which its pages are kept.
    pub(crate) fn new_owner(&self) -> u64 {
        self.next_owner.fetch_add(1, Ordering::Relaxed)
    }

    /// Page `number` of a file.
    pub(crate) fn page(
        &self,
        place: &Place<'_>,
        owner: u64,
        number: u64,
    ) -> Result<Page, Qcow2Error> {
        let key = (owner, number);
        if let Some(held) = self.pages().found.get_mut(&key) {
            held.used = true;
            return Ok(held.page.clone());
        }
        let mut bytes = [0; 4096];
        place.read(number * PAGE, &mut bytes)?;
        let page: Page = Arc::new(bytes);
        let mut pages = self.pages();
        if pages.found.insert(key, Held { page: page.clone(), used: false }).is_none() {
            pages.order.push_back(key);
        }
        while pages.found.len() > self.most {
            let Some(oldest) = pages.order.pop_front() else { break };
            match pages.found.get_mut(&oldest) {
                Some(held) if held.used => {
                    held.used = false;
                    pages.order.push_back(oldest);
                }
                _ => {
                    pages.found.remove(&oldest);
                }
            }
        }
        Ok(page)
    }

    fn pages(&self) -> std::sync::MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for TableCache {
    fn default() -> TableCache {
        TableCache::new(ByteLen::mib(16))
    }
}
