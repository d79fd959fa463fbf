//! ZFile: a file in independently compressed blocks, readable anywhere.

mod ahead;
mod cache;
mod codec;
mod crew;
mod header;
mod pipeline;
mod reader;
mod writer;

pub use cache::BlockCache;
pub use codec::Codec;
pub use reader::ZFile;
pub(crate) use reader::is_zfile;
pub use writer::{Packing, ZFileWriter};
