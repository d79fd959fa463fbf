//! What an image is asked for with, and its resolution to an inventory.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::ImageError;
use super::archives::Unpacking;
use super::form::{self, Form, Kind, bytes_of};
use super::lock::Lease;
use crate::base::BaseError;
use crate::closure::host::Input;
use crate::closure::{Closure, ClosureError, HostError};
use crate::inventory::{Content, Entry, GuestPath, Inventory, Node, Owner, Stamp, feed_bytes};
use crate::kernel::{Kernel, KernelCache};
use crate::manifest::{Contents, ManifestSource, Part};
use crate::modules::{Modules, Wanted};

/// Grows whenever the same inventory would give another image, or memos another meaning.
pub(super) const FORMAT: u32 = 2;

/// Where the guest's init lies: the first place the kernel looks in an initramfs.
const INIT: &str = "/init";

/// Drivers of every machine Kiln makes: they come along where the kernel has them as modules.
const MACHINE_MODULES: [&str; 4] = ["virtio_pci", "virtio_console", "virtio_blk", "virtio_rng"];

/// File systems stamp changes with a clock that ticks this often at the slowest.
const TICK: Duration = Duration::from_millis(20);

/// What an image is asked for with. The same request gives the same image for as long as nothing it
/// looks at changes.
#[derive(Clone, Debug)]
pub struct ImageRequest {
    /// What the guest should hold.
    pub manifest: ManifestSource,
    /// The kernel that will boot it.
    pub kernel: Kernel,
    /// Where the kernel's index and uncompressed modules are kept.
    pub kernels: KernelCache,
    /// What becomes `/init`.
    pub guest: GuestExecutable,
    /// Modification time of every entry, in seconds since 1970; see [`modified_from_environment`].
    pub modified: u32,
    /// The directory taken for `/` when binaries and libraries are looked up.
    pub root: PathBuf,
    /// What the image is to be.
    pub form: Form,
}

/// The executable that becomes the guest's process 1.
#[derive(Clone, Debug)]
pub enum GuestExecutable {
    /// A file of this machine.
    File(PathBuf),
    /// Its bytes.
    Bytes(Arc<[u8]>),
}

/// The modification time of entries that `SOURCE_DATE_EPOCH` asks for, and zero without it.
pub fn modified_from_environment() -> u32 {
    let wanted = std::env::var("SOURCE_DATE_EPOCH").ok();
    wanted.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// An inventory, and all that was looked at to make it.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) inventory: Inventory,
    pub(super) inputs: Vec<Input>,
    pub(super) kind: Kind,
    /// Unpacked archives that some of the inventory's files lie in: their keys, and what keeps them.
    pub(super) archives: Vec<(String, Lease)>,
}

/// Where the modules are that lead to a root disk, and the file that names them in the order of loading.
const DRIVERS: &str = "/drivers";
const DRIVERS_ORDER: &str = "/drivers/order";

impl ImageRequest {
    /// A request for this machine's files, with the time the environment asks for.
    pub fn new(
        manifest: ManifestSource,
        kernel: Kernel,
        kernels: KernelCache,
        guest: GuestExecutable,
    ) -> ImageRequest {
        let modified = modified_from_environment();
        let (root, form) = (PathBuf::from("/"), Form::Initramfs);
        ImageRequest { manifest, kernel, kernels, guest, modified, root, form }
    }

    /// The same, for an image of another form.
    #[must_use]
    pub fn as_form(self, form: Form) -> ImageRequest {
        ImageRequest { form, ..self }
    }

    /// Works out what the image will hold, without building it. Files from compressed archives are read into memory.
    pub fn inventory(&self) -> Result<Inventory, ImageError> {
        Ok(self.resolve_settled(None)?.inventory)
    }

    /// What tells this request from others, before any file is looked at.
    pub(super) fn digest(&self) -> blake3::Hash {
        let mut digest = blake3::Hasher::new();
        digest.update(&FORMAT.to_le_bytes());
        digest.update(&self.modified.to_le_bytes());
        feed_bytes(&mut digest, env!("CARGO_PKG_VERSION").as_bytes());
        self.form.feed(&mut digest);
        if self.form != Form::Initrd {
            feed_bytes(&mut digest, self.manifest.text.as_bytes());
            feed_bytes(&mut digest, self.manifest.name.as_bytes());
            digest.update(&[u8::from(self.manifest.part == Part::GuestTable)]);
            // Relative sources depend on where the process is.
            let folder = self.manifest.folder.as_deref().map(std::path::absolute);
            feed_path(&mut digest, folder.and_then(Result::ok).as_deref());
        }
        self.feed_kernel(&mut digest);
        feed_path(&mut digest, self.kernel.modules.as_deref());
        feed_path(&mut digest, Some(&self.root));
        match &self.guest {
            GuestExecutable::File(path) => feed_path(&mut digest, Some(path)),
            GuestExecutable::Bytes(bytes) => drop(digest.update(blake3::hash(bytes).as_bytes())),
        }
        digest.finalize()
    }

    /// The key of the image that holds `inventory`.
    pub(super) fn key(&self, resolved: &Resolved) -> blake3::Hash {
        let mut digest = blake3::Hasher::new();
        digest.update(&FORMAT.to_le_bytes());
        if resolved.kind == Kind::Root {
            feed_bytes(&mut digest, b"root");
            digest.update(&self.form.free().get().to_le_bytes());
        }
        digest.update(&self.modified.to_le_bytes());
        self.feed_kernel(&mut digest);
        resolved.inventory.feed(&mut digest);
        digest.finalize()
    }

    /// Resolves, and does so again if a file changed so recently that a further change might leave
    /// the same times behind. After that, whoever changes a file also changes its stamp.
    pub(super) fn resolve_settled(&self, store: Option<&Path>) -> Result<Resolved, ImageError> {
        let resolved = self.resolve(store)?;
        let now = SystemTime::now();
        let youngest = resolved.inputs.iter().filter_map(|input| input.age(now)).min();
        match youngest {
            Some(age) if age < TICK => {
                std::thread::sleep(TICK);
                self.resolve(store)
            }
            _ => Ok(resolved),
        }
    }

    /// Resolves once. Archives are unpacked into the store below a folder, if there is one.
    pub(super) fn resolve(&self, store: Option<&Path>) -> Result<Resolved, ImageError> {
        if self.form == Form::Initrd {
            return self.resolve_initrd();
        }
        let contents = Contents::load(&self.manifest)?;
        let mut inputs = Vec::new();
        for path in &contents.looked_at {
            inputs.push(look(path)?);
        }
        let mut unpacking = Unpacking::new(store);
        let base = self.base(&contents, &mut inputs, &mut unpacking)?;
        let mut closure = Closure::of(&self.root, &contents, base)?;
        self.add_modules(&contents, &mut closure, &mut inputs)?;
        for wanted in &contents.manifest.firmware {
            closure.firmware(wanted, &self.kernel.release)?;
        }
        closure.place(&contents)?;
        // Whatever the manifest excludes or places there: without it nothing boots.
        self.add_init(&mut closure.inventory, &mut inputs)?;
        inputs.extend(closure.host.inputs());
        let kind = match self.form {
            Form::Root { .. } => Kind::Root,
            Form::Auto => self.better_kind(&closure.inventory)?,
            Form::Initramfs | Form::Initrd => Kind::Initramfs,
        };
        if kind == Kind::Root {
            add_modprobe(&mut closure.inventory)?;
        }
        Ok(Resolved { inventory: closure.inventory, inputs, kind, archives: unpacking.held })
    }

    /// What lies below everything else.
    fn base(
        &self,
        contents: &Contents,
        inputs: &mut Vec<Input>,
        unpacking: &mut Unpacking<'_>,
    ) -> Result<Inventory, ImageError> {
        let base = contents.base();
        if base.is_empty() {
            return Ok(Inventory::default());
        }
        let tree = base.gather(&self.root, inputs, &mut |archive| unpacking.plain(archive));
        let inventory = tree.and_then(|tree| tree.into_inventory().map_err(BaseError::from));
        let inventory = inventory.map_err(ClosureError::Base)?;
        for path in unpacking.paths() {
            inputs.push(look(&path)?);
        }
        Ok(inventory)
    }

    fn better_kind(&self, inventory: &Inventory) -> Result<Kind, ImageError> {
        if bytes_of(inventory) <= form::LARGEST_INITRAMFS.get() {
            return Ok(Kind::Initramfs);
        }
        let modules = Modules::open(&self.kernel, &self.kernels)?;
        Ok(if form::can_reach_root(&modules)? { Kind::Root } else { Kind::Initramfs })
    }

    fn add_init(
        &self,
        inventory: &mut Inventory,
        inputs: &mut Vec<Input>,
    ) -> Result<(), ImageError> {
        let content = match &self.guest {
            GuestExecutable::Bytes(bytes) => Content::Bytes(Arc::clone(bytes)),
            GuestExecutable::File(path) => {
                inputs.push(look(path)?);
                host_content(path, inputs)?
            }
        };
        put_file(inventory, INIT, 0o755, content)
    }

    /// The init, and the modules it loads to get to the root disk.
    fn resolve_initrd(&self) -> Result<Resolved, ImageError> {
        let (mut inventory, mut inputs) = (Inventory::default(), Vec::new());
        self.add_init(&mut inventory, &mut inputs)?;
        self.look_at_index(&mut inputs)?;
        let modules = Modules::open(&self.kernel, &self.kernels)?;
        let set = modules.closure(&form::way_to_root(&modules)?)?;
        let mut order = String::new();
        for module in &set.modules {
            inputs.push(look(&module.source)?);
            let content = host_content(&module.plain, &mut inputs)?;
            put_file(&mut inventory, &format!("{DRIVERS}/{}.ko", module.name), 0o644, content)?;
            order.push_str(&module.name);
            order.push_str(".ko\n");
        }
        put_file(&mut inventory, DRIVERS_ORDER, 0o644, Content::Bytes(order.into_bytes().into()))?;
        Ok(Resolved { inventory, inputs, kind: Kind::Initramfs, archives: Vec::new() })
    }

    fn look_at_index(&self, inputs: &mut Vec<Input>) -> Result<(), ImageError> {
        if let Some(folder) = &self.kernel.modules {
            for name in INDEX_FILES {
                inputs.push(look(&folder.join(name))?);
            }
        }
        Ok(())
    }

    fn add_modules(
        &self,
        contents: &Contents,
        closure: &mut Closure<'_>,
        inputs: &mut Vec<Input>,
    ) -> Result<(), ImageError> {
        self.look_at_index(inputs)?;
        let mut wanted: Vec<Wanted> = MACHINE_MODULES.map(Wanted::optional).to_vec();
        wanted.extend(
            contents
                .manifest
                .modules
                .iter()
                .map(|module| Wanted { name: module.name.clone(), optional: module.optional }),
        );
        let modules = Modules::open(&self.kernel, &self.kernels)?;
        let set = modules.closure(&wanted)?;
        for module in &set.modules {
            inputs.push(look(&module.source)?);
            let content = host_content(&module.plain, inputs)?;
            closure.put_file(&guest_path(&module.guest_path)?, 0o644, content)?;
        }
        for firmware in &set.firmware {
            let content = host_content(&firmware.plain, inputs)?;
            closure.put_file(&guest_path(&firmware.guest_path)?, 0o644, content)?;
        }
        for file in set.index {
            let content = Content::Bytes(file.bytes.into());
            closure.put_file(&guest_path(&file.guest_path)?, 0o644, content)?;
        }
        // When it appears, it belongs into the image.
        for name in &set.missing_firmware {
            for folder in ["updates", &self.kernel.release, ""] {
                for ending in ["", ".xz", ".zst"] {
                    let folder = Path::new("/lib/firmware").join(folder);
                    inputs.push(look(&folder.join(format!("{name}{ending}")))?);
                }
            }
        }
        let asked = |name: &&String| contents.manifest.modules.iter().any(|m| m.name == **name);
        for name in set.absent.iter().filter(asked) {
            closure
                .inventory
                .notes
                .push(format!("{name} left out: this kernel has no such module"));
        }
        for name in &set.missing_firmware {
            closure.inventory.notes.push(format!("firmware {name} is not on this machine"));
        }
        Ok(())
    }

    fn feed_kernel(&self, digest: &mut blake3::Hasher) {
        feed_bytes(digest, self.kernel.release.as_bytes());
        feed_bytes(digest, self.kernel.digest.as_bytes());
        feed_bytes(digest, self.kernel.source.word().as_bytes());
    }
}

/// The files of a module directory that decide which modules an image gets.
const INDEX_FILES: [&str; 7] = [
    "modules.dep",
    "modules.alias",
    "modules.softdep",
    "modules.weakdep",
    "modules.builtin",
    "modules.builtin.modinfo",
    "modules.order",
];

/// The kernel calls `/sbin/modprobe`; where the image has none, the init is one. The guest would make the link itself, on
/// top of a disk that cannot be written.
fn add_modprobe(inventory: &mut Inventory) -> Result<(), ImageError> {
    let wanted = inventory
        .place(&guest_path("/sbin/modprobe")?)
        .map_err(crate::closure::ClosureError::from)?;
    if inventory.get(&wanted).is_none() {
        let link = Entry {
            owner: Owner::ROOT,
            permissions: 0o777,
            node: Node::Symlink(INIT.as_bytes().to_vec()),
        };
        inventory.put(wanted, link).map_err(crate::closure::ClosureError::from)?;
    }
    Ok(())
}

fn put_file(
    inventory: &mut Inventory,
    path: &str,
    permissions: u32,
    content: Content,
) -> Result<(), ImageError> {
    let entry = Entry { owner: Owner::ROOT, permissions, node: Node::File(content) };
    Ok(inventory.put(guest_path(path)?, entry).map_err(crate::closure::ClosureError::from)?)
}

fn guest_path(path: &str) -> Result<GuestPath, ImageError> {
    Ok(GuestPath::new(path).map_err(crate::closure::ClosureError::from)?)
}

fn feed_path(digest: &mut blake3::Hasher, path: Option<&Path>) {
    match path {
        Some(path) => feed_bytes(digest, path.as_os_str().as_encoded_bytes()),
        None => drop(digest.update(b"none")),
    }
}

fn look(path: &Path) -> Result<Input, ImageError> {
    Input::look(path, false).map_err(|source| cannot_look(path, source))
}

/// A file of this machine that is there; links to it are followed.
fn host_content(path: &Path, inputs: &mut Vec<Input>) -> Result<Content, ImageError> {
    let path = std::fs::canonicalize(path).map_err(|source| cannot_look(path, source))?;
    let meta = std::fs::symlink_metadata(&path).map_err(|source| cannot_look(&path, source))?;
    if !meta.is_file() {
        return Err(cannot_look(&path, io::Error::other("it is not a regular file")));
    }
    let stamp = Stamp::of(&meta);
    inputs.push(Input { path: path.clone(), listed: false, stamp: Some(stamp) });
    Ok(Content::Host { path, stamp })
}

fn cannot_look(path: &Path, source: io::Error) -> ImageError {
    let error = HostError { act: "look at", path: path.to_owned(), source };
    ImageError::Closure(error.into())
}
