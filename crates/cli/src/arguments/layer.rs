//! overlaybd layers in files.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use kiln_block::ByteLen;
use kiln_overlaybd::Uuid;

use super::layer_remote::{
    LayerMountArgs, LayerPullArgs, LayerPushArgs, LayerServeArgs, LayerUmountArgs,
};

/// What can be done with layers.
#[derive(Debug, Subcommand)]
pub(crate) enum LayerCommand {
    Inspect(LayerInspectArgs),
    Verify(LayerVerifyArgs),
    Convert(LayerConvertArgs),
    Apply(LayerApplyArgs),
    Merge(LayerMergeArgs),
    Create(LayerCreateArgs),
    Commit(LayerCommitArgs),
    Seal(LayerSealArgs),
    Mount(LayerMountArgs),
    Umount(LayerUmountArgs),
    Serve(LayerServeArgs),
    Push(LayerPushArgs),
    Pull(LayerPullArgs),
}

/// Show how a layer, or an image's configuration, is made
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln layer inspect base.obd
  kiln layer inspect config.v1.json --format json")]
pub(crate) struct LayerInspectArgs {
    /// A sealed layer, or a config.v1.json
    #[arg(value_name = "FILE|CONFIG")]
    pub(crate) file: PathBuf,
}

/// Check every rule of the index and every checksum
///
/// Ends with 0 where nothing is wrong, and with 102 where something is.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kiln layer verify base.obd top.obd\n  kiln layer verify config.v1.json"
)]
pub(crate) struct LayerVerifyArgs {
    /// Sealed layers, or a config.v1.json for those it names
    #[arg(value_name = "FILE|CONFIG", required = true)]
    pub(crate) files: Vec<PathBuf>,
}

/// Make a layer of an image or of archives, or an image of layers
///
/// Archives are tars, compressed or not, directories, and OCI images, the lowest first; they become an ext2 file
/// system, and names that begin with `.wh.` hide what lies below. Holes and zeros take no space on any side. The file
/// takes its place once it is complete; an existing one is replaced.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln layer convert --to overlaybd --compress zstd --output base.obd root.img
  kiln layer convert --to overlaybd --free 1G --output base.obd layer1.tar.gz layer2.tar.gz
  kiln layer convert --to qcow2 --output root.qcow2 base.obd top.obd")]
pub(crate) struct LayerConvertArgs {
    /// What to make
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) to: Target,

    /// How the layer is made
    #[command(flatten)]
    pub(crate) sealing: LayerSealingArgs,

    /// Of archives: space for files to come
    #[arg(long, value_name = "SIZE", default_value = "0", hide_default_value = true,
        value_parser = str::parse::<ByteLen>)]
    pub(crate) free: ByteLen,

    /// Layers, the lowest first, or a config.v1.json; a raw or qcow2 image; or archives, the lowest first
    #[arg(value_name = "LAYER", required = true)]
    pub(crate) layers: Vec<PathBuf>,
}

/// Make a layer of the files in a tar, above layers with a file system
///
/// Names that begin with `.wh.` hide what lies below, as in an OCI layer. Without layers below, a new ext2 file system
/// is written. Above layers, the files are written by the kernel's own driver of ext4 or ext2 in a machine, and the new
/// layer holds the sectors that differ afterwards.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln layer apply base.tar.gz --free 1G --output base.obd
  kiln layer apply change.tar base.obd --output top.obd --compress zstd --tar")]
pub(crate) struct LayerApplyArgs {
    /// How the layer is made
    #[command(flatten)]
    pub(crate) sealing: LayerSealingArgs,

    /// Of a new file system: space for files to come
    #[arg(long, value_name = "SIZE", default_value = "0", hide_default_value = true,
        value_parser = str::parse::<ByteLen>)]
    pub(crate) free: ByteLen,

    /// The kernel whose driver writes, as for `kiln run`
    #[arg(long, value_name = "KERNEL")]
    pub(crate) kernel: Option<String>,

    /// The tar, compressed or not
    #[arg(value_name = "TAR")]
    pub(crate) archive: PathBuf,

    /// The layers below, the lowest first
    #[arg(value_name = "LAYER")]
    pub(crate) layers: Vec<PathBuf>,
}

/// Make one layer that reads like several on each other
///
/// It carries the topmost layer's UUID, so that what lay on that one can lie on it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln layer merge --output one.obd base.obd top.obd")]
pub(crate) struct LayerMergeArgs {
    /// How the layer is made
    #[command(flatten)]
    pub(crate) sealing: LayerSealingArgs,

    /// Layers, the lowest first
    #[arg(value_name = "LAYER", required = true)]
    pub(crate) layers: Vec<PathBuf>,
}

/// Make an empty upper: the layer of an image that is written
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln layer create upper.data upper.index --size 10G
  kiln layer create upper.data --sparse --size 10G")]
pub(crate) struct LayerCreateArgs {
    /// Its data file, which may not exist
    #[arg(value_name = "DATA")]
    pub(crate) data: PathBuf,

    /// Its index file, which may not exist
    #[arg(value_name = "INDEX", required_unless_present = "sparse", conflicts_with = "sparse")]
    pub(crate) index: Option<PathBuf>,

    /// One file with holes instead of a log
    #[arg(long)]
    pub(crate) sparse: bool,

    /// How large the disk is, in whole sectors; by default as large as the layers below
    #[arg(long, value_name = "SIZE", default_value = "0", hide_default_value = true,
        value_parser = str::parse::<ByteLen>)]
    pub(crate) size: ByteLen,

    /// Which layer it is; by default a random one
    #[arg(long)]
    pub(crate) uuid: Option<Uuid>,

    /// Which layer it lies on
    #[arg(long, value_name = "UUID")]
    pub(crate) parent: Option<Uuid>,
}

/// Make a sealed layer of what an upper holds, and leave the upper as it is
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln layer commit upper.data upper.index --output top.obd --compress zstd --tar")]
pub(crate) struct LayerCommitArgs {
    /// How the layer is made
    #[command(flatten)]
    pub(crate) sealing: LayerSealingArgs,

    /// The upper's data file
    #[arg(value_name = "DATA")]
    pub(crate) data: PathBuf,

    /// The upper's index file; a sparse upper has none
    #[arg(value_name = "INDEX")]
    pub(crate) index: Option<PathBuf>,
}

/// Make a sealed layer of an upper where it is
///
/// Its data file becomes the layer, with what was overwritten still in it; the index file is not needed any more. A
/// power cut leaves either an upper or a layer.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln layer seal upper.data upper.index")]
pub(crate) struct LayerSealArgs {
    /// The upper's data file
    #[arg(value_name = "DATA")]
    pub(crate) data: PathBuf,

    /// The upper's index file
    #[arg(value_name = "INDEX")]
    pub(crate) index: PathBuf,
}

/// How a new layer is made.
#[derive(Debug, Args)]
pub(crate) struct LayerSealingArgs {
    /// Where to write
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,

    /// How to compress the layer; by default lz4
    #[arg(long, value_enum, value_name = "HOW")]
    pub(crate) compress: Option<Compress>,

    /// Bytes compressed at once, a power of two from 4K to 64K; by default 4K
    #[arg(long, value_name = "SIZE", value_parser = str::parse::<ByteLen>)]
    pub(crate) block_size: Option<ByteLen>,

    /// Wrap the layer in a tar, as registries want it
    #[arg(long)]
    pub(crate) tar: bool,

    /// Which layer it is
    #[arg(long)]
    pub(crate) uuid: Option<Uuid>,

    /// Which layer it is to lie on
    #[arg(long, value_name = "UUID")]
    pub(crate) parent: Option<Uuid>,
}

/// What a conversion makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// A sparse raw image
    Raw,
    /// An image for QEMU
    Qcow2,
    /// One overlaybd layer
    Overlaybd,
}

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compress {
    /// Not at all
    None,
    /// Fast
    Lz4,
    /// Small
    Zstd,
}
