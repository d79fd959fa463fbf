//! One module per command: it takes its arguments, calls the crates below, and says how it ended.

mod about;
mod config;

use crate::arguments::{Arguments, Command};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::session::Session;

/// Runs the command that was typed.
pub(crate) fn dispatch(arguments: Arguments) -> Result<Exit, Failure> {
    let global = arguments.global;
    match arguments.command {
        // Nothing on this machine can keep these from working.
        Command::Completions(args) => about::completions(&args),
        Command::Man(args) => about::man(&args),
        Command::Config(command) => config::config(&mut Session::start(&global)?, &command),
        other => Err(Failure::new(Exit::Internal, format!("{other:?} is not wired"))),
    }
}
