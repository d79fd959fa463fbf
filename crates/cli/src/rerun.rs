//! Running again: what an earlier run was asked for is in its recorded command line, and parsed by the same parser.

use clap::Parser as _;

use crate::arguments::{Arguments, Command, RunArgs};

/// The arguments of the `kiln run` that was recorded; none for a command line of another kind or version.
pub(crate) fn recorded(command: &[String]) -> Option<RunArgs> {
    match Arguments::try_parse_from(command).ok()?.command {
        Command::Run(args) => Some(args),
        _ => None,
    }
}

/// The kernel that was named.
pub(crate) fn kernel_of(command: &[String]) -> Option<String> {
    recorded(command)?.target.kernel
}
