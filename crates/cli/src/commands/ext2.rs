//! `kiln image ext2`: a file system from directories.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kiln_image::ext2::{Ext2Error, Options, Plan, Tree};
use serde_json::json;

use crate::arguments::ImageExt2Args;
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::hostile;
use crate::session::Session;
use crate::terminal;

/// `kiln image ext2`
pub(crate) fn ext2(session: &Session, args: &ImageExt2Args) -> Result<Exit, Failure> {
    let epoch = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => Some(
            text.parse::<i64>()
                .tried(|| format!("SOURCE_DATE_EPOCH is {text:?}, not a number of seconds"))
                .exits(Exit::Usage)?,
        ),
        Err(_) => None,
    };
    if args.label.len() > 16 {
        let message = format!("--label {:?} is longer than 16 bytes", args.label);
        return Err(Failure::new(Exit::Usage, message));
    }
    let mut tree = Tree::new();
    for source in &args.sources {
        tree.add_directory(source).map_err(unusable)?;
    }
    let options =
        Options { free: args.free, epoch, label: args.label.clone(), ..Options::default() };
    let plan = Plan::new(tree, &options).map_err(unusable)?;
    for note in plan.notes() {
        terminal::say(&format!("note: {}", hostile::line(note)));
    }
    // Beside the output, so that it takes its place at once; whoever looked at the old one keeps it.
    let folder = args.output.parent().filter(|folder| !folder.as_os_str().is_empty());
    let tried = || format!("cannot write {}", args.output.display());
    let file = tempfile::Builder::new()
        .prefix(".kiln-ext2-")
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .tried(tried)
        .exits(Exit::Setup)?;
    let written = plan.write(file.as_file()).map_err(unusable)?;
    file.persist(&args.output).tried(tried).exits(Exit::Setup)?;
    let summary = plan.summary();
    if session.json() {
        session.out_json(&json!({
            "path": args.output, "bytes": written.size.get(), "data": written.data.get(),
            "free": summary.free.get(), "entries": summary.entries, "notes": plan.notes(),
        }))?;
    } else {
        terminal::out_line(&args.output.display().to_string())?;
    }
    Ok(Exit::Success)
}

/// A directory that is not there is the caller's slip; what is wrong inside of one is not.
fn unusable(error: Ext2Error) -> Failure {
    let exit = match error {
        Ext2Error::NotADirectory { .. } | Ext2Error::Host { act: "look at", .. } => Exit::Usage,
        _ => Exit::BuildFailed,
    };
    Failure::from(error).with_exit(exit)
}
