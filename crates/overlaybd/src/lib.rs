//! overlaybd images: layers of a disk (LSMT), usually compressed (ZFile), often wrapped in a tar,
//! stacked on each other and read as one disk, with an upper for what is written.
//!
//! Start with [`Image::open`] for an image's configuration file, or with [`Layer::open`] and
//! [`Stack::new`] for layers in files. A stack is a [`BlockSource`](kiln_block::BlockSource), a
//! [`Writable`] is a [`BlockDevice`](kiln_block::BlockDevice); frontends serve both without knowing
//! the format. [`pack`], [`Stack::merge`], [`Writable::commit`] and [`Upper::seal`] make new layers.
//!
//! The format's page is `docs/formats/overlaybd.md`. Readers take what the format's other
//! implementation takes; writers write only what it reads.

mod compact;
mod config;
mod error;
mod input;
mod lsmt;
mod raw;
mod sealed;
mod stack;
mod tar;
mod trace;
mod upper;
mod uuid;
mod writable;
mod zfile;

use std::fmt;
use std::sync::Arc;

use kiln_block::ByteLen;

pub use compact::{Sealing, Written};
pub use config::{Config, Image, LowerConfig, UpperConfig};
pub use error::LayerError;
pub use input::Input;
pub use lsmt::{Layer, Lookup, Segment};
pub use raw::{pack, pack_changes};
pub use sealed::{Flaw, check, check_layer};
pub use stack::{ChainMismatch, MOST_LAYERS, Stack};
pub use tar::around_layer;
pub use trace::{Trace, Traced};
pub use upper::{NewUpper, Upper};
pub use uuid::{ParseUuidError, Uuid};
pub use writable::Writable;
pub use zfile::{BlockCache, Codec, Packing, ZFile, ZFileWriter};

/// What the layers of an image share.
#[derive(Clone)]
pub struct OpenOptions {
    /// Decompressed blocks.
    pub cache: Arc<BlockCache>,
    /// How many threads decompress one large read.
    pub threads: usize,
}

impl Default for OpenOptions {
    /// 64 MiB of decompressed blocks, and a thread for each processor.
    fn default() -> OpenOptions {
        OpenOptions {
            cache: Arc::new(BlockCache::new(ByteLen::mib(64))),
            threads: std::thread::available_parallelism().map_or(1, Into::into),
        }
    }
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenOptions({:?}, {} threads)", self.cache, self.threads)
    }
}
