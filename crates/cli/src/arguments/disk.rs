//! Virtual disks in a pool.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use kiln_block::ByteLen;
use kiln_export::nbd::Address;
use kiln_model::scenario::TimeLimit;

use super::transfer::{DiskExportArgs, DiskImportArgs, DiskReceiveArgs, DiskSendArgs};

/// Keep virtual disks in a pool: instant snapshots and clones, checksums, served to machines and programs
///
/// A disk is called NAME, a snapshot of it NAME@SNAP. They share what neither has changed since. The pool is one
/// file, which grows with what is stored. Commands work on it at the same time, and while disks are served: what
/// takes long is done by a process that owns the pool, is started when it is needed, and leaves by itself.
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
    Send(DiskSendArgs),
    Receive(DiskReceiveArgs),
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
    /// Copy the image that a disk is on into the pool, so that the disk needs it no more
    ///
    /// For a disk that `kiln disk import --lazy` made, or a clone of one. It may be used meanwhile. Zeros are not
    /// copied, nor what was written since. The disk's snapshots stay on the image.
    #[command(after_help = "Examples:\n  kiln disk flatten base")]
    Flatten(DiskNameArgs),
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
    Own(DiskOwnArgs),
    Tree(DiskTreeArgs),
    Top(DiskTopArgs),
    Metrics(DiskMetricsArgs),
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

/// Serve disks and snapshots until Ctrl-C or SIGTERM
///
/// Prints how to reach each as soon as clients can connect. The pool's owner does the work; serving ends with this
/// command, however it ends. When it is told to end, what clients have sent is carried out and answered, for ten
/// seconds at most. Snapshots can only be read.
///
/// A disk can be served in several ways at once, and clients of all of them see the same bytes. Two commands that
/// serve one disk for writing are refused, for most file systems do not expect another writer.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk serve base --nbd unix:/run/user/1000/disks
  kiln disk serve base@ready vm-1 --nbd localhost:10809
  qemu-img info 'nbd://127.0.0.1:10809/vm-1'
  kiln disk serve vm-1 --vhost-user /run/user/1000/vm-1.sock
  kiln disk serve base --fuse /mnt/disks --read-only
  sudo kiln disk serve vm-1 --ublk
  kiln disk serve vm-1 --nbd 0.0.0.0:10809 --tls ~/certificates")]
#[command(group = clap::ArgGroup::new("frontend").required(true).multiple(true))]
pub(crate) struct DiskServeArgs {
    /// Disks, and snapshots as NAME@SNAP; clients ask for them by the same names
    #[arg(value_name = "NAME[@SNAP]", required = true)]
    pub(crate) names: Vec<String>,

    /// NBD: on a unix socket, or a port (0 for any that is free) on this machine's loopback address; on others with --tls
    #[arg(long, group = "frontend", value_name = "unix:PATH|HOST:PORT",
        value_parser = str::parse::<Address>, help_heading = "Where")]
    pub(crate) nbd: Vec<Address>,

    /// vhost-user-blk, for virtual machines: the socket of the only disk, or a folder for a socket NAME.sock of each
    #[arg(long, group = "frontend", value_name = "PATH", help_heading = "Where")]
    pub(crate) vhost_user: Vec<PathBuf>,

    /// FUSE: an empty folder, in which each disk becomes a raw file
    #[arg(long, group = "frontend", value_name = "DIR", help_heading = "Where")]
    pub(crate) fuse: Vec<PathBuf>,

    /// ublk: each disk becomes a block device of this machine; takes root and Linux 6.5
    #[arg(long, group = "frontend", help_heading = "Where")]
    pub(crate) ublk: bool,

    /// NBD clients have to use TLS: the folder of server-cert.pem and server-key.pem, and of ca-cert.pem if clients
    /// have to show a certificate too
    #[arg(long, requires = "nbd", value_name = "DIR")]
    pub(crate) tls: Option<PathBuf>,

    /// Refuse all writes
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Even if another command serves one of the disks for writing
    #[arg(long)]
    pub(crate) shared: bool,

    /// Tell Prometheus what happens, at /metrics: on a unix socket, or a port on this machine's loopback address
    #[arg(long, value_name = "unix:PATH|HOST:PORT", value_parser = str::parse::<Address>)]
    pub(crate) metrics: Option<Address>,
}

/// Own the pool: have it open for all other commands, until Ctrl-C or nobody needs it
///
/// Other commands start an owner when they need one, so nobody has to. It listens on a socket beside the pool, and
/// leaves a few seconds after the last command has ended. Killing it loses nothing that was flushed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk own --idle 1d
  kiln disk own --leave")]
pub(crate) struct DiskOwnArgs {
    /// How long to stay when nobody needs it [config: disk.idle]
    #[arg(long, value_name = "TIME", value_parser = str::parse::<TimeLimit>)]
    pub(crate) idle: Option<TimeLimit>,

    /// Make the owner leave instead, unless somebody needs it, and wait until it has
    #[arg(long)]
    pub(crate) leave: bool,

    /// Leave the terminal, and say on stdout when it is ready
    #[arg(long, hide = true)]
    pub(crate) detached: bool,
}

/// Watch what is done with the disks: operations, bytes and latencies of each, cache, space and flushes
///
/// On a terminal, the figures are drawn anew every second until Ctrl-C. Elsewhere they are printed once, and with
/// --format json a line is printed for each second. Disks appear once somebody is served with them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk top
  kiln disk top vm-1 vm-2 --every 5
  kiln disk top --once
  kiln disk top --format json | jq .disks")]
pub(crate) struct DiskTopArgs {
    /// Only these disks, and snapshots as NAME@SNAP
    #[arg(value_name = "NAME[@SNAP]")]
    pub(crate) names: Vec<String>,

    /// Over how many seconds figures are taken
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = pause)]
    pub(crate) every: std::time::Duration,

    /// Print them once
    #[arg(long)]
    pub(crate) once: bool,
}

/// Print what happened in the pool since it was opened, as Prometheus reads it
///
/// docs/formats/metrics.md lists the metrics.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln disk metrics
  kiln disk metrics --listen localhost:9477
  kiln disk metrics --listen unix:/run/user/1000/metrics")]
pub(crate) struct DiskMetricsArgs {
    /// Answer at /metrics until Ctrl-C instead: on a unix socket, or a port on this machine's loopback address
    #[arg(long, value_name = "unix:PATH|HOST:PORT", value_parser = str::parse::<Address>)]
    pub(crate) listen: Option<Address>,
}

fn pause(text: &str) -> Result<std::time::Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => {
            Ok(std::time::Duration::from_secs_f64(seconds))
        }
        _ => Err("write a number of seconds between 0.1 and 3600".to_owned()),
    }
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
