//! What is answered to a request: plain data, as the request is. Sizes and places are bytes.

use serde::{Deserialize, Serialize};

use crate::measured::OperationFigures;
use crate::request::Partial;

/// What is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reply {
    /// It is done.
    Done,
    /// Disks.
    Disks {
        /// By name.
        disks: Vec<DiskStat>,
    },
    /// A disk.
    Disk(DiskStat),
    /// A disk's snapshots.
    Snapshots {
        /// Oldest first.
        snapshots: Vec<Snapshot>,
    },
    /// What changed.
    Ranges {
        /// How large the older is.
        from_size: u64,
        /// How large the newer is.
        to_size: u64,
        /// Where they differ, and what the newer has there.
        ranges: Vec<Range>,
    },
    /// A disk's size was changed.
    Resized {
        /// What it was before.
        was: u64,
    },
    /// What was removed.
    Removed {
        /// Disks and snapshots, in the order in which they went.
        removed: Vec<String>,
    },
    /// Space was given back.
    Collected {
        /// How much.
        freed: u64,
        /// Where the rest is.
        space: Space,
    },
    /// What a look at everything found.
    Verified {
        /// Parts of maps that were looked at.
        nodes: u64,
        /// Blocks of data that were read.
        data_blocks: u64,
        /// What is wrong, in words.
        problems: Vec<String>,
    },
    /// How a disk and a file differ.
    Compared {
        /// How large the disk is.
        size: u64,
        /// How large the file is.
        file_size: u64,
        /// Where they differ, and what the disk has there.
        ranges: Vec<Range>,
    },
    /// A disk was copied from or to a file.
    Copied {
        /// How large the disk is.
        size: u64,
        /// How large the file's image is.
        source_size: u64,
        /// How many bytes were written.
        written: u64,
    },
    /// A stream was written.
    Sent {
        /// Bytes of the disk in it.
        data: u64,
        /// How long it is.
        bytes: u64,
    },
    /// A stream was received.
    Received {
        /// The disk.
        disk: String,
        /// Its new snapshot.
        snapshot: String,
        /// How large it is.
        size: u64,
        /// How many bytes were written.
        written: u64,
        /// How long the stream was.
        bytes: u64,
    },
    /// What was received in part.
    Partials {
        /// By name.
        partials: Vec<Partial>,
    },
    /// All disks and snapshots.
    Tree {
        /// Each disk and each snapshot.
        nodes: Vec<Node>,
    },
    /// Where the space is.
    Space(Space),
    /// What happened so far.
    Metrics {
        /// In the pool.
        pool: PoolFigures,
        /// On each disk that is or was served.
        disks: Vec<DiskFigures>,
    },
    /// Disks are served.
    Serving {
        /// One for each disk and way.
        served: Vec<Served>,
    },
    /// A temporary disk was made.
    Temporary {
        /// Its name.
        disk: String,
    },
    /// What a connection held has ended.
    Ended {
        /// Clients that had to be hung up on.
        cut_off: u64,
    },
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStat {
    /// Its name.
    pub name: String,
    /// How large it looks.
    pub size: u64,
    /// How much of it is mapped, its own or shared.
    pub referenced: u64,
    /// How much was ever written to it.
    pub written: u64,
    /// The most it may reference; zero for any.
    pub quota: u64,
    /// Seconds since 1970.
    pub created: u64,
    /// Its flushes do nothing.
    pub throw_away: bool,
    /// The snapshot it evolved from, `NAME@SNAP`, where that still has a name.
    pub origin: Option<String>,
    /// What it shows where nothing was written to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<DiskBase>,
    /// How much would become free without it, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique: Option<u64>,
    /// How many snapshots it has, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<u64>,
}

/// An image outside of the pool that a disk shows where nothing was written to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskBase {
    /// What to call it.
    pub image: String,
    /// How much of it shows.
    pub shown: u64,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name, without the disk's.
    pub snapshot: String,
    /// How large the disk was.
    pub size: u64,
    /// How much of it is mapped.
    pub referenced: u64,
    /// Disks and snapshots that evolved from it.
    pub children: u64,
    /// Seconds since 1970.
    pub created: u64,
}

/// A disk or snapshot among its relatives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `NAME` or `NAME@SNAP`.
    pub name: String,
    /// The snapshot it evolved from.
    pub origin: Option<String>,
    /// The image that shows where nothing was written to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// How large it looks.
    pub size: u64,
    /// How much of it is mapped, its own or shared.
    pub referenced: u64,
    /// Seconds since 1970.
    pub created: u64,
    /// Somebody is served with it now.
    #[serde(default)]
    pub served: bool,
}

/// A stretch of a disk and what is there: `[at, len, kind]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range(pub u64, pub u64, pub Kind);

/// What a stretch of a disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Bytes somebody wrote.
    Data,
    /// Zeros.
    Hole,
}

/// Where a pool's space is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What maps reach, and the maps.
    pub used: u64,
    /// What disks can still be given.
    pub available: u64,
}

/// What happened in a pool since it was opened, and how it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolFigures {
    /// Where the space is.
    pub space: Space,
    /// Memory that maps take.
    pub cached: u64,
    /// Parts of maps that were found in memory.
    pub cache_hits: u64,
    /// Parts of maps that had to be read.
    pub cache_misses: u64,
    /// Flushes that were asked for, of disks whose flushes are durable.
    pub flushes: u64,
    /// Batches in which they were written to the log.
    pub batches: u64,
    /// Bytes of data written to the pool.
    pub data_written: u64,
    /// Bytes written to its log.
    pub log_written: u64,
    /// Bytes of maps, catalog and superblocks written.
    pub metadata_written: u64,
    /// Nanoseconds for which no map could be changed.
    pub standstill: u64,
    /// Bytes that became free when what was removed was reclaimed.
    pub reclaimed: u64,
    /// Bytes that become free with the next checkpoint.
    pub waiting: u64,
    /// Deleted states whose space is not free yet.
    pub reclaiming: u64,
    /// Syncs of the device.
    pub syncs: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// The owner's process; zero where there is none.
    pub pid: u32,
    /// Seconds since the pool was opened.
    pub uptime: u64,
    /// Connections to the owner.
    pub connections: u64,
}

/// What happened on a disk since its pool was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskFigures {
    /// `NAME` or `NAME@SNAP`.
    pub name: String,
    /// It is served now.
    pub served: bool,
    /// How large it looks.
    pub size: u64,
    /// How much of it is mapped, its own or shared.
    pub referenced: u64,
    /// Reads.
    pub read: OperationFigures,
    /// Writes.
    pub write: OperationFigures,
    /// Discards and write-zeroes.
    pub discard: OperationFigures,
    /// Flushes.
    pub flush: OperationFigures,
}

/// A disk that is served in one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// `NAME` or `NAME@SNAP`.
    pub name: String,
    /// How clients reach it: an NBD URI, or the path of a socket, a file or a device.
    pub uri: String,
    /// The address, without the disk's name.
    pub address: String,
    /// How large it is.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Which of the asked-for frontends it is, counted from zero.
    pub frontend: u64,
}
