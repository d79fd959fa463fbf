//! The appliance of a run: the kernel as QEMU boots it, and the image with the guest's content.

use std::path::PathBuf;

use kiln_image::cache::{
    BuiltImage, ForeseenImage, GuestExecutable, ImageError, ImageRequest, ImageStore,
};
use kiln_image::kernel::{BootFile, Kernel, KernelCache, KernelError};
use kiln_image::manifest::{Contents, ManifestSource};
use kiln_model::RunId;
use kiln_model::event::{Happening, NoteLevel};
use kiln_model::job::Disk;
use kiln_model::plan::JobPlaces;

use crate::load::Loaded;

/// Where things are kept, and what becomes the guest's process 1.
#[derive(Clone, Debug)]
pub struct Stores {
    /// Fetched kernels, unpacked boot files, module indexes.
    pub kernels: KernelCache,
    /// Images.
    pub images: ImageStore,
    /// The guest's executable.
    pub guest: GuestExecutable,
}

/// What a job boots. Holds a lease on the image, so it must live as long as the run.
#[derive(Debug)]
pub struct Equipment {
    /// The image.
    pub image: BuiltImage,
    /// The kernel file QEMU gets.
    pub boot: PathBuf,
    /// The modules that are loaded before the first stage.
    pub modules: Vec<String>,
    notes: Vec<String>,
}

/// Why there is no appliance.
#[derive(Debug, thiserror::Error)]
pub enum EquipError {
    /// The kernel cannot be prepared.
    #[error("cannot prepare the kernel")]
    Kernel(#[from] KernelError),
    /// The image cannot be built.
    #[error("cannot build the image of {scenario}")]
    Image {
        /// Whose.
        scenario: String,
        /// Why not.
        source: Box<ImageError>,
    },
}

/// What the image of a scenario is asked for with.
pub fn image_request(loaded: &Loaded, kernel: &Kernel, stores: &Stores) -> ImageRequest {
    let (kernel, kernels) = (kernel.clone(), stores.kernels.clone());
    ImageRequest::new(manifest_of(loaded), kernel, kernels, stores.guest.clone())
}

fn manifest_of(loaded: &Loaded) -> ManifestSource {
    ManifestSource::of_scenario(loaded.source.clone(), loaded.text.clone(), loaded.folder.clone())
}

fn image_trouble(loaded: &Loaded, error: ImageError) -> EquipError {
    EquipError::Image { scenario: loaded.source.clone(), source: Box::new(error) }
}

/// What the image of a scenario would be on a kernel, without building it; mistakes of the manifest and missing
/// files are found as [`equip`] finds them.
pub fn foresee(
    loaded: &Loaded,
    kernel: &Kernel,
    stores: &Stores,
) -> Result<ForeseenImage, EquipError> {
    let request = image_request(loaded, kernel, stores);
    stores.images.foresee(&request).map_err(|error| image_trouble(loaded, error))
}

/// Finds or builds what a scenario boots on a kernel.
pub fn equip(loaded: &Loaded, kernel: &Kernel, stores: &Stores) -> Result<Equipment, EquipError> {
    let boot_file = kernel.boot_file(&stores.kernels)?;
    let image = stores
        .images
        .get_or_build(&image_request(loaded, kernel, stores))
        .map_err(|error| image_trouble(loaded, error))?;
    let mut notes = image.notes.clone();
    if let BootFile::BzImage(_, why) = &boot_file {
        notes.push(format!("the kernel boots from its bzImage, which takes longer: {why}"));
    }
    let boot = boot_file.path().to_owned();
    // The image was resolved from the same includes, so this finds them too.
    let modules = Contents::load(&manifest_of(loaded))
        .map_err(|error| image_trouble(loaded, error.into()))?
        .required_modules();
    Ok(Equipment { image, boot, modules, notes })
}

impl Equipment {
    /// What to tell after `run-started`.
    pub fn happenings(&self) -> Vec<Happening> {
        let ready = Happening::ImageReady {
            key: self.image.key.clone(),
            cached: self.image.cached,
            bytes: self.image.bytes,
            took_ms: u64::try_from(self.image.took.as_millis()).unwrap_or(u64::MAX),
        };
        let notes = self
            .notes
            .iter()
            .map(|text| Happening::Note { level: NoteLevel::Info, text: text.clone() });
        std::iter::once(ready).chain(notes).collect()
    }

    /// What a job spec needs of this, beside its disks.
    pub fn places(
        &self,
        run: RunId,
        folder: PathBuf,
        pool: Option<PathBuf>,
        disks: Vec<Disk>,
    ) -> JobPlaces {
        JobPlaces {
            run,
            folder,
            boot: self.boot.clone(),
            initramfs: self.image.path.clone(),
            modules: self.modules.clone(),
            pool,
            disks,
        }
    }
}
