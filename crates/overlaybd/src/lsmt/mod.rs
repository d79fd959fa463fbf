//! LSMT: a layer of a disk, sealed: the sectors it holds and an index of where they are.

mod header;
mod index;
mod layer;
mod lookup;
mod segment;

pub(crate) use header::{HEADER_SIZE, Header, Kind, TAG_LEN};
pub(crate) use index::{compress, overlay_all};
pub use layer::Layer;
pub(crate) use layer::parse_index;
pub use lookup::Lookup;
pub use segment::Segment;
pub(crate) use segment::{ENTRY_SIZE, INVALID_ENTRY, LONGEST, REMOTE, SECTOR};
