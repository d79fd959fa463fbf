//! What may be typed: every command, flag and example. Help, completions, man pages and
//! `docs/cli.md` all come from here.

mod disk;
mod inspect;
mod layer;
mod layer_remote;
mod make;
mod run;
mod supermin;
mod transfer;
mod warm;

pub(crate) use disk::{
    DiskArgs, DiskCloneArgs, DiskCommand, DiskCreateArgs, DiskDiffArgs, DiskMetricsArgs,
    DiskOptionArgs, DiskOwnArgs, DiskRemoveArgs, DiskResizeArgs, DiskServeArgs, DiskSnapArgs,
    DiskTopArgs, DiskVerifyArgs, Drawing,
};
pub(crate) use inspect::{
    CompletionsArgs, ConfigCommand, DiffArgs, DoctorArgs, HistoryCommand, ManArgs, PublishArgs,
    ReplayArgs, ReportArgs, RunsArgs, ShowArgs,
};
pub(crate) use layer::{
    Compress, LayerApplyArgs, LayerCommand, LayerCommitArgs, LayerConvertArgs, LayerCreateArgs,
    LayerInspectArgs, LayerMergeArgs, LayerSealArgs, LayerSealingArgs, LayerVerifyArgs, Target,
};
pub(crate) use layer_remote::{
    LayerImageArgs, LayerMountArgs, LayerPullArgs, LayerPushArgs, LayerServeArgs, LayerUmountArgs,
    RegistryArgs,
};
pub(crate) use make::{
    ImageBuildArgs, ImageCommand, ImageDiffArgs, ImageExt2Args, ImageInspectArgs, ImagePruneArgs,
    ImageVerifyArgs, JobCommand, JobExecArgs, KernelCommand, KernelFetchArgs, KernelFlavour,
    KernelNameArgs,
};
pub(crate) use run::{MachineArgs, PlanArgs, RunArgs, ShellArgs};
pub(crate) use supermin::{Made, SuperminArgs};
pub(crate) use transfer::{
    Backing, DiskExportArgs, DiskImportArgs, DiskReceiveArgs, DiskSendArgs, ImageCompression,
    ImageFormat,
};
pub(crate) use warm::{WarmCommand, WarmNameArgs, WarmPruneArgs};

use clap::{Parser, Subcommand, ValueEnum};

/// Run a Linux kernel's tests in throwaway virtual machines and remember every result
///
/// Kiln takes a kernel and a scenario, builds a bootable image, gives every stage its own disks, boots a
/// virtual machine, runs the tests, records everything and shows what failed.
#[derive(Debug, Parser)]
#[command(
    name = "kiln",
    version,
    propagate_version = false,
    max_term_width = 100,
    after_help = "Examples:
  kiln doctor                                  # what is missing on this machine
  kiln kernel fetch debian                     # a kernel to start with
  kiln run btrfs-raid5-scrub                   # a scenario that ships with Kiln
  kiln run my.toml --kernel ~/linux            # yours, on the kernel you just built
  kiln show last                               # what happened"
)]
pub(crate) struct Arguments {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Flags every command understands
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
}

/// Flags every command understands.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct GlobalArgs {
    /// Text for people, or JSON for programs
    #[arg(long, value_enum, global = true, help_heading = "Output")]
    pub(crate) format: Option<Format>,

    /// When to colour; NO_COLOR, CLICOLOR and TERM=dumb are honoured too
    #[arg(long, value_enum, global = true, help_heading = "Output", value_name = "WHEN")]
    pub(crate) color: Option<ColorChoice>,

    /// Tell more about what Kiln itself does; twice for more still
    #[arg(long, short, global = true, action = clap::ArgAction::Count, help_heading = "Output")]
    pub(crate) verbose: u8,

    /// Read this file as the project's configuration instead of the nearest kiln.toml
    #[arg(long, global = true, help_heading = "Configuration", value_name = "FILE")]
    pub(crate) config: Option<std::path::PathBuf>,
}

/// How results are written to stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people; may change between versions.
    #[default]
    Text,
    /// For programs; documented, changes only with its schema number.
    Json,
}

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal that can show it
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// What `kiln` can do, in the order of the data path.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(RunArgs),
    Shell(ShellArgs),
    Plan(PlanArgs),
    Runs(RunsArgs),
    Show(ShowArgs),
    Replay(ReplayArgs),
    Diff(DiffArgs),
    Report(ReportArgs),
    Publish(PublishArgs),
    /// Maintain the index over all recorded runs
    #[command(subcommand)]
    History(HistoryCommand),
    /// Fetch, list and remove kernels
    #[command(subcommand)]
    Kernel(KernelCommand),
    /// Build, list and inspect guest images
    #[command(subcommand)]
    Image(ImageCommand),
    /// List and remove saved machines, from which others start
    #[command(subcommand)]
    Warm(WarmCommand),
    Supermin(SuperminArgs),
    Disk(DiskArgs),
    /// Make, check, convert, mount, push and pull overlaybd layers
    #[command(subcommand)]
    Layer(LayerCommand),
    /// Execute a job spec: what `kiln run` starts, and what other machines are sent
    #[command(subcommand)]
    Job(JobCommand),
    Doctor(DoctorArgs),
    /// Show the configuration and where each value comes from
    #[command(subcommand)]
    Config(ConfigCommand),
    Completions(CompletionsArgs),
    Man(ManArgs),
}
