//! The appliance of a run: the kernel as QEMU boots it, and the image with the guest's content.

use std::path::PathBuf;

use kiln_block::ByteLen;
use kiln_image::cache::{
    BuiltImage, ForeseenImage, Form, GuestExecutable, ImageError, ImageRequest, ImageStore, Kind,
};
use kiln_image::kernel::{BootFile, Kernel, KernelCache, KernelError};
use kiln_image::manifest::{Contents, ManifestSource};
use kiln_model::RunId;
use kiln_model::event::{Happening, NoteLevel};
use kiln_model::job::Disk;
use kiln_model::plan::JobPlaces;
use kiln_model::root::{JobRoot, ROOT_SERIAL, RootChoice};

use crate::load::Loaded;
use crate::roots::ROOM;

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

/// What a job boots. Holds leases on the images, so it must live as long as the run.
#[derive(Debug)]
pub struct Equipment {
    /// The image with the guest's content.
    pub image: BuiltImage,
    /// Where that is a root disk: the initramfs that leads to it.
    pub initrd: Option<BuiltImage>,
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
    root: RootChoice,
) -> Result<ForeseenImage, EquipError> {
    let request = image_request(loaded, kernel, stores).as_form(form(root));
    stores.images.foresee(&request).map_err(|error| image_trouble(loaded, error))
}

fn form(root: RootChoice) -> Form {
    match root {
        RootChoice::Auto => Form::Auto,
        RootChoice::Initramfs => Form::Initramfs,
        RootChoice::Disk => Form::Root { free: ByteLen::new(0) },
        RootChoice::Clone => Form::Root { free: ROOM },
    }
}

/// Finds or builds what a scenario boots on a kernel, with its root where it is wanted.
pub fn equip(
    loaded: &Loaded,
    kernel: &Kernel,
    stores: &Stores,
    root: RootChoice,
) -> Result<Equipment, EquipError> {
    let boot_file = kernel.boot_file(&stores.kernels)?;
    let request = image_request(loaded, kernel, stores).as_form(form(root));
    let found = |request: &ImageRequest| {
        stores.images.get_or_build(request).map_err(|error| image_trouble(loaded, error))
    };
    let image = found(&request)?;
    let mut notes = image.notes.clone();
    let initrd = match image.kind {
        Kind::Initramfs => None,
        Kind::Root => {
            let disk = image.disk.unwrap_or_default();
            notes.push(format!("the root is a disk of {disk}, none of which is written anywhere"));
            Some(found(&request.as_form(Form::Initrd))?)
        }
    };
    if let BootFile::BzImage(_, why) = &boot_file {
        notes.push(format!("the kernel boots from its bzImage, which takes longer: {why}"));
    }
    let boot = boot_file.path().to_owned();
    // The image was resolved from the same includes, so this finds them too.
    let modules = Contents::load(&manifest_of(loaded))
        .map_err(|error| image_trouble(loaded, error.into()))?
        .required_modules();
    Ok(Equipment { image, initrd, boot, modules, notes })
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
        let root = if disks.iter().any(|disk| disk.serial == ROOT_SERIAL) {
            JobRoot::Disk
        } else if self.image.kind == Kind::Root {
            JobRoot::Plan { plan: self.image.path.clone() }
        } else {
            JobRoot::Initramfs
        };
        JobPlaces {
            run,
            folder,
            boot: self.boot.clone(),
            initramfs: self.initrd.as_ref().unwrap_or(&self.image).path.clone(),
            root,
            warm: None,
            modules: self.modules.clone(),
            pool,
            disks,
        }
    }
}
