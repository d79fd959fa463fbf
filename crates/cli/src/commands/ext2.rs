//! `kiln image ext2`: a file system from directories, archives, container images, packages, files and programs.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use kiln_image::archive::ArchiveError;
use kiln_image::base::{Base, BaseError, Source};
use kiln_image::closure::{ClosureError, ProgramFiles};
use kiln_image::ext2::{Ext2Error, Mapping, Options, Plan, Time, Tree};
use kiln_image::manifest::Wanted;
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
    let tree = tree(args)?;
    let mapping = if args.extents { Mapping::Extents } else { Mapping::Tables };
    let label = args.label.clone();
    let options = Options { free: args.free, epoch, label, mapping, ..Options::default() };
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

/// Everything the file system will hold.
fn tree(args: &ImageExt2Args) -> Result<Tree, Failure> {
    let root = Path::new("/");
    let source =
        |path: &PathBuf| Source { path: path.clone(), image: args.image.clone(), optional: false };
    let base = Base {
        sources: args.sources.iter().map(source).collect(),
        packages: args.packages.iter().map(|name| Wanted::written(name)).collect(),
        host_files: patterns(&args.host_files)?,
        exclude: args.exclude.clone(),
    };
    let mut tree = base.tree(root).map_err(|error| refused(error.into()))?;
    if !args.binaries.is_empty() {
        let names: Vec<Wanted> = args.binaries.iter().map(|name| Wanted::written(name)).collect();
        let found = ProgramFiles::find(root, &names).map_err(refused)?;
        tree.notes.extend(found.notes);
        let paths = found.paths.iter().map(PathBuf::as_path);
        tree.add_listed(root, paths).map_err(|error| refused(BaseError::from(error).into()))?;
        tree.add_inventory(&found.links, Time::default()).map_err(unusable)?;
    }
    Ok(tree)
}

/// Wildcards over paths of the host.
fn patterns(written: &[String]) -> Result<Vec<Wanted>, Failure> {
    let pattern = |text: &String| {
        let wanted = Wanted::written(text);
        if wanted.name.starts_with('/') && !wanted.name.split('/').any(|part| part == "..") {
            return Ok(wanted);
        }
        let message = format!("--host-files {text:?} is not an absolute path without '..'");
        Err(Failure::new(Exit::Usage, message))
    };
    written.iter().map(pattern).collect()
}

/// What is not there is the caller's slip; what is wrong inside of it is not.
fn refused(error: ClosureError) -> Failure {
    let (exit, hint) = match &error {
        ClosureError::Base(BaseError::Unreadable { path, .. }) => {
            let name = path.file_name().unwrap_or_default().display();
            (Exit::BuildFailed, Some(format!("kiln image ext2 … --exclude '*/{name}'")))
        }
        ClosureError::Base(BaseError::Packages(_)) => {
            let hint = "packages are read from dpkg's database or asked of rpm";
            (Exit::Setup, Some(hint.to_owned()))
        }
        ClosureError::Base(BaseError::Archive(ArchiveError::WhichImage { .. })) => {
            (Exit::Usage, Some("--image NAME:TAG".to_owned()))
        }
        ClosureError::Base(
            BaseError::MissingSource { .. }
            | BaseError::NoArchive { .. }
            | BaseError::MissingPackage { .. }
            | BaseError::NothingThere { .. },
        )
        | ClosureError::MissingBinary { .. } => (Exit::Usage, None),
        _ => (Exit::BuildFailed, None),
    };
    let failure = Failure::from(error).with_exit(exit);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn unusable(error: Ext2Error) -> Failure {
    Failure::from(error).with_exit(Exit::BuildFailed)
}
