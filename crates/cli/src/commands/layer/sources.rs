//! What a conversion starts from: layers, an image, or archives of files. Which of them is seen in the files.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, ReadOnly};
use kiln_image::archive::{ArchiveError, ContainerImage, Looks, Reference, Stretch};
use kiln_image::ext2::{Ext2Error, Options, Plan, Tree};
use kiln_overlaybd::{Config, Image, Layer, OpenOptions, Stack};
use kiln_qcow2::Qcow2Error;
use kiln_qcow2::chain::{self, Allow};

use super::output::folder_of;
use super::{open, refused};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::{hostile, terminal};

/// What was found.
pub(super) enum Source {
    /// Layers on each other.
    Layers(ReadOnly<Stack>),
    /// A raw or qcow2 image.
    Image(Arc<dyn BlockDevice>),
    /// A file system made of archives.
    Files(Arc<dyn BlockDevice>),
}

impl Source {
    pub(super) fn into_disk(self) -> Arc<dyn BlockDevice> {
        match self {
            Source::Layers(stack) => Arc::new(stack),
            Source::Image(disk) | Source::Files(disk) => disk,
        }
    }
}

/// What the first bytes of a file say, or its name where it is no file.
enum Looking {
    Layer,
    Config,
    Image,
    Archive,
}

/// Opens what is to be converted. `free` is the space that a file system made of archives has for more files.
pub(super) fn source(paths: &[PathBuf], free: ByteLen) -> Result<Source, Failure> {
    let kinds = paths.iter().map(|path| look(path)).collect::<Result<Vec<_>, _>>()?;
    if let ([Looking::Config], [config]) = (&kinds[..], paths) {
        return Ok(Source::Layers(ReadOnly(stack_of_config(config)?)));
    }
    if let ([Looking::Image], [image]) = (&kinds[..], paths) {
        return image_disk(image).map(Source::Image);
    }
    if kinds.iter().all(|kind| matches!(kind, Looking::Archive)) {
        return file_system(paths, free).map(Source::Files);
    }
    if kinds.iter().any(|kind| matches!(kind, Looking::Config | Looking::Image | Looking::Archive))
        && kinds.len() > 1
    {
        let count = kinds.len();
        let text =
            format!("layers, or one image, or archives: the {count} given are no such thing");
        return Err(Failure::new(Exit::Usage, text).hint("kiln layer merge takes layers"));
    }
    stack(paths).map(|stack| Source::Layers(ReadOnly(stack)))
}

/// What a file is, by its start. One that says it is a layer is never taken for something else, however damaged.
fn look(path: &Path) -> Result<Looking, Failure> {
    if path.is_dir() {
        return Ok(Looking::Archive);
    }
    let mut start = Vec::new();
    let file = File::open(path).tried(|| format!("cannot open {}", path.display()));
    let file = file.exits(Exit::Usage)?;
    let read = file.take(1536).read_to_end(&mut start);
    read.tried(|| format!("cannot read {}", path.display())).exits(Exit::InfrastructureBroke)?;
    let in_tar = [&b"overlaybd.pax\0"[..], b"overlaybd.commit\0"];
    if start.starts_with(b"LSMT")
        || start.starts_with(b"ZFile")
        || in_tar.iter().any(|name| start.starts_with(name))
    {
        return Ok(Looking::Layer);
    }
    if start.first() == Some(&b'{') {
        return Ok(Looking::Config);
    }
    if start.starts_with(b"QFI\xfb") {
        return Ok(Looking::Image);
    }
    let looks = Looks::of(path).map_err(|error| unusable(error.into()))?;
    Ok(match looks {
        Looks::Other => Looking::Image,
        // Other names than usual may stand before a layer.
        Looks::Tar if open(path).is_ok() => Looking::Layer,
        Looks::ContainerImage | Looks::Directory | Looks::Tar => Looking::Archive,
    })
}

fn image_disk(path: &Path) -> Result<Arc<dyn BlockDevice>, Failure> {
    chain::open_disk(path, None, Allow::Beside, None).map_err(|error| {
        let is_damaged = matches!(error, Qcow2Error::Damaged { .. });
        Failure::from(error).with_exit(if is_damaged { Exit::Unsound } else { Exit::Usage })
    })
}

/// An ext2 file system of archives, each a layer above those before it: `.wh.` names hide what lies below.
fn file_system(paths: &[PathBuf], free: ByteLen) -> Result<Arc<dyn BlockDevice>, Failure> {
    let mut tree = Tree::new();
    for path in paths {
        let archive = |error: ArchiveError| unusable(error.into());
        match Looks::of(path).map_err(archive)? {
            Looks::ContainerImage => {
                let image = ContainerImage::open(path, &Reference::default()).map_err(archive)?;
                for layer in &image.layers {
                    tree.add_tar(layer, true).map_err(unusable)?;
                }
            }
            Looks::Directory => tree.add_directory(path).map_err(unusable)?,
            Looks::Tar | Looks::Other => {
                let layer = Stretch::open(path).map_err(archive)?;
                tree.add_tar(&layer, true).map_err(unusable)?;
            }
        }
    }
    let plan = Plan::new(tree, &Options { free, ..Options::default() }).map_err(unusable)?;
    for note in plan.notes() {
        terminal::say(&format!("note: {}", hostile::line(note)));
    }
    Ok(Arc::new(ReadOnly(plan)))
}

fn unusable(error: Ext2Error) -> Failure {
    let exit = match error {
        Ext2Error::Archive(ArchiveError::Host { act: "open", .. }) => Exit::Usage,
        _ => Exit::BuildFailed,
    };
    Failure::from(error).with_exit(exit)
}

fn stack_of_config(path: &Path) -> Result<Stack, Failure> {
    let mut config = Config::load(path).map_err(refused)?;
    if config.upper.take().is_some() {
        let text = format!("{} has an upper, which may be written meanwhile", path.display());
        return Err(Failure::new(Exit::Usage, text).hint("kiln layer commit makes a layer of it"));
    }
    let options = OpenOptions::default();
    let image = Image::open_config(&config, folder_of(path), &options).map_err(refused)?;
    match image {
        Image::ReadOnly(stack) => Ok(stack.0),
        Image::Writable(_) => Err(Failure::new(Exit::Usage, "an image without an upper is needed")),
    }
}

/// Layers on each other; one that belongs on another is told and no obstacle.
pub(super) fn stack(paths: &[PathBuf]) -> Result<Stack, Failure> {
    let layers = paths.iter().map(|path| open(path)).collect::<Result<Vec<Layer>, _>>();
    let stack = Stack::new(layers.map_err(refused)?).map_err(refused)?;
    for mismatch in stack.chain_mismatches() {
        terminal::say(&format!("warning: {}", hostile::line(&mismatch.to_string())));
    }
    Ok(stack)
}

/// Paths in one line, for errors.
pub(super) fn names(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    names.join(", ")
}
