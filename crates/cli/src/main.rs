//! The `kiln` command: arguments, drawing, wiring. The only crate that prints or exits.

mod arguments;
mod commands;
mod completion;
mod config;
mod embedded;
mod exit;
mod failure;
mod home;
mod hostile;
mod raw_mode;
mod reference;
mod reporter;
mod rerun;
mod run_id;
mod session;
mod signals;
mod terminal;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use arguments::Arguments;
use exit::Exit;
use failure::Failure;

fn main() -> ExitCode {
    // The probe of KVM runs in a process of its own, which is this program again.
    if let Some(code) = kiln_vm::probe::take_over() {
        return code;
    }
    if let Some(code) = completion::take_over() {
        return code;
    }
    // A panic is our bug; Rust's own status for it, 101, already means that a build failed.
    let ended = std::panic::catch_unwind(run);
    let exit = match ended {
        Ok(Ok(exit)) => exit,
        Ok(Err(failure)) => {
            terminal::tell(&failure);
            failure.exit
        }
        Err(_already_reported) => {
            terminal::say("hint: this is a bug in Kiln; please report it with the lines above");
            Exit::Internal
        }
    };
    ExitCode::from(exit.code())
}

fn run() -> Result<Exit, Failure> {
    let command = Arguments::command().after_long_help(format!(
        "{}\n\n{}",
        Arguments::command().get_after_help().map(ToString::to_string).unwrap_or_default(),
        reference::exit_codes()
    ));
    let parsed = command.try_get_matches_from(commands::supermin::as_typed(std::env::args_os()));
    let parsed = parsed.and_then(|matches| Arguments::from_arg_matches(&matches));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are data and go to stdout; everything else is a complaint.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Success };
            let _nobody_listens = error.print();
            return Ok(exit);
        }
    };
    start_log(arguments.global.verbose);
    commands::dispatch(arguments)
}

/// What Kiln tells about itself goes to stderr, when asked for by `-v` or `KILN_LOG`.
fn start_log(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    let wanted = match verbose {
        0 => "off",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("KILN_LOG").unwrap_or_else(|_| EnvFilter::new(wanted));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .finish();
    let _already_set = tracing::subscriber::set_global_default(subscriber);
}
