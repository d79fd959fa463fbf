//! What can be asked of a pool: plain data, the same in one process and between two.
//!
//! Sizes and places are bytes. Files are never named: they travel as open descriptors beside the request, in the
//! order each request tells.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::layered::LayeredBase;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Request {
    /// An empty disk. Answer: [`Reply::Done`](crate::Reply::Done).
    Create {
        /// Its name.
        name: String,
        /// How large it looks.
        size: u64,
        /// What it is made with.
        #[serde(default)]
        with: NewDisk,
    },
    /// All disks, by name. Answer: [`Reply::Disks`](crate::Reply::Disks).
    List,
    /// One disk. Answer: [`Reply::Disk`](crate::Reply::Disk), with what it alone holds.
    Stat {
        /// Its name.
        disk: String,
    },
    /// A snapshot of a disk as it is now. Answer: [`Reply::Done`](crate::Reply::Done).
    Snap {
        /// The disk.
        disk: String,
        /// The snapshot's name.
        snapshot: String,
    },
    /// A disk's snapshots, oldest first. Answer: [`Reply::Snapshots`](crate::Reply::Snapshots).
    Snapshots {
        /// The disk.
        disk: String,
    },
    /// A disk that starts as a snapshot. Answer: [`Reply::Done`](crate::Reply::Done).
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
    /// Makes a disk what its snapshot was. Answer: [`Reply::Done`](crate::Reply::Done).
    Rollback {
        /// The disk.
        disk: String,
        /// Its snapshot.
        snapshot: String,
    },
    /// What changed from one disk or snapshot to another. Answer: [`Reply::Ranges`](crate::Reply::Ranges).
    Diff {
        /// The older, `NAME` or `NAME@SNAP`.
        from: String,
        /// The newer.
        to: String,
    },
    /// Gives a disk another size. Answer: [`Reply::Resized`](crate::Reply::Resized).
    Resize {
        /// The disk.
        disk: String,
        /// How large it shall look.
        size: u64,
        /// Even if something is lost behind its new end.
        #[serde(default)]
        shrink: bool,
    },
    /// Gives a disk another name. Answer: [`Reply::Done`](crate::Reply::Done).
    Rename {
        /// The disk.
        disk: String,
        /// Its new name.
        name: String,
    },
    /// Limits what a disk may reference; zero for no limit. Answer: [`Reply::Done`](crate::Reply::Done).
    Quota {
        /// The disk.
        disk: String,
        /// The most it may reference.
        quota: u64,
    },
    /// Removes disks and snapshots. Answer: [`Reply::Removed`](crate::Reply::Removed).
    Remove {
        /// Disks, and snapshots as `NAME@SNAP`.
        names: Vec<String>,
        /// The snapshots of disks too.
        #[serde(default)]
        snapshots: bool,
    },
    /// Gives the space of what was removed back now. Answer: [`Reply::Collected`](crate::Reply::Collected).
    Gc,
    /// Whether everything is as it was written. Answer: [`Reply::Verified`](crate::Reply::Verified).
    Verify {
        /// The data too, not only the maps.
        data: bool,
    },
    /// How a disk or snapshot differs from the file that comes with the request. Answer: [`Reply::Compared`](crate::Reply::Compared).
    Compare {
        /// The disk or snapshot.
        name: String,
        /// What to call the file.
        file: String,
    },
    /// A disk made from an image, whose files come with the request: itself, and each backing file below the one
    /// before. Answer: [`Reply::Copied`](crate::Reply::Copied).
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
    /// A disk on an overlaybd image, of which nothing is copied. Its layers are opened by whoever has the pool open.
    /// Answer: [`Reply::Copied`](crate::Reply::Copied).
    ImportLazy {
        /// The disk's name.
        name: String,
        /// What to call the image.
        image: String,
        /// Where its layers are.
        base: LayeredBase,
    },
    /// Copies what a disk shows of its base into the pool, after which it needs the base no more. Answer:
    /// [`Reply::Copied`](crate::Reply::Copied).
    Flatten {
        /// The disk.
        disk: String,
    },
    /// Writes a disk or snapshot to the empty file, or the pipe, that comes with the request. Answer:
    /// [`Reply::Copied`](crate::Reply::Copied).
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
    /// Writes a disk or snapshot, or what changed since another snapshot of the same disk, as an overlaybd layer to the
    /// empty file that comes with the request. Answer: [`Reply::Copied`](crate::Reply::Copied).
    ExportLayer {
        /// The disk or snapshot.
        name: String,
        /// The snapshot that the layer below holds.
        #[serde(default)]
        from: Option<String>,
        /// What to call the file.
        file: String,
        /// How the layer is made.
        form: LayerForm,
    },
    /// Writes a snapshot, or what changed since another one of the same disk, as a stream to the file that comes with
    /// the request. Answer: [`Reply::Sent`](crate::Reply::Sent).
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
    /// the request. Answer: [`Reply::Received`](crate::Reply::Received).
    Receive {
        /// The disk, if not the one the stream names.
        #[serde(default)]
        disk: Option<String>,
        /// What to call the file.
        file: String,
    },
    /// What was received in part. Answer: [`Reply::Partials`](crate::Reply::Partials).
    Partials,
    /// All disks and snapshots, and what evolved from what. Answer: [`Reply::Tree`](crate::Reply::Tree).
    Tree,
    /// Where the space is. Answer: [`Reply::Space`](crate::Reply::Space).
    Space,
    /// What happened so far, in figures. Answer: [`Reply::Metrics`](crate::Reply::Metrics).
    Metrics,
    /// Serves disks until the connection ends. Answer: [`Reply::Serving`](crate::Reply::Serving). Only an owner does it.
    Serve(Serve),
    /// Makes a disk that is removed when the connection ends. Answer: [`Reply::Temporary`](crate::Reply::Temporary). Only an owner does it.
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
    /// it removes them. Answer: [`Reply::Temporary`](crate::Reply::Temporary). Only an owner does it.
    Adopt {
        /// Its name, as [`Reply::Temporary`](crate::Reply::Temporary) told it.
        disk: String,
    },
    /// Makes a temporary disk of this connection permanent, under another name. Answer: [`Reply::Done`](crate::Reply::Done).
    Keep {
        /// Its name.
        disk: String,
        /// The name it gets.
        name: String,
    },
    /// Ends what this connection holds, gracefully. Answer: [`Reply::Ended`](crate::Reply::Ended).
    End,
    /// The owner leaves, unless somebody has a lease. Answer: [`Reply::Done`](crate::Reply::Done).
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

/// How an overlaybd layer is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerForm {
    /// How it is compressed, if it is.
    #[serde(default)]
    pub compress: Option<LayerCodec>,
    /// Whether it is wrapped in a tar.
    #[serde(default)]
    pub tar: bool,
    /// Which layer it is.
    #[serde(default)]
    pub uuid: Option<String>,
    /// The layer it lies on.
    #[serde(default)]
    pub parent: Option<String>,
}

/// How an overlaybd layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerCodec {
    /// Fast.
    Lz4,
    /// Small.
    Zstd,
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
