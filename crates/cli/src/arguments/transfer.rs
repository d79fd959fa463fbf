//! Disks from and to other places: images, streams.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kiln_overlaybd::Uuid;

/// Make a disk from an image: raw, sparse or not, qcow2, or a block device
///
/// Holes and zeros take no space. The disk appears when it is complete; an interrupted import leaves nothing. A last
/// block that is not whole is filled with zeros.
///
/// A qcow2 image may name a backing file, any file that you may read. It is opened only if it is in the
/// image's folder, unless `--backing` says otherwise.
///
/// With `--lazy`, SOURCE is an overlaybd image: a config.v1.json, a layer, or an image of a registry. Nothing of it is
/// copied: the disk shows it where nothing was written, and so do snapshots and clones. The layers have to stay what
/// and where they are; those of a registry are fetched as they are read. `kiln disk flatten` ends that.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk import root.img base
  kiln disk import debian-12.qcow2 base
  kiln disk import --lazy root/config.v1.json base
  kiln disk import --lazy registry.example/disks/root:1 base
  kiln disk import machine.qcow2 before --snapshot before-upgrade
  sudo kiln disk import /dev/sdb stick --pool /srv/disks.pool")]
pub(crate) struct DiskImportArgs {
    /// What to read
    #[arg(value_name = "SOURCE")]
    pub(crate) source: PathBuf,

    /// The new disk's name
    #[arg(value_name = "NAME")]
    pub(crate) name: String,

    /// What the source is; by default its first bytes tell
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub(crate) from_format: Option<ImageFormat>,

    /// A snapshot inside a qcow2 image, by name or id, instead of the disk as it is
    #[arg(long, value_name = "SNAP")]
    pub(crate) snapshot: Option<String>,

    /// Which backing files of a qcow2 image may be read
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    pub(crate) backing: Backing,

    /// Copy nothing: make the disk on an overlaybd image
    #[arg(long, help_heading = "Layers", conflicts_with_all = ["from_format", "snapshot", "backing"])]
    pub(crate) lazy: bool,

    /// Reach the registry without TLS, as those on this machine are reached anyway
    #[arg(long, help_heading = "Layers", requires = "lazy")]
    pub(crate) plain_http: bool,

    /// Where names and passwords are, as docker and podman keep them; by default where these would look
    #[arg(long, value_name = "FILE", help_heading = "Layers", requires = "lazy")]
    pub(crate) auth_file: Option<PathBuf>,
}

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageFormat {
    /// The disk's bytes
    Raw,
    /// QEMU's image format
    Qcow2,
}

/// Which backing files may be opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backing {
    /// None
    No,
    /// Those in the image's folder
    #[default]
    Beside,
    /// Any: for images you trust
    Any,
}

/// Write a disk or snapshot to an image, raw and sparse or qcow2, or as an overlaybd layer
///
/// The file takes its place once it is complete; an existing one is replaced. With `-` the image goes to stdout, a raw
/// one with all its zeros. A layer with `--from` holds the sectors that changed since that snapshot, and belongs on
/// the layer that holds it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk export base base.img
  kiln disk export base@ready ready.qcow2 --compress zstd
  kiln disk export base@monday base.obd --layer
  kiln disk export base@tuesday tuesday.obd --layer --from monday --parent 0b0b0b0b-1111-4222-8333-00000000000b
  kiln disk export base - | ssh HOST 'dd of=/dev/sdb bs=4M'")]
pub(crate) struct DiskExportArgs {
    /// A disk, or a snapshot as NAME@SNAP
    #[arg(value_name = "NAME[@SNAP]")]
    pub(crate) name: String,

    /// Where to write; `-` for stdout
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// What to write; by default qcow2 if the file's name ends so, else raw
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub(crate) to_format: Option<ImageFormat>,

    /// Compress a qcow2 image: zstd, or deflate for QEMU before 5.1; a layer: zstd instead of lz4
    #[arg(long, value_name = "HOW", value_enum)]
    pub(crate) compress: Option<ImageCompression>,

    /// Write an overlaybd layer
    #[arg(long, help_heading = "Layers", conflicts_with = "to_format")]
    pub(crate) layer: bool,

    /// The snapshot of the same disk that the layers below hold
    #[arg(long, value_name = "SNAP", help_heading = "Layers", requires = "layer")]
    pub(crate) from: Option<String>,

    /// Wrap the layer in a tar, as registries want it
    #[arg(long, help_heading = "Layers", requires = "layer")]
    pub(crate) tar: bool,

    /// Which layer it is; by default a random one
    #[arg(long, help_heading = "Layers", requires = "layer")]
    pub(crate) uuid: Option<Uuid>,

    /// Which layer it is to lie on
    #[arg(long, value_name = "UUID", help_heading = "Layers", requires = "layer")]
    pub(crate) parent: Option<Uuid>,
}

/// How an image is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageCompression {
    /// Zstandard
    Zstd,
    /// Deflate
    Deflate,
}

/// Write a snapshot, or what changed since an earlier one, as a stream for another pool
///
/// It goes to stdout, or to a file that takes its place once it is complete. What is sent is checksummed, and holes and
/// zeros cost nothing. A receiver that was cut off prints a token, with which it goes on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk send base@monday | ssh HOST kiln disk receive
  kiln disk send base@tuesday --from monday --compress | ssh HOST kiln disk receive
  kiln disk send base@monday --output monday.stream")]
pub(crate) struct DiskSendArgs {
    /// What to send
    #[arg(value_name = "NAME@SNAP")]
    pub(crate) snapshot: String,

    /// An earlier snapshot of the same disk that the receiver has: only what changed since is sent
    #[arg(long, value_name = "SNAP")]
    pub(crate) from: Option<String>,

    /// Compress with zstd
    #[arg(long)]
    pub(crate) compress: bool,

    /// Go on where a receiver was cut off; the other flags as before
    #[arg(long, value_name = "TOKEN")]
    pub(crate) resume: Option<String>,

    /// A file instead of stdout
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Make a disk and its snapshot, or a disk's next snapshot, out of what `kiln disk send` wrote
///
/// What changed since a snapshot is for a disk that has this snapshot and is still the same; `kiln disk rollback`
/// makes it so. Until all has arrived and is right, it is kept under another name, and no disk that was there
/// changes. If it is cut off, a token is printed, with which the sender goes on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ssh HOST kiln disk send base@monday | kiln disk receive
  kiln disk receive copy --input monday.stream
  kiln disk receive --unfinished")]
pub(crate) struct DiskReceiveArgs {
    /// The disk's name here; by default the one it was sent with
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// A file instead of stdin
    #[arg(long, short, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,

    /// Receive nothing; list what was cut off, and the tokens to go on with
    #[arg(long, conflicts_with_all = ["name", "input"])]
    pub(crate) unfinished: bool,
}
