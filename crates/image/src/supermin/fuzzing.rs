//! What a fuzzer needs of the files of an appliance: nothing else reads them alone.

use std::path::Path;

use super::SuperminError;
use super::glob::{excludes, glob};
use super::input::Appliance;

/// Reads an appliance as a build does, and says how many files of a system it names and does not exclude.
pub fn read(appliance: &Path, system: &Path) -> Result<usize, SuperminError> {
    let read = Appliance::read(&[appliance.to_owned()], &mut |_| {})?;
    let found = glob(system, &read.host_files);
    let stays = |path: &&std::path::PathBuf| {
        !read.excluded.iter().any(|pattern| excludes(pattern, path.as_os_str()))
    };
    Ok(found.paths.iter().filter(stays).count())
}
