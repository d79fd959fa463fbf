//! The appliance of a run: the kernel as QEMU boots it, and the image with the guest's content.

use std::path::PathBuf;

use kiln_block::ByteLen;
use kiln_image::cache::{
    BuiltImage, ForeseenImage, Form, GuestExecutable, ImageError, ImageRequest, ImageStore, Kind,
};
use kiln_image::kernel::{BootFile, Kernel, KernelCache, KernelError};
use kiln_image::manifest::{Contents, ManifestSource};
use kiln_image::modules::{Driver, ModuleError, Modules};
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
    /// Where that is a root disk: the initramfs that leads to it, unless the kernel gets there by itself.
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
    /// What says which drivers are part of the kernel cannot be read.
    #[error("cannot tell whether the kernel mounts a root disk by itself")]
    Drivers(#[from] ModuleError),
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
            // A disk that is written to cannot be mounted twice, which it would be then.
            let alone = root != RootChoice::Clone && mounts_root_alone(kernel, &stores.kernels)?;
            match alone {
                true => None,
                false => Some(found(&request.as_form(Form::Initrd))?),
            }
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

    /// What the kernel unpacks first; nothing where it mounts its root by itself.
    pub fn initramfs(&self) -> Option<&PathBuf> {
        match (&self.initrd, self.image.kind) {
            (Some(initrd), _) => Some(&initrd.path),
            (None, Kind::Initramfs) => Some(&self.image.path),
            (None, Kind::Root) => None,
        }
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
            initramfs: self.initramfs().cloned(),
            root,
            warm: None,
            modules: self.modules.clone(),
            pool,
            disks,
        }
    }
}

/// Whether all that leads to a root disk is a part of the kernel: then there is nothing for an initramfs to do.
fn mounts_root_alone(kernel: &Kernel, cache: &KernelCache) -> Result<bool, ModuleError> {
    let modules = Modules::open(kernel, cache)?;
    let has = |name| modules.driver(name).map(|driver| driver == Driver::BuiltIn);
    for name in ["virtio_pci", "virtio_blk", "overlay"] {
        if !has(name)? {
            return Ok(false);
        }
    }
    // ext4's driver reads ext2, too.
    Ok(has("ext2")? || has("ext4")?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kiln_image::kernel::KernelSource;

    use super::*;

    #[test]
    fn a_kernel_needs_no_initramfs_where_the_whole_way_to_its_root_is_built_in() {
        let folder = tempfile::tempdir().unwrap();
        let modules = folder.path().join("modules");
        fs::create_dir(&modules).unwrap();
        let kernel = Kernel {
            release: "6.0.0-test".to_owned(),
            digest: "00".repeat(32),
            image: PathBuf::from("/nonexistent"),
            modules: Some(modules.clone()),
            source: KernelSource::Package,
        };
        let cache = KernelCache::new(folder.path().join("cache"));
        let alone = |built_in: &[&str]| {
            let lines: String =
                built_in.iter().map(|name| format!("kernel/drivers/{name}.ko\n")).collect();
            fs::write(modules.join("modules.builtin"), lines).unwrap();
            mounts_root_alone(&kernel, &cache).unwrap()
        };
        assert!(!alone(&[]));
        assert!(!alone(&["virtio_blk", "ext4", "overlay"]), "there is no bus");
        assert!(!alone(&["virtio_pci", "virtio_blk", "overlay"]), "nothing reads the disk");
        assert!(alone(&["virtio_pci", "virtio_blk", "ext4", "overlay"]));
        assert!(alone(&["virtio-pci", "virtio-blk", "ext2", "overlay"]));
        let unknown = Kernel { modules: None, ..kernel.clone() };
        assert!(!mounts_root_alone(&unknown, &cache).unwrap(), "nothing says what it has");
    }
}
