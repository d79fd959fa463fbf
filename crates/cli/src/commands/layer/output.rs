//! Files that appear when they are complete.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};

/// The folder a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file beside the output, so that it takes its place at once.
pub(crate) fn begin(path: &Path) -> Result<NamedTempFile, Failure> {
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let text = format!("{} is not a regular file", path.display());
        return Err(Failure::new(Exit::Usage, text).hint("name a new file after --output"));
    }
    tempfile::Builder::new()
        .prefix(".kiln-layer-")
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(folder_of(path))
        .tried(|| format!("cannot write {}", path.display()))
        .exits(Exit::Setup)
}

/// Makes it durable, then gives it its name.
pub(crate) fn finish(file: NamedTempFile, path: &Path) -> Result<(), Failure> {
    let tried = || format!("cannot write {}", path.display());
    file.as_file().sync_all().tried(tried).exits(Exit::InfrastructureBroke)?;
    file.persist(path).tried(tried).exits(Exit::Setup)?;
    sync(folder_of(path))
}

/// Makes a file or a folder durable.
pub(crate) fn sync(path: &Path) -> Result<(), Failure> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .tried(|| format!("cannot sync {}", path.display()))
        .exits(Exit::InfrastructureBroke)
}
