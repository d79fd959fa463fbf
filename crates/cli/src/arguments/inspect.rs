//! The commands that look at what happened, and at Kiln itself.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// List recorded runs, newest first
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln runs
  kiln runs --scenario btrfs-smoke --limit 5
  kiln runs --format json | jq -r '.[].id'")]
pub(crate) struct RunsArgs {
    /// Only runs of this scenario
    #[arg(long, value_name = "NAME")]
    pub(crate) scenario: Option<String>,

    /// At most this many
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 20,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,

    /// Only runs that ended so
    #[arg(long, value_name = "WORD",
        value_parser = ["passed", "failed", "broken", "interrupted", "empty", "running"])]
    pub(crate) verdict: Option<String>,
}

/// Show one run: its stages, their outcomes, and where everything was recorded
///
/// A run is named by its id, a unique prefix of it, `last`, or `last~1` for the one before.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln show last
  kiln show 20261121-1425
  kiln show last --format json")]
pub(crate) struct ShowArgs {
    /// Which run
    #[arg(value_name = "RUN", default_value = "last")]
    pub(crate) run: String,
}

/// Play a stage's recorded terminal
///
/// On a terminal it plays in real time with long pauses shortened; elsewhere it prints the text at once.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln replay last/scrub
  kiln replay 20261121-1425/scrub --speed 4
  kiln replay last/scrub | less")]
pub(crate) struct ReplayArgs {
    /// Which stage of which run
    #[arg(value_name = "RUN/STAGE")]
    pub(crate) stage: String,

    /// Play this many times faster
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = speed)]
    pub(crate) speed: f64,

    /// Shorten pauses to this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = speed)]
    pub(crate) idle: f64,
}

/// Compare two runs: what fails now, what was fixed, what is slower
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln diff last~1 last
  kiln diff 20261120 last --format json
  kiln diff --exit-code last~1 last")]
pub(crate) struct DiffArgs {
    /// The run to compare with
    #[arg(value_name = "BEFORE")]
    pub(crate) before: String,

    /// The run to judge
    #[arg(value_name = "AFTER", default_value = "last")]
    pub(crate) after: String,

    /// Exit with 100 when a stage fails in AFTER that did not fail in BEFORE
    #[arg(long, help_heading = "Output")]
    pub(crate) exit_code: bool,
}

/// Write a run, or all of them, as a folder of web pages
///
/// The folder needs no server: open its index.html. Without RUN, all runs are written, with an index over them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln report
  kiln report last --output /tmp/report
  kiln report --format json")]
pub(crate) struct ReportArgs {
    /// Only this run
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,

    /// Where to write; by default a folder beside the recordings
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
}

/// Commit the report to a branch of a git repository, for GitHub or GitLab Pages
///
/// One commit; runs published earlier stay. Nothing else in the branch is touched.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln publish --git git@github.com:me/results.git --branch gh-pages
  kiln publish --git ../results.git --branch pages last")]
pub(crate) struct PublishArgs {
    /// The repository: a URL, a path, or a remote's name in the current repository
    #[arg(long, value_name = "REMOTE")]
    pub(crate) git: Option<String>,

    /// Its branch; made when it does not exist
    #[arg(long, value_name = "BRANCH")]
    pub(crate) branch: Option<String>,

    /// Only this run
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
}

/// Maintain the index over all recorded runs.
#[derive(Debug, Subcommand)]
pub(crate) enum HistoryCommand {
    /// Rebuild the index from the recordings
    ///
    /// The recordings are the truth; the index may be deleted at any time and made again.
    #[command(after_help = "Examples:\n  kiln history rebuild")]
    Rebuild,
}

/// Check this machine, and say how to cure what is missing
///
/// Exits with 0 when Kiln can run here (slowly perhaps), with 96 when something necessary is missing.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln doctor
  kiln doctor --format json | jq '.checks[] | select(.state != \"ok\")'")]
pub(crate) struct DoctorArgs {}

/// Show the configuration and where each value comes from.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every value in force
    #[command(after_help = "Examples:
  kiln config show
  kiln config show --origin
  kiln config show --format json")]
    Show {
        /// Name the file and line, variable or flag that set it
        #[arg(long)]
        origin: bool,
    },
    /// Name the files that are read, in order
    #[command(after_help = "Examples:\n  kiln config path")]
    Path,
    /// Print the JSON schema of the configuration, for editors
    #[command(after_help = "Examples:\n  kiln config schema > kiln.schema.json")]
    Schema,
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln completions bash > ~/.local/share/bash-completion/completions/kiln
  kiln completions zsh > ~/.zfunc/_kiln
  kiln completions fish > ~/.config/fish/completions/kiln.fish")]
pub(crate) struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// Print the manual page, or write one for every command
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln man | man -l -
  kiln man --output ~/.local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Write kiln.1, kiln-run.1 and so on into this folder
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && (0.001..=1000.0).contains(&number) => Ok(number),
        _ => Err("write a number between 0.001 and 1000".to_owned()),
    }
}
