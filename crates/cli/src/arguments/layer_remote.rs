//! overlaybd layers in registries, and images that become block devices.

use std::path::PathBuf;

use clap::Args;
use kiln_block::ByteLen;
use kiln_export::nbd::Address;
use kiln_registry::Reference;

/// Push layers to a registry, as an image that containerd's overlaybd snapshotter understands
///
/// Layers that the registry has already are not sent again, and the same layers make the same image. Prints the
/// image's digest.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln layer push base.obd top.obd registry.example/disks/root:1
  kiln layer push --fs-type ext4 one.obd localhost:5000/root:latest
  kiln layer push --trace start.trace base.obd localhost:5000/root:fast")]
pub(crate) struct LayerPushArgs {
    /// Sealed layers, the lowest first; one that is not in a tar is sent in one
    #[arg(value_name = "LAYER", required = true, num_args = 1..)]
    pub(crate) layers: Vec<PathBuf>,

    /// What to call the image: HOST/NAME:TAG
    #[arg(value_name = "REF", value_parser = str::parse::<Reference>)]
    pub(crate) reference: Reference,

    /// Which file system is on the disk, for those who mount it
    #[arg(long, value_name = "TYPE")]
    pub(crate) fs_type: Option<String>,

    /// Send this trace along: whoever mounts the image fetches first what it names
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// Take over what this repository of the same registry has, instead of sending it
    #[arg(long, value_name = "REPOSITORY")]
    pub(crate) mount_from: Option<String>,

    /// How the registry is reached
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// Pull an image's layers from a registry
///
/// Writes the layers and a config.v1.json, which mount, serve and convert take. The folder appears when it is
/// complete.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln layer pull registry.example/disks/root:1
  kiln layer pull --output root --lazy localhost:5000/root:latest")]
pub(crate) struct LayerPullArgs {
    /// The image: HOST/NAME:TAG or HOST/NAME@DIGEST
    #[arg(value_name = "REF", value_parser = str::parse::<Reference>)]
    pub(crate) reference: Reference,

    /// Where to write; by default a folder with the last part of the image's name
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,

    /// Write the configuration alone: the layers are fetched as they are read
    #[arg(long)]
    pub(crate) lazy: bool,

    /// How the registry is reached
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// Make a block device of an image, and mount its file system
///
/// Layers in a registry are read where they are; what was read is kept for the next time, and checked. Without a
/// folder after --at, the device is all there is. It takes root; without it the disk becomes a file.
///
/// A process in the background serves the device, by ublk where the kernel has that, else by FUSE and a loop device.
/// It ends with kiln layer umount, or when the folder is unmounted.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln layer mount --at /mnt registry.example/disks/root:1
  kiln layer mount base.obd top.obd
  kiln layer mount --upper up.data --upper-index up.index base.obd --at /mnt
  kiln layer mount --record-trace start.trace base.obd --at /mnt
  kiln layer umount /mnt")]
pub(crate) struct LayerMountArgs {
    /// What to mount
    #[command(flatten)]
    pub(crate) image: LayerImageArgs,

    /// Mount the file system at this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) at: Option<PathBuf>,

    /// Which file system it is; by default `mount` finds out
    #[arg(long, value_name = "TYPE", requires = "at")]
    pub(crate) fs_type: Option<String>,

    /// What `mount` is told beside nosuid and nodev
    #[arg(long, value_name = "OPTIONS", requires = "at")]
    pub(crate) options: Option<String>,

    /// Serve until Ctrl-C instead of in the background
    #[arg(long)]
    pub(crate) foreground: bool,

    /// In the background already
    #[arg(long, hide = true, conflicts_with = "foreground")]
    pub(crate) detached: bool,
}

/// Unmount what was mounted, and end the process that serves it
///
/// Changes to a writable image are in its upper afterwards.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln layer umount /mnt
  kiln layer umount /dev/loop0
  kiln layer umount --all")]
pub(crate) struct LayerUmountArgs {
    /// The folder, the device or the file
    #[arg(value_name = "DIR|DEVICE", required_unless_present = "all")]
    pub(crate) targets: Vec<PathBuf>,

    /// Everything this user has mounted, and what killed processes left
    #[arg(long, conflicts_with = "targets")]
    pub(crate) all: bool,
}

/// Serve an image over NBD, vhost-user-blk, FUSE or ublk until Ctrl-C
///
/// Prints how clients reach the disk, one line for each way.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln layer serve --nbd localhost:10809 registry.example/disks/root:1
  kiln layer serve --vhost-user /tmp/disk.sock base.obd top.obd")]
pub(crate) struct LayerServeArgs {
    /// What to serve
    #[command(flatten)]
    pub(crate) image: LayerImageArgs,

    /// Over NBD, on a unix socket or a port of this machine's loopback address
    #[arg(long, value_name = "unix:PATH|HOST:PORT", value_parser = str::parse::<Address>)]
    pub(crate) nbd: Vec<Address>,

    /// Over vhost-user-blk, on a socket at this path
    #[arg(long, value_name = "PATH")]
    pub(crate) vhost_user: Vec<PathBuf>,

    /// As a file in this empty folder
    #[arg(long, value_name = "DIR")]
    pub(crate) fuse: Vec<PathBuf>,

    /// As a block device of this machine
    #[arg(long)]
    pub(crate) ublk: bool,
}

/// An image, and how it is read.
#[derive(Debug, Args)]
pub(crate) struct LayerImageArgs {
    /// A config.v1.json; or sealed layers, the lowest first; or an image in a registry, HOST/NAME:TAG
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) image: Vec<String>,

    /// Write to this upper's data file
    #[arg(long, value_name = "DATA")]
    pub(crate) upper: Option<PathBuf>,

    /// That upper's index file; a sparse upper has none
    #[arg(long, value_name = "INDEX", requires = "upper")]
    pub(crate) upper_index: Option<PathBuf>,

    /// Refuse writes even if there is an upper
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Of a registry: fetch everything in the background, too
    #[arg(long)]
    pub(crate) download: bool,

    /// Fetch first what this trace names; by default the one that comes with the image
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// Note what is read, and write that to this file at the end
    #[arg(long, value_name = "FILE")]
    pub(crate) record_trace: Option<PathBuf>,

    /// Of a registry: how much to keep for the next time, of all images together
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = str::parse::<ByteLen>)]
    pub(crate) cache_limit: ByteLen,

    /// How the registry is reached
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// How a registry is reached.
#[derive(Debug, Args)]
#[command(next_help_heading = "Registry")]
pub(crate) struct RegistryArgs {
    /// Without TLS, as registries on this machine are reached anyway
    #[arg(long)]
    pub(crate) plain_http: bool,

    /// Where names and passwords are, as docker and podman keep them; by default where these would look
    #[arg(long, value_name = "FILE")]
    pub(crate) auth_file: Option<PathBuf>,
}
