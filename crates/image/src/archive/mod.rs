//! Files that hold files: tar archives, compressed or not, and container images kept in folders or archives.

mod image;
mod stretch;

pub use image::{ContainerImage, Reference};
pub use stretch::{ArchiveError, Stretch, StretchReader};

/// What a path holds, by its looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looks {
    /// A container image: an OCI layout, or an archive that `docker save` or `skopeo copy` made.
    ContainerImage,
    /// A directory that is none.
    Directory,
    /// A tar archive, compressed or not.
    Tar,
    /// None of these.
    Other,
}

impl Looks {
    /// Looks at a path.
    pub fn of(path: &std::path::Path) -> Result<Looks, ArchiveError> {
        if path.is_dir() {
            let is_layout = path.join("oci-layout").is_file();
            return Ok(if is_layout { Looks::ContainerImage } else { Looks::Directory });
        }
        let archive = Stretch::open(path)?;
        if !archive.is_packed()? && image::is_archive(&archive)? {
            return Ok(Looks::ContainerImage);
        }
        Ok(if archive.is_packed()? || archive.is_tar()? { Looks::Tar } else { Looks::Other })
    }
}
