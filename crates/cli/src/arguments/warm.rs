//! Saved machines, by hand.

use clap::{Args, Subcommand};

/// List and remove saved machines.
#[derive(Debug, Subcommand)]
pub(crate) enum WarmCommand {
    /// List saved machines, the last used first
    #[command(after_help = "Examples:\n  kiln warm ls\n  kiln warm ls --format json")]
    Ls,
    /// Remove a saved machine; those that were restored from it go on
    #[command(after_help = "Examples:\n  kiln warm rm 3f2a9c")]
    Rm(WarmNameArgs),
    Prune(WarmPruneArgs),
}

/// Names one saved machine.
#[derive(Debug, Args)]
pub(crate) struct WarmNameArgs {
    /// The start of its key, as `kiln warm ls` shows it
    #[arg(value_name = "KEY")]
    pub(crate) machine: String,
}

/// Remove saved machines that were not used for long, or cannot be restored any more
///
/// A saved machine is restored until this host is booted again. The latest twelve stay by themselves; the others are
/// removed when another one is saved.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln warm prune
  kiln warm prune --unused-for 0               # all of them")]
pub(crate) struct WarmPruneArgs {
    /// Keep what was used within this time
    #[arg(long, value_name = "TIME", default_value = "7d")]
    pub(crate) unused_for: String,

    /// Only say what would go, and how much that is
    #[arg(long)]
    pub(crate) dry_run: bool,
}
