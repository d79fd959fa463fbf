//! `kiln image ext2`: a file system from directories, archives, container images and packages.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kiln_image::archive::{ArchiveError, ContainerImage, Looks, Reference, Stretch};
use kiln_image::ext2::{Ext2Error, Mapping, Options, Plan, Tree};
use kiln_image::packages::Packages;
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
        add(&mut tree, source, args.image.as_deref())?;
    }
    if !args.packages.is_empty() {
        add_packages(&mut tree, &args.packages)?;
    }
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

/// Adds a source, whatever kind it is.
fn add(tree: &mut Tree, source: &Path, image: Option<&str>) -> Result<(), Failure> {
    let unusable_archive = |error: ArchiveError| unusable(error.into());
    match Looks::of(source).map_err(unusable_archive)? {
        Looks::ContainerImage => {
            let reference = Reference { name: image.map(str::to_owned), ..Reference::default() };
            let image = ContainerImage::open(source, &reference).map_err(unusable_archive)?;
            for layer in &image.layers {
                tree.add_tar(layer, true).map_err(unusable)?;
            }
            Ok(())
        }
        Looks::Directory => tree.add_directory(source).map_err(unusable),
        Looks::Tar => {
            let archive = Stretch::open(source).map_err(unusable_archive)?;
            tree.add_tar(&archive, false).map_err(unusable)
        }
        Looks::Other => {
            let message = format!("{} is no directory and no archive", source.display());
            Err(Failure::new(Exit::Usage, message))
        }
    }
}

fn add_packages(tree: &mut Tree, names: &[String]) -> Result<(), Failure> {
    let root = Path::new("/");
    let packages = Packages::read(root)
        .exits(Exit::Setup)
        .hint("packages are read from dpkg's database: this needs Debian or one of its kin")?;
    let closure = packages.closure(names.iter().map(String::as_str)).exits(Exit::Usage)?;
    tree.notes.extend(closure.notes);
    let files = closure.files.iter().map(std::path::PathBuf::as_path);
    let missing = tree.add_listed(root, files).map_err(unusable)?;
    if missing > 0 {
        let (count, total) = (closure.packages.len(), closure.files.len());
        tree.notes.push(format!("{missing} of {total} files of {count} packages are not there"));
    }
    Ok(())
}

/// A directory that is not there is the caller's slip; what is wrong inside of one is not.
fn unusable(error: Ext2Error) -> Failure {
    let exit = match error {
        Ext2Error::NotADirectory { .. }
        | Ext2Error::Host { act: "look at", .. }
        | Ext2Error::Archive(
            ArchiveError::Host { act: "open", .. } | ArchiveError::WhichImage { .. },
        ) => Exit::Usage,
        _ => Exit::BuildFailed,
    };
    Failure::from(error).with_exit(exit)
}
