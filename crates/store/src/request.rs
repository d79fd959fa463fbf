//! What can be asked of a pool, and what is answered: plain data, the same in one process and between two.
//!
//! Sizes and places are bytes. Files are never named: they travel as open descriptors beside the request, in the
//! order each request tells.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::measured::OperationFigures;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Request {
    /// An empty disk. Answer: [`Reply::Done`].
    Create {
        /// Its name.
        name: String,
        /// How large it looks.
        size: u64,
        /// What it is made with.
        #[serde(default)]
        with: NewDisk,
    },
    /// All disks, by name. Answer: [`Reply::Disks`].
    List,
    /// One disk. Answer: [`Reply::Disk`], with what it alone holds.
    Stat {
        /// Its name.
        disk: String,
    },
    /// A snapshot of a disk as it is now. Answer: [`Reply::Done`].
    Snap {
        /// The disk.
        disk: String,
        /// The snapshot's name.
        snapshot: String,
    },
    /// A disk's snapshots, oldest first. Answer: [`Reply::Snapshots`].
    Snapshots {
        /// The disk.
        disk: String,
    },
    /// A disk that starts as a snapshot. Answer: [`Reply::Done`].
    Clone {
        /// The snapshot's disk.
        disk: String,
        /// The snapshot.
        snapshot: String,
        /// The new disk's name.
        name: String,
        /// What it is made with.
        #[serde(default)]
        with: NewDisk,
    },
    /// Makes a disk what its snapshot was. Answer: [`Reply::Done`].
    Rollback {
        /// The disk.
        disk: String,
        /// Its snapshot.
        snapshot: String,
    },
    /// What changed from one disk or snapshot to another. Answer: [`Reply::Ranges`].
    Diff {
        /// The older, `NAME` or `NAME@SNAP`.
        from: String,
        /// The newer.
        to: String,
    },
    /// Gives a disk another size. Answer: [`Reply::Resized`].
    Resize {
        /// The disk.
        disk: String,
        /// How large it shall look.
        size: u64,
        /// Even if something is lost behind its new end.
        #[serde(default)]
        shrink: bool,
    },
    /// Gives a disk another name. Answer: [`Reply::Done`].
    Rename {
        /// The disk.
        disk: String,
        /// Its new name.
        name: String,
    },
    /// Limits what a disk may reference; zero for no limit. Answer: [`Reply::Done`].
    Quota {
        /// The disk.
        disk: String,
        /// The most it may reference.
        quota: u64,
    },
    /// Removes disks and snapshots. Answer: [`Reply::Removed`].
    Remove {
        /// Disks, and snapshots as `NAME@SNAP`.
        names: Vec<String>,
        /// The snapshots of disks too.
        #[serde(default)]
        snapshots: bool,
    },
    /// Gives the space of what was removed back now. Answer: [`Reply::Collected`].
    Gc,
    /// Whether everything is as it was written. Answer: [`Reply::Verified`].
    Verify {
        /// The data too, not only the maps.
        data: bool,
    },
    /// How a disk or snapshot differs from the file that comes with the request. Answer: [`Reply::Compared`].
    Compare {
        /// The disk or snapshot.
        name: String,
        /// What to call the file.
        file: String,
    },
    /// A disk made from an image, whose files come with the request: itself, and each backing file below the one
    /// before. Answer: [`Reply::Copied`].
    Import {
        /// The disk's name.
        name: String,
        /// What the file is; by default it is looked at.
        #[serde(default)]
        format: Option<Format>,
        /// What to call the file.
        file: String,
        /// The files below it.
        #[serde(default)]
        backing: Vec<BackingImage>,
        /// A snapshot inside the image, by name or id, instead of what it is now.
        #[serde(default)]
        snapshot: Option<String>,
    },
    /// Writes a disk or snapshot to the empty file, or the pipe, that comes with the request. Answer:
    /// [`Reply::Copied`].
    Export {
        /// The disk or snapshot.
        name: String,
        /// What the file becomes.
        format: Format,
        /// What to call the file.
        file: String,
        /// Compresses what is stored, which a raw file and a pipe cannot.
        #[serde(default)]
        compress: Option<Compression>,
        /// It can only be written front to back.
        #[serde(default)]
        pipe: bool,
    },
    /// Writes a snapshot, or what changed since another one of the same disk, as a stream to the file that comes with
    /// the request. Answer: [`Reply::Sent`].
    Send {
        /// The disk.
        disk: String,
        /// Its snapshot.
        snapshot: String,
        /// The snapshot the receiver has.
        #[serde(default)]
        from: Option<String>,
        /// Compresses data.
        #[serde(default)]
        compress: bool,
        /// The token of a receiver that was cut off.
        #[serde(default)]
        resume: Option<String>,
        /// What to call the file.
        file: String,
    },
    /// Makes a disk and its snapshot, or the next snapshot of a disk, out of the stream in the file that comes with
    /// the request. Answer: [`Reply::Received`].
    Receive {
        /// The disk, if not the one the stream names.
        #[serde(default)]
        disk: Option<String>,
        /// What to call the file.
        file: String,
    },
    /// What was received in part. Answer: [`Reply::Partials`].
    Partials,
    /// All disks and snapshots, and what evolved from what. Answer: [`Reply::Tree`].
    Tree,
    /// Where the space is. Answer: [`Reply::Space`].
    Space,
    /// What happened so far, in figures. Answer: [`Reply::Metrics`].
    Metrics,
    /// Serves disks until the connection ends. Answer: [`Reply::Serving`]. Only an owner does it.
    Serve(Serve),
    /// Makes a disk that is removed when the connection ends. Answer: [`Reply::Temporary`]. Only an owner does it.
    CloneTemporary {
        /// The snapshot it starts as, `NAME@SNAP`; nothing for an empty disk of `size`.
        #[serde(default)]
        from: Option<String>,
        /// The size of a disk made of nothing.
        #[serde(default)]
        size: u64,
        /// What its name shall hold.
        name: String,
    },
    /// Takes over a temporary disk whose owner was killed: whoever held it, a machine that still runs say, connects to
    /// the next owner and goes on with it. An owner that opens a pool with such disks gives them some seconds before
    /// it removes them. Answer: [`Reply::Temporary`]. Only an owner does it.
    Adopt {
        /// Its name, as [`Reply::Temporary`] told it.
        disk: String,
    },
    /// Makes a temporary disk of this connection permanent, under another name. Answer: [`Reply::Done`].
    Keep {
        /// Its name.
        disk: String,
        /// The name it gets.
        name: String,
    },
    /// Ends what this connection holds, gracefully. Answer: [`Reply::Ended`].
    End,
    /// The owner leaves, unless somebody has a lease. Answer: [`Reply::Done`].
    Leave,
}

/// What a new disk is made with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NewDisk {
    /// The most it may reference; zero for any.
    pub quota: u64,
    /// Its flushes do nothing.
    pub throw_away: bool,
}

/// What an image in a file is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// The disk's bytes, with holes.
    #[default]
    Raw,
    /// QEMU's.
    Qcow2,
}

/// A file below an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackingImage {
    /// What to call it.
    pub file: String,
    /// What it is.
    pub format: Format,
}

/// How an image is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Zstandard.
    Zstd,
    /// Deflate, for old readers.
    Deflate,
}

/// A disk that was received in part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    /// What it is called until it is complete.
    pub name: String,
    /// The snapshot that was sent, `NAME@SNAP` as it was called there.
    pub of: String,
    /// How large the disk is.
    pub size: u64,
    /// How much of it is here.
    pub received: u64,
    /// What the sender goes on from.
    pub token: String,
}

/// Disks to serve, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serve {
    /// Disks, and snapshots as `NAME@SNAP`.
    pub names: Vec<String>,
    /// Ways to reach them, all at once.
    pub frontends: Vec<Frontend>,
    /// Refuse all writes.
    #[serde(default)]
    pub read_only: bool,
    /// Even if another lease serves a disk for writing.
    #[serde(default)]
    pub shared: bool,
}

impl Serve {
    /// Serves disks in one way.
    pub fn new<N: Into<String>>(names: impl IntoIterator<Item = N>, frontend: Frontend) -> Serve {
        Serve {
            names: names.into_iter().map(Into::into).collect(),
            frontends: vec![frontend],
            read_only: false,
            shared: false,
        }
    }
}

/// A way to reach a disk. Paths are absolute: the owner has another folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Frontend {
    /// NBD; all disks by their names.
    Nbd {
        /// `unix:PATH` or `HOST:PORT`.
        address: String,
        /// What TLS needs, without which only this machine may connect.
        #[serde(default)]
        tls: Option<Credentials>,
    },
    /// vhost-user-blk, for virtual machines. A socket that a killed owner left there is replaced.
    VhostUser {
        /// The socket of the only disk, or a folder in which each disk has one.
        path: PathBuf,
        /// What the guest reads as the serial of the only disk, at most 20 bytes; by default the disk's name.
        #[serde(default)]
        serial: Option<String>,
    },
    /// A file per disk.
    Fuse {
        /// The empty folder in which the files appear.
        dir: PathBuf,
    },
    /// A block device of this machine's kernel per disk.
    Ublk,
}

/// Files in the way QEMU keeps them: `ca-cert.pem`, `server-cert.pem` and `server-key.pem` in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The folder.
    pub folder: PathBuf,
    /// Clients have to show a certificate, and it is an error if there is no `ca-cert.pem` to check it by. Without this
    /// they have to where there is one.
    #[serde(default)]
    pub verify_clients: bool,
}

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
    /// How much would become free without it, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique: Option<u64>,
    /// How many snapshots it has, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<u64>,
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

/// How far a long operation is, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// So far.
    pub done: u64,
    /// In all; zero if nobody knows.
    pub total: u64,
}

/// Tells a long operation to end; shared by who waits for it and who does it.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Nobody wants to end yet.
    pub fn new() -> Stop {
        Stop::default()
    }

    /// Ends what heeds it, soon.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody wants to end.
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Ends what heeds it as soon as the flag is set.
impl From<Arc<AtomicBool>> for Stop {
    fn from(flag: Arc<AtomicBool>) -> Stop {
        Stop(flag)
    }
}
