//! `docs/cli.md` and the manual pages, made from the same arguments as the help.

#[cfg(test)]
mod pages;

use std::fmt::Write as _;
use std::path::Path;

use clap::{Command, CommandFactory as _};

use crate::arguments::Arguments;
use crate::exit::Exit;

/// The command with all its descendants, named in full.
pub(crate) fn command() -> Command {
    let mut command = Arguments::command();
    command.build();
    command
}

/// The exit codes, for the end of the help and of the manual page.
pub(crate) fn exit_codes() -> String {
    let mut text = String::from("Exit codes:\n");
    for exit in Exit::ALL {
        let _infallible = writeln!(text, "  {:>3}  {}", exit.code(), exit.meaning());
    }
    text
}

/// The manual page of `kiln` itself.
pub(crate) fn manual() -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command()).render(&mut page)?;
    Ok(page)
}

/// Writes a page for every command.
pub(crate) fn manuals(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Arguments::command(), folder)
}
