//! `run`, `shell` and `plan`: the commands that turn a scenario into machines.

use std::path::PathBuf;

use clap::Args;

/// Which scenario on which kernel.
#[derive(Clone, Debug, Args)]
pub(crate) struct TargetArgs {
    /// A scenario file, or the name of one that ships with Kiln (`kiln plan --list` names them); without it,
    /// `simple-example`
    #[arg(value_name = "SCENARIO")]
    pub(crate) scenario: Option<String>,

    /// A built kernel tree, a vmlinuz with its modules beside it, or a release from `kiln kernel ls`
    #[arg(long, short, value_name = "KERNEL", help_heading = "What to test")]
    pub(crate) kernel: Option<String>,

    /// Only stages whose name matches; `*` and `?` match any text and any character
    #[arg(long = "stage", short, value_name = "PATTERN", help_heading = "What to test")]
    pub(crate) stages: Vec<String>,
}

/// The machine, where it should differ from the scenario.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Machine")]
pub(crate) struct MachineArgs {
    /// Memory of the machine, such as 512M or 2G
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,

    /// Number of its processors
    #[arg(long, value_name = "COUNT")]
    pub(crate) cpus: Option<String>,

    /// How many machines run at once, for stages that want fresh ones
    #[arg(long, value_name = "COUNT")]
    pub(crate) machines: Option<String>,

    /// What executes the guest: auto, kvm or tcg
    #[arg(long, value_name = "KIND")]
    pub(crate) acceleration: Option<String>,

    /// The emulator, if not the qemu-system-x86_64 on the PATH
    #[arg(long, value_name = "FILE")]
    pub(crate) qemu: Option<String>,

    /// How long a boot may take until the guest answers, such as 90s
    #[arg(long, value_name = "TIME")]
    pub(crate) boot_timeout: Option<String>,

    /// Neither output nor heartbeat for this long is a hang
    #[arg(long, value_name = "TIME")]
    pub(crate) hang_timeout: Option<String>,

    /// Another kernel parameter, such as `slub_debug=FZP`; may be repeated
    #[arg(long = "parameter", value_name = "TEXT")]
    pub(crate) parameters: Vec<String>,

    /// Allow kernel parameters that boot faster but change the kernel's behaviour
    #[arg(long)]
    pub(crate) fast: bool,

    /// Where the guest's root file system is: auto, initramfs, disk or clone
    ///
    /// `initramfs` is all of it in the guest's memory. `disk` is made of this machine's files while the guest reads them:
    /// nothing is written anywhere, and what the guest writes is in its memory. `clone` takes what the guest writes in
    /// the pool. `auto` is `initramfs` up to 32 MiB and `disk` beyond.
    #[arg(long, value_name = "WHERE")]
    pub(crate) root: Option<String>,

    /// Where machines start: never (they boot), ready or prepared
    ///
    /// The first machine of a kernel, an image and a configuration boots, and is saved at the moment at which it is
    /// `ready`; later ones are restored from there, each with memory, disks, name, clock and random numbers of its own.
    /// `prepared` is the moment at which the scenario's stage `prepare` has passed.
    #[arg(long, value_name = "MOMENT", conflicts_with = "cold")]
    pub(crate) restore: Option<String>,

    /// Boot every machine; the same as --restore never
    #[arg(long)]
    pub(crate) cold: bool,
}

/// Run a scenario's stages in throwaway virtual machines
///
/// Disks are made afresh for every machine and deleted with it. A stage that crashes the kernel, hangs or
/// runs out of time ends with that outcome, and the next stage gets a fresh machine. Everything is recorded
/// in a folder of its own, named at the end. Ctrl-C once lets the running stage finish and starts no
/// other; twice kills.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln run btrfs-smoke
  kiln run my.toml --kernel ~/linux --stage 'scrub*'
  kiln run my.toml --env MOUNT_OPTIONS=compress=zstd -- -g quick
  kiln run --rerun last
  git bisect run kiln run --bisect my.toml --kernel .")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,

    /// Run again what failed or never ran in an earlier run: an id, a unique prefix of one, or `last`
    #[arg(long, value_name = "RUN", conflicts_with = "scenario", help_heading = "What to test")]
    pub(crate) rerun: Option<String>,

    /// After which stages disks are kept as they are then: never, failed or always
    ///
    /// They are kept in the pool (`kiln disk ls`), where they take what was written to them;
    /// `kiln shell RUN/STAGE` boots clones of them. Those of older runs are removed after some time.
    #[arg(long, value_name = "WHEN", help_heading = "What to keep")]
    pub(crate) keep_disks: Option<String>,

    /// Also write the results as JUnit XML
    #[arg(long, value_name = "FILE", help_heading = "What to keep")]
    pub(crate) junit: Option<PathBuf>,

    /// Give every stage this long, whatever the scenario says
    #[arg(long, value_name = "TIME", help_heading = "What to test")]
    pub(crate) timeout: Option<String>,

    /// Set a variable for every stage; may be repeated
    #[arg(long = "env", short, value_name = "NAME=VALUE", value_parser = variable, help_heading = "What to test")]
    pub(crate) environment: Vec<(String, String)>,

    /// Exit with 125 when the kernel could not be tested, as `git bisect run` wants it
    #[arg(long, help_heading = "Output")]
    pub(crate) bisect: bool,

    #[command(flatten)]
    pub(crate) machine: MachineArgs,

    /// Arguments handed to every stage's script
    #[arg(last = true, value_name = "ARGS")]
    pub(crate) arguments: Vec<String>,
}

/// Open a root shell in the scenario's virtual machine, or in that of a stage that failed
///
/// Boots the same image with the same disks as `kiln run` would, but runs no stage. Of a stage of an earlier run, named
/// RUN/STAGE, it boots the same kernel and image, with clones of the disks as the stage left them. Leave with `exit` or
/// Ctrl-D; the shell's exit status is Kiln's. Ctrl-C goes to the guest; a guest that hangs is left with Ctrl-]
/// three times in a row. Without a terminal, stdin is read as the shell's script.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln shell btrfs-smoke
  kiln shell my.toml --kernel ~/linux --memory 2G
  kiln shell last/scrub
  echo 'uname -r; exit 3' | kiln shell simple-example; echo $?
  kiln shell simple-example -- dmesg")]
pub(crate) struct ShellArgs {
    /// A scenario file, the name of one that ships with Kiln, or RUN/STAGE of an earlier run
    #[arg(value_name = "SCENARIO", default_value = "simple-example")]
    pub(crate) scenario: String,

    /// A built kernel tree, a vmlinuz with its modules beside it, or a release from `kiln kernel ls`
    #[arg(long, short, value_name = "KERNEL")]
    pub(crate) kernel: Option<String>,

    /// Boot the pool's disk NAME as the root, on which what is written stays
    ///
    /// When the pool has no such disk, it is made: a clone of the scenario's root. `kiln disk` snapshots it, copies it and
    /// removes it as any other.
    #[arg(long, value_name = "NAME")]
    pub(crate) persist: Option<String>,

    /// Set a variable in the shell; may be repeated
    #[arg(long = "env", short, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) environment: Vec<(String, String)>,

    #[command(flatten)]
    pub(crate) machine: MachineArgs,

    /// Run this instead of an interactive shell
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// Say what a run would do, and do nothing
///
/// Names the kernel, the image (and whether it is in the cache), the machine, the disks and the stages in order.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln plan btrfs-raid5-scrub
  kiln plan my.toml --kernel ~/linux --format json
  kiln plan --list")]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,

    /// List the scenarios that ship with Kiln
    #[arg(long, conflicts_with_all = ["scenario", "stages", "kernel"])]
    pub(crate) list: bool,

    #[command(flatten)]
    pub(crate) machine: MachineArgs,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if is_variable_name(name) => Ok((name.to_owned(), value.to_owned())),
        Some((name, _)) => Err(format!("{name:?} cannot name a variable")),
        None => Err("write NAME=VALUE".to_owned()),
    }
}

fn is_variable_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_keeps_every_equals_sign_after_the_first() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(variable("A="), Ok(("A".into(), String::new())));
        for bad in ["A", "=b", "1A=b", "A B=c"] {
            assert!(variable(bad).is_err(), "{bad}");
        }
    }
}
