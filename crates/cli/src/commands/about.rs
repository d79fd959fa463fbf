//! `kiln completions` and `kiln man`.

use crate::arguments::{CompletionsArgs, ManArgs};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::{completion, reference, terminal};

/// `kiln completions`
pub(crate) fn completions(args: &CompletionsArgs) -> Result<Exit, Failure> {
    let script = completion::script(args.shell)?;
    terminal::out(&String::from_utf8(script)?)?;
    Ok(Exit::Success)
}

/// `kiln man`
pub(crate) fn man(args: &ManArgs) -> Result<Exit, Failure> {
    match &args.output {
        Some(folder) => reference::manuals(folder)
            .tried(|| format!("cannot write manual pages to {}", folder.display()))
            .exits(Exit::Setup)?,
        None => terminal::out(&String::from_utf8(reference::manual()?)?)?,
    }
    Ok(Exit::Success)
}
