//! `kiln supermin`: the command line of supermin 5.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};
use kiln_block::ByteLen;

/// Prepare and build appliances as supermin does: bootable copies of this system
///
/// Takes supermin's command line and reads its appliances, so that libguestfs can build its own with it; called as
/// `supermin`, by a link for instance, it is this command. With `--prepare`, the arguments are packages and DIR becomes
/// an appliance that travels: their names, and their configuration. With `--build`, the arguments are such appliances,
/// or files of them, and DIR becomes what boots: kernel, initrd and root, or a directory to change root to. DIR is
/// replaced at once when it is complete. SUPERMIN_KERNEL, SUPERMIN_KERNEL_VERSION and SUPERMIN_MODULES choose another
/// kernel than the newest one installed.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("mode").required(true).args(["prepare", "build", "list_drivers", "names", "release"]),
    after_help = "Examples:
  kiln supermin --prepare bash coreutils -o supermin.d
  kiln supermin --build -f ext2 --if-newer --copy-kernel supermin.d -o appliance.d
  kiln supermin --build -f chroot supermin.d -o folder
  ln -s \"$(command -v kiln)\" ~/bin/supermin"
)]
pub(crate) struct SuperminArgs {
    /// Make an appliance that travels, of packages
    #[arg(long, requires = "output")]
    pub(crate) prepare: bool,

    /// Make of appliances what boots
    #[arg(long, requires_all = ["output", "made"])]
    pub(crate) build: bool,

    /// Name the kinds of packages that can be read, and whether this system has them
    #[arg(long)]
    pub(crate) list_drivers: bool,

    /// Packages, or appliances and files of them
    #[arg(value_name = "INPUT")]
    pub(crate) inputs: Vec<String>,

    /// The directory to make or replace
    #[arg(short = 'o', value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,

    /// What to build; supermin's `--format` is understood, too
    #[arg(short = 'f', value_name = "FORMAT", value_enum)]
    pub(crate) made: Option<Made>,

    /// Leave DIR alone if nothing that it was built from has changed
    #[arg(long)]
    pub(crate) if_newer: bool,

    /// Wait for others that build under this lock
    #[arg(long, value_name = "FILE")]
    pub(crate) lock: Option<PathBuf>,

    /// Copy the kernel, in the form that boots fastest, instead of linking to it
    #[arg(long)]
    pub(crate) copy_kernel: bool,

    /// The machine type in the names of kernels
    #[arg(long, value_name = "ARCH", default_value = std::env::consts::ARCH)]
    pub(crate) host_cpu: String,

    /// How large the root disk is; what is free of that takes no space
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = str::parse::<ByteLen>)]
    pub(crate) size: ByteLen,

    /// Put a list of all packages into the appliance, as /packagelist
    #[arg(long)]
    pub(crate) include_packagelist: bool,

    /// With --prepare, take configuration as it is here instead of from packages fetched for that
    #[arg(long)]
    pub(crate) use_installed: bool,

    /// With --prepare, a configuration file for what fetches packages
    #[arg(long, value_name = "FILE")]
    pub(crate) packager_config: Option<PathBuf>,

    /// supermin 4's; an error
    #[arg(long, hide = true)]
    pub(crate) names: bool,

    /// Gone since supermin 5.1.18; an error
    #[arg(long, hide = true, value_name = "WILDCARD")]
    pub(crate) dtb: Option<String>,

    /// Which supermin's command line this is
    #[arg(short = 'V', long = "version")]
    pub(crate) release: bool,
}

/// What `--build` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Made {
    /// A directory to change root to
    #[value(aliases = ["fs", "filesystem"])]
    Chroot,
    /// kernel, initrd and root
    Ext2,
}
