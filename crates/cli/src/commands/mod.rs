//! One module per command: it takes its arguments, calls the crates below, and says how it ended.

mod about;
mod config;
mod disk;
mod doctor;
mod examine;
mod ext2;
pub(crate) mod history;
mod image;
mod job;
mod kept;
pub(crate) mod kernel;
mod layer;
mod plan;
mod report;
mod revisit;
mod run;
mod shell;
pub(crate) mod supermin;
mod target;
mod warm;

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
        Command::Config(command) => config::config(&Session::start(&global)?, &command),
        Command::Runs(args) => history::runs(&Session::start(&global)?, &args),
        Command::Show(args) => history::show(&Session::start(&global)?, &args),
        Command::Replay(args) => history::replay(&Session::start(&global)?, &args),
        Command::Diff(args) => history::diff(&Session::start(&global)?, &args),
        Command::History(command) => history::history(&Session::start(&global)?, &command),
        Command::Kernel(command) => kernel::kernel(&Session::start(&global)?, &command),
        Command::Doctor(args) => doctor::doctor(&Session::start(&global)?, &args),
        Command::Plan(args) => plan::plan(Session::start(&global)?, &args),
        Command::Run(args) => run::run(Session::start(&global)?, args),
        Command::Image(command) => image::image(Session::start(&global)?, &command),
        Command::Warm(command) => warm::warm(&Session::start(&global)?, &command),
        Command::Supermin(args) => {
            supermin::supermin(&Session::start(&global)?, &args, global.verbose)
        }
        Command::Disk(args) => disk::disk(&Session::start(&global)?, &args),
        Command::Layer(command) => layer::layer(Session::start(&global)?, &command),
        Command::Report(args) => report::report(Session::start(&global)?, &args),
        Command::Publish(args) => report::publish(Session::start(&global)?, &args),
        Command::Shell(args) => shell::shell(Session::start(&global)?, &args),
        Command::Job(command) => job::job(&command),
    }
}
