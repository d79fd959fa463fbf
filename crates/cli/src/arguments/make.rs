//! Kernels, images and jobs: the parts of a run as tools of their own.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use kiln_block::ByteLen;

/// Fetch, list and remove kernels.
#[derive(Debug, Subcommand)]
pub(crate) enum KernelCommand {
    Fetch(KernelFetchArgs),
    /// List the kernels Kiln knows: fetched ones, and those in /boot
    #[command(after_help = "Examples:\n  kiln kernel ls\n  kiln kernel ls --format json")]
    Ls,
    /// Remove a fetched kernel from the cache
    #[command(after_help = "Examples:\n  kiln kernel rm 6.12.117+deb12-cloud-amd64")]
    Rm(KernelNameArgs),
    /// Print where a kernel's boot image is
    #[command(after_help = "Examples:\n  kiln kernel path 6.12.117+deb12-cloud-amd64")]
    Path(KernelNameArgs),
}

/// Download a distribution's kernel into the cache
///
/// Needs no root and installs nothing: the package is unpacked into Kiln's cache. Its digest is checked against
/// the distribution's index.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln kernel fetch debian
  kiln kernel fetch debian 6.1 --flavour generic")]
pub(crate) struct KernelFetchArgs {
    /// Whose kernel
    #[arg(value_name = "DISTRIBUTION", value_parser = ["debian"])]
    pub(crate) distribution: String,

    /// The start of its release, such as 6.1; by default the newest
    #[arg(value_name = "VERSION")]
    pub(crate) version: Option<String>,

    /// Which build
    #[arg(long, value_enum, value_name = "FLAVOUR", default_value_t = KernelFlavour::Cloud)]
    pub(crate) flavour: KernelFlavour,

    /// Ask for the newest again although one is there that would do
    #[arg(long)]
    pub(crate) refresh: bool,
}

/// Which build of a distribution's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KernelFlavour {
    /// For virtual machines: few drivers, quick to fetch
    Cloud,
    /// For any machine
    Generic,
}

/// Names one kernel.
#[derive(Debug, Args)]
pub(crate) struct KernelNameArgs {
    /// Its release, or the start of it if unique
    #[arg(value_name = "RELEASE")]
    pub(crate) release: String,
}

/// Build, list and inspect guest images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    Build(ImageBuildArgs),
    Ext2(ImageExt2Args),
    /// List the images in the cache
    #[command(after_help = "Examples:\n  kiln image ls")]
    Ls,
    /// Remove one image from the cache
    #[command(after_help = "Examples:\n  kiln image rm 3f2a9c")]
    Rm(ImageInspectArgs),
    Prune(ImagePruneArgs),
    /// List what is inside an image
    #[command(
        after_help = "Examples:\n  kiln image inspect 3f2a9c\n  kiln image inspect image.cpio"
    )]
    Inspect(ImageInspectArgs),
    Diff(ImageDiffArgs),
    Verify(ImageVerifyArgs),
}

/// Tell how two images differ, entry by entry
///
/// Initramfs images and ext2 disks, also one of each: what only the first has (-), what only the second has (+), and
/// what differs (~): kind, permissions, owner, device, target, size or content. Ends with 102 if there is any.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln image diff 3f2a9c 81bd02
  kiln image diff appliance.d/root other.d/root --times")]
pub(crate) struct ImageDiffArgs {
    /// A key from `kiln image ls`, a unique prefix of one, or a file
    #[arg(value_name = "BEFORE")]
    pub(crate) before: String,

    /// The same, to compare it with
    #[arg(value_name = "AFTER")]
    pub(crate) after: String,

    /// Modification times count, too
    #[arg(long)]
    pub(crate) times: bool,
}

/// Check that images are whole
///
/// Reads all of each. An initramfs has all its members and its end; of an ext2 disk, maps and counts say what the files
/// do, no block is used twice, and every file has the names it says. What the cache keeps still has the bytes it was built
/// with. Nothing is repaired. Ends with 102 if one is damaged.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln image verify 3f2a9c
  kiln image verify appliance.d/root appliance.d/initrd")]
pub(crate) struct ImageVerifyArgs {
    /// Keys from `kiln image ls`, unique prefixes of them, or files
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
}

/// Build a scenario's image, or find it in the cache, and print its path
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln image build btrfs-smoke
  kiln image build my.toml --kernel ~/linux --output my.cpio")]
pub(crate) struct ImageBuildArgs {
    /// A scenario file, or the name of one that ships with Kiln
    #[arg(value_name = "SCENARIO")]
    pub(crate) scenario: String,

    /// A built kernel tree, a vmlinuz with its modules beside it, or a release from `kiln kernel ls`
    #[arg(long, short, value_name = "KERNEL")]
    pub(crate) kernel: Option<String>,

    /// Also copy it here
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Make an ext2 file system from directories, archives, container images and packages
///
/// Owners, times, links, holes, devices and extended attributes are kept; with several sources, later ones
/// lie over earlier ones; over all lie packages, over those host files, over those programs. A source is a directory, a
/// tar archive (plain, gzip, xz or zstd), an OCI image layout or an archive that `docker save` wrote. Nothing is
/// mounted, and root is not needed: what this user may not read of packages and host files is left out and told, in a
/// directory it is an error unless it is excluded. The same sources give the same bytes; with SOURCE_DATE_EPOCH in the
/// environment no time is later than that. Space beyond what the files need is only there if it is asked for.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln image ext2 rootfs --output root.img
  kiln image ext2 base.tar.gz overlay --output root.img --free 512M --label root
  kiln image ext2 saved.tar --image tool:1.2 --output root.img
  kiln image ext2 --package bash --package xfsprogs --exclude /usr/share/doc --output root.img
  kiln image ext2 --binary fio --host-files '/etc/ssl/certs/*.pem' --output root.img")]
pub(crate) struct ImageExt2Args {
    /// Directories, tar archives and container images that the file system will hold the contents of
    #[arg(value_name = "SOURCE", required_unless_present_any = ["packages", "host_files", "binaries"])]
    pub(crate) sources: Vec<PathBuf>,

    /// An installed package, such as `bash` or `bash (>= 5)`: its files and those of all packages it depends on, as they
    /// are here now; `?bash` if it may be missing
    #[arg(long = "package", value_name = "NAME")]
    pub(crate) packages: Vec<String>,

    /// Files of this host by an absolute path with wildcards, which stop at slashes; `?/…` if there may be none
    #[arg(long, value_name = "PATTERN")]
    pub(crate) host_files: Vec<String>,

    /// A program of this host by name or absolute path, with its libraries and interpreter; `?NAME` if it may be missing
    #[arg(long = "binary", value_name = "NAME")]
    pub(crate) binaries: Vec<String>,

    /// Leave out what matches this, a wildcard over paths in the file system where `*` also stands for `/`
    #[arg(long, value_name = "PATTERN")]
    pub(crate) exclude: Vec<String>,

    /// Which image, where a source holds more than one
    #[arg(long, value_name = "NAME[:TAG]", requires = "sources")]
    pub(crate) image: Option<String>,

    /// Where to write it; replaced once it is complete
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,

    /// Free space in it, such as 512M
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = str::parse::<ByteLen>)]
    pub(crate) free: ByteLen,

    /// Its name, up to 16 bytes
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(crate) label: String,

    /// Make it ext4 without a journal, whose extents take less room for large files; `mount -t ext2` refuses it
    #[arg(long)]
    pub(crate) extents: bool,
}

/// Names one image.
#[derive(Debug, Args)]
pub(crate) struct ImageInspectArgs {
    /// A key from `kiln image ls`, a unique prefix of one, or a file
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
}

/// Remove images nobody used for a while
///
/// Always safe: an image that is needed again is built again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln image prune --dry-run
  kiln image prune --unused-for 1d")]
pub(crate) struct ImagePruneArgs {
    /// Keep what was used within this time
    #[arg(long, value_name = "TIME", default_value = "14d")]
    pub(crate) unused_for: String,

    /// Only say what would go, and how much that is
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Execute a job spec.
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    Exec(JobExecArgs),
}

/// Execute one job and write its events to stdout, one JSON object per line
///
/// Nothing but the spec is consulted: neither configuration nor environment. `kiln run` leaves the spec it made
/// in the run's folder; artifacts are written below the folder that the spec names. An interrupt lets the
/// running stage finish, a second one kills, and so does SIGTERM.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln job exec job.json
  kiln job exec ~/.local/share/kiln/runs/20261121-142530-7f3a/job.json")]
pub(crate) struct JobExecArgs {
    /// The spec (`docs/formats/job-spec.md`)
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
}
