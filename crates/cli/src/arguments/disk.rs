//! Virtual disks in a pool.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use kiln_block::ByteLen;
use kiln_export::nbd::Address;

/// Keep virtual disks in a pool: instant snapshots and clones, checksums, served over NBD
///
/// A disk is called NAME, a snapshot of it NAME@SNAP. They share what neither has changed since. The pool is one
/// sparse file; one process at a time has it open.
#[derive(Debug, Args)]
pub(crate) struct DiskArgs {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: DiskCommand,

    /// The pool, instead of the one in Kiln's data folder
    #[arg(long, global = true, value_name = "PATH", help_heading = "Pool")]
    pub(crate) pool: Option<PathBuf>,
}

/// What can be done with disks.
#[derive(Debug, Subcommand)]
pub(crate) enum DiskCommand {
    Create(DiskCreateArgs),
    /// List the disks
    #[command(after_help = "Examples:\n  kiln disk ls\n  kiln disk ls --format json")]
    Ls,
    Import(DiskImportArgs),
    Export(DiskExportArgs),
    Snap(DiskSnapArgs),
    /// List a disk's snapshots, oldest first
    #[command(after_help = "Examples:\n  kiln disk snaps base")]
    Snaps(DiskNameArgs),
    Clone(DiskCloneArgs),
    Rollback(DiskSnapshotArgs),
    Diff(DiskDiffArgs),
    Stat(DiskNameArgs),
    Resize(DiskResizeArgs),
    Rename(DiskRenameArgs),
    Rm(DiskRemoveArgs),
    /// Give the space of what was removed back now, instead of little by little
    #[command(after_help = "Examples:\n  kiln disk gc")]
    Gc,
    Verify(DiskVerifyArgs),
    /// Make the pool's free map anew from its disks, and look whether all is well
    ///
    /// For a pool that is refused because its free map or its log is damaged. What was flushed after a damaged part
    /// of the log is lost; nothing else changes. Ends like `kiln disk verify`.
    #[command(after_help = "Examples:\n  kiln disk repair")]
    Repair,
    Serve(DiskServeArgs),
    Tree(DiskTreeArgs),
}

/// Make an empty disk
///
/// It takes no space until it is written to. The first disk makes the pool.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk create scratch --size 10G
  kiln disk create scratch --size 10G --quota 2G --throw-away")]
pub(crate) struct DiskCreateArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub(crate) name: String,

    /// How large it looks, such as 10G; whole blocks of 4K
    #[arg(long, value_name = "SIZE", value_parser = str::parse::<ByteLen>)]
    pub(crate) size: ByteLen,

    /// What it is made with
    #[command(flatten)]
    pub(crate) options: DiskOptionArgs,
}

/// What a new disk is made with.
#[derive(Debug, Args)]
pub(crate) struct DiskOptionArgs {
    /// The most it may reference, its own and shared, in whole blocks of 4K; by default as much as the pool has
    #[arg(long, value_name = "SIZE", default_value = "0", hide_default_value = true,
        value_parser = str::parse::<ByteLen>)]
    pub(crate) quota: ByteLen,

    /// Flushes do nothing: faster, and lost in a power cut
    #[arg(long)]
    pub(crate) throw_away: bool,
}

/// Make a disk from a raw image: a file, sparse or not, or a block device
///
/// Holes and zeros take no space. The disk appears when it is complete; an interrupted import leaves nothing. A last
/// block that is not whole is filled with zeros.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk import root.img base
  sudo kiln disk import /dev/sdb stick --pool /srv/disks.pool")]
pub(crate) struct DiskImportArgs {
    /// What to read
    #[arg(value_name = "SOURCE")]
    pub(crate) source: PathBuf,

    /// The new disk's name
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

/// Write a disk or snapshot to a sparse raw file
///
/// The file takes its place once it is complete; an existing one is replaced.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk export base base.img
  kiln disk export base@ready ready.img")]
pub(crate) struct DiskExportArgs {
    /// A disk, or a snapshot as NAME@SNAP
    #[arg(value_name = "NAME[@SNAP]")]
    pub(crate) name: String,

    /// Where to write
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// Take a snapshot of a disk as it is now, and print its name
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln disk snap base ready\n  kiln disk snap base")]
pub(crate) struct DiskSnapArgs {
    /// The disk
    #[arg(value_name = "NAME")]
    pub(crate) name: String,

    /// The snapshot's name; by default the time and four random digits
    #[arg(value_name = "SNAP")]
    pub(crate) snapshot: Option<String>,
}

/// Show one disk: its size, and where its space is
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln disk stat base\n  kiln disk stat base --format json")]
pub(crate) struct DiskNameArgs {
    /// The disk
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

/// Make a disk that starts as a snapshot
///
/// It costs the same however large the disk is.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk clone base@ready vm-1
  kiln disk clone base@ready vm-1 --throw-away")]
pub(crate) struct DiskCloneArgs {
    /// The snapshot
    #[arg(value_name = "NAME@SNAP")]
    pub(crate) snapshot: String,

    /// The new disk's name
    #[arg(value_name = "NEW")]
    pub(crate) name: String,

    /// What it is made with
    #[command(flatten)]
    pub(crate) options: DiskOptionArgs,
}

/// Make a disk what its snapshot was
///
/// What was written to the disk since is lost; later snapshots stay.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln disk rollback base@ready")]
pub(crate) struct DiskSnapshotArgs {
    /// The snapshot
    #[arg(value_name = "NAME@SNAP")]
    pub(crate) snapshot: String,
}

/// Print the ranges that changed from one snapshot to another, or to a disk as it is
///
/// For a snapshot and its own disk, the maps are compared: it costs what changed, and blocks that were written
/// anew with the same bytes count. For two different disks, their bytes are compared.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk diff base@monday base@tuesday
  kiln disk diff base@monday base --format json
  kiln disk diff base@ready vm-1")]
pub(crate) struct DiskDiffArgs {
    /// The older
    #[arg(value_name = "FROM")]
    pub(crate) from: String,

    /// The newer
    #[arg(value_name = "TO")]
    pub(crate) to: String,
}

/// Change a disk's size
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk resize base 20G
  kiln disk resize base 5G --shrink")]
pub(crate) struct DiskResizeArgs {
    /// The disk
    #[arg(value_name = "NAME")]
    pub(crate) name: String,

    /// How large it shall look; whole blocks of 4K
    #[arg(value_name = "SIZE", value_parser = str::parse::<ByteLen>)]
    pub(crate) size: ByteLen,

    /// Make it smaller although what lies behind its new end is lost
    #[arg(long)]
    pub(crate) shrink: bool,
}

/// Give a disk another name
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln disk rename vm-1 vm-kept")]
pub(crate) struct DiskRenameArgs {
    /// The disk
    #[arg(value_name = "NAME")]
    pub(crate) name: String,

    /// Its new name
    #[arg(value_name = "NEW")]
    pub(crate) new: String,
}

/// Remove disks and snapshots
///
/// Clones of what is removed keep their bytes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk rm vm-1 vm-2
  kiln disk rm base@ready
  kiln disk rm base --snapshots")]
pub(crate) struct DiskRemoveArgs {
    /// Disks, and snapshots as NAME@SNAP
    #[arg(value_name = "NAME[@SNAP]", required = true)]
    pub(crate) names: Vec<String>,

    /// A disk's snapshots too, without which a disk that has some is refused
    #[arg(long)]
    pub(crate) snapshots: bool,
}

/// Look whether everything in the pool is as it was written, or a disk is the same as a file
///
/// Ends with 0 where nothing is wrong, and with 102 where something is.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk verify
  kiln disk verify --maps
  kiln disk verify base root.img")]
pub(crate) struct DiskVerifyArgs {
    /// A disk, or a snapshot as NAME@SNAP, to compare with a file
    #[arg(value_name = "NAME[@SNAP]", requires = "file")]
    pub(crate) name: Option<String>,

    /// The file or block device to compare it with
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Read only the maps and not the data: quicker
    #[arg(long, conflicts_with = "name")]
    pub(crate) maps: bool,
}

/// Serve disks and snapshots over NBD until Ctrl-C or SIGTERM
///
/// Prints a URI for each as soon as clients can connect. When it is told to end, it carries out and answers what
/// clients have sent, for ten seconds at most, and stores everything. Snapshots can only be read.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk serve base --nbd unix:/run/user/1000/disks
  kiln disk serve base@ready vm-1 --nbd localhost:10809
  qemu-img info 'nbd://127.0.0.1:10809/vm-1'")]
pub(crate) struct DiskServeArgs {
    /// Disks, and snapshots as NAME@SNAP; clients ask for them by the same names
    #[arg(value_name = "NAME[@SNAP]", required = true)]
    pub(crate) names: Vec<String>,

    /// Where: a unix socket, or a port on this machine's loopback address (0 for any that is free)
    #[arg(long, value_name = "unix:PATH|HOST:PORT", value_parser = str::parse::<Address>)]
    pub(crate) nbd: Address,

    /// Refuse all writes
    #[arg(long)]
    pub(crate) read_only: bool,
}

/// Draw which disk and which snapshot evolved from which
///
/// In text, time goes down: a disk's snapshots and the disk itself stand below each other, and clones branch off to
/// the right. DOT is for Graphviz; SVG needs nothing but a browser, and folds long rows of snapshots.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk tree
  kiln disk tree --to svg > disks.svg
  kiln disk tree --to dot | dot -Tpdf > disks.pdf")]
pub(crate) struct DiskTreeArgs {
    /// How; by default what --format says
    #[arg(long, value_enum, value_name = "DRAWING")]
    pub(crate) to: Option<Drawing>,
}

/// A way of drawing what descends from what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Drawing {
    /// Lines for people
    Text,
    /// A list for programs
    Json,
    /// A graph for Graphviz
    Dot,
    /// A picture
    Svg,
}
