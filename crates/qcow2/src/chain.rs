//! Images and what lies below them, as files.
//!
//! [`find`] opens an image and everything it stands on, as far as [`Allow`] lets it, and [`assemble`] makes one disk of
//! that. They are apart so that the files can be opened by who asked, and read by somebody else.

use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_block::{BlockDevice, FileDevice};

use crate::{BackingFile, Image, Qcow2Error, TableCache};

/// Images on top of each other, at most.
pub const MAX_DEPTH: usize = 64;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// The disk itself.
    Raw,
    /// An image.
    Qcow2,
}

/// Which backing files may be opened. An image from elsewhere can name any file that its reader may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Allow {
    /// None.
    Nothing,
    /// Files in the folder of the first image, and in folders of that.
    #[default]
    Beside,
    /// Any file.
    Anything,
}

/// One file of a chain.
#[derive(Debug)]
pub struct Link {
    /// Where it was found.
    pub path: PathBuf,
    /// Opened for reading.
    pub file: File,
    /// What it holds.
    pub format: Format,
}

/// Opens an image and what it stands on, the topmost first. Without a format, the file's first bytes decide.
pub fn find(path: &Path, format: Option<Format>, allow: Allow) -> Result<Vec<Link>, Qcow2Error> {
    let root = folder_of(path);
    let mut links = vec![open(path, format)?];
    let mut seen = vec![identity(&links[0])?];
    while let Some(Link { path: from, file, format: Format::Qcow2 }) = links.last() {
        let name = from.display().to_string();
        let device: Arc<dyn BlockDevice> = Arc::new(device_of(file, from)?);
        let image = Image::open(name.clone(), device)?;
        let Some(backing) = image.backing() else { break };
        let refused =
            |why: String| Qcow2Error::Backing { name: name.clone(), backing: backing.shown(), why };
        if allow == Allow::Nothing {
            return Err(refused("and backing files are not to be opened".to_owned()));
        }
        if links.len() >= MAX_DEPTH {
            return Err(refused(format!("and there are {MAX_DEPTH} files above it already")));
        }
        let found = folder_of(from).join(local_path(backing).map_err(&refused)?);
        if allow == Allow::Beside {
            let within = std::fs::canonicalize(&root).and_then(|root| {
                std::fs::canonicalize(&found).map(|found| found.starts_with(root))
            });
            match within {
                Ok(true) => {}
                Ok(false) => {
                    return Err(refused(
                        "which is not in the image's folder; allow any backing file if you trust the image"
                            .to_owned(),
                    ));
                }
                Err(error) => return Err(refused(format!("which cannot be found: {error}"))),
            }
        }
        let wanted = match backing.format.as_deref() {
            None => None,
            Some(b"raw" | b"file" | b"host_device") => Some(Format::Raw),
            Some(b"qcow2") => Some(Format::Qcow2),
            Some(_) => return Err(refused("of a format that is neither raw nor qcow2".to_owned())),
        };
        let link = open(&found, wanted).map_err(|error| match error {
            Qcow2Error::Open { source, .. } => refused(format!("which cannot be opened: {source}")),
            other => other,
        })?;
        let id = identity(&link)?;
        if seen.contains(&id) {
            return Err(refused("which stands on it in turn".to_owned()));
        }
        seen.push(id);
        links.push(link);
    }
    Ok(links)
}

/// One disk of a chain, the topmost file first; of that, a snapshot inside it if one is wanted.
pub fn assemble(
    links: Vec<Link>,
    snapshot: Option<&str>,
    cache: &Arc<TableCache>,
) -> Result<Arc<dyn BlockDevice>, Qcow2Error> {
    let top = links.len().saturating_sub(1);
    let mut below: Option<Arc<dyn BlockDevice>> = None;
    for (height, link) in links.into_iter().rev().enumerate() {
        let snapshot = snapshot.filter(|_| height == top);
        let name = link.path.display().to_string();
        let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::of(link.file, &link.path, true)?);
        below = Some(match link.format {
            Format::Raw => match snapshot {
                Some(snapshot) => {
                    let snapshot = snapshot.to_owned();
                    return Err(Qcow2Error::NoSnapshot { name, snapshot });
                }
                None => device,
            },
            Format::Qcow2 => {
                let image = Image::open(name, device)?;
                let below = below.filter(|_| image.backing().is_some());
                Arc::new(image.disk(snapshot, below, cache.clone())?)
            }
        });
    }
    below.ok_or_else(|| Qcow2Error::Refused("a chain of no files is no disk".to_owned()))
}

/// Opens an image, or a raw disk, and what it stands on, as one disk.
pub fn open_disk(
    path: &Path,
    format: Option<Format>,
    allow: Allow,
    snapshot: Option<&str>,
) -> Result<Arc<dyn BlockDevice>, Qcow2Error> {
    assemble(find(path, format, allow)?, snapshot, &Arc::default())
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn device_of(file: &File, path: &Path) -> Result<FileDevice, Qcow2Error> {
    let failed = |source| Qcow2Error::Open { path: path.to_owned(), source };
    Ok(FileDevice::of(file.try_clone().map_err(failed)?, path, true)?)
}

fn open(path: &Path, format: Option<Format>) -> Result<Link, Qcow2Error> {
    let failed = |source| Qcow2Error::Open { path: path.to_owned(), source };
    // Opening a pipe that nobody writes to would wait for ever.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(kiln_block::OpenFileError::NotADisk { path: path.to_owned() }.into());
    }
    let format = match format {
        Some(format) => format,
        None if Image::is_one(&device_of(&file, path)?) => Format::Qcow2,
        None => Format::Raw,
    };
    Ok(Link { path: path.to_owned(), file, format })
}

fn identity(link: &Link) -> Result<(u64, u64), Qcow2Error> {
    let failed = |source| Qcow2Error::Open { path: link.path.clone(), source };
    let found = link.file.metadata().map_err(failed)?;
    Ok((found.dev(), found.ino()))
}

/// The path that an image names; QEMU understands more, such as `nbd://host/` and `json:{…}`.
fn local_path(backing: &BackingFile) -> Result<PathBuf, String> {
    let name = backing.name.strip_prefix(b"file:").unwrap_or(&backing.name);
    let protocol = name.iter().position(|byte| matches!(byte, b':' | b'/'));
    if protocol.is_some_and(|at| name[at] == b':') {
        return Err("which is not the path of a file".to_owned());
    }
    if name.contains(&0) {
        return Err("which no file can be called".to_owned());
    }
    Ok(PathBuf::from(std::ffi::OsStr::from_bytes(name)))
}
