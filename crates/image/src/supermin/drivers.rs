//! The initramfs of an appliance: process 1 and the modules between a kernel and its root disk, with a list of which is
//! for what device (`docs/formats/appliance.md`).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use kiln_model::module_index::{IndexText, ModuleIndex, module_name};

use super::{Bootable, SuperminError};
use crate::cache::GuestExecutable;
use crate::initramfs;
use crate::inventory::{Content, Entry, GuestPath, Inventory, Node, Owner, Stamp};
use crate::kernel::Kernel;
use crate::modules::{ModuleSet, Modules, Wanted};

/// Buses and disks that machines of QEMU have. Each is loaded where there is such a device.
const DEVICES: [&str; 14] = [
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_scsi",
    "virtio_pmem",
    "nd_pmem",
    "nfit",
    "nvme",
    "ahci",
    "ata_piix",
    "sd_mod",
    // Not disks, but wanted by nearly every appliance; here they are plain, in the root disk perhaps compressed.
    "virtio_console",
    "virtio_rng",
    "virtio_net",
];
/// File systems that read ext2, the best first.
const FILE_SYSTEMS: [&str; 2] = ["ext2", "ext4"];

/// Where process 1 finds the list.
const LIST: &str = "/kiln-drivers";
const LIST_MAGIC: &str = "kiln drivers 1\n";
/// Where the modules are.
const FOLDER: &str = "/modules";

/// What an initramfs will hold.
#[derive(Debug)]
pub(super) struct Drivers {
    inventory: Inventory,
    /// How many modules are in it.
    pub(super) modules: usize,
}

impl Drivers {
    pub(super) fn choose(kernel: &Kernel, bootable: &Bootable) -> Result<Drivers, SuperminError> {
        let modules = Modules::open(kernel, &bootable.kernels)?.with_firmware_from(Vec::new());
        let wanted: Vec<Wanted> =
            DEVICES.iter().chain(&FILE_SYSTEMS).map(|name| Wanted::optional(*name)).collect();
        // A kernel with ext2's own driver needs no other.
        let own = modules.closure(&[Wanted::optional(FILE_SYSTEMS[0])])?;
        let wanted = if own.absent.is_empty() { &wanted[..wanted.len() - 1] } else { &wanted[..] };
        let set = modules.closure(wanted)?;
        let mut inventory = Inventory::default();
        let directory = || Entry { owner: Owner::ROOT, permissions: 0o755, node: Node::Directory };
        for folder in ["/dev", "/proc", "/sys", "/root", FOLDER] {
            inventory.add(GuestPath::new(folder)?, directory())?;
        }
        // The kernel opens it for process 1 before that can mount anything.
        let console = Entry {
            owner: Owner::ROOT,
            permissions: 0o600,
            node: Node::CharDevice { major: 5, minor: 1 },
        };
        inventory.add(GuestPath::new("/dev/console")?, console)?;
        let init = Node::File(match &bootable.guest {
            GuestExecutable::Bytes(bytes) => Content::Bytes(bytes.clone()),
            GuestExecutable::File(path) => host_file(path)?,
        });
        inventory.add(
            GuestPath::new("/init")?,
            Entry { owner: Owner::ROOT, permissions: 0o755, node: init },
        )?;
        for module in &set.modules {
            let entry = Entry {
                owner: Owner::ROOT,
                permissions: 0o644,
                node: Node::File(host_file(&module.plain)?),
            };
            inventory.add(GuestPath::new(place(&module.name))?, entry)?;
        }
        let list = Node::File(Content::Bytes(list(&set)?.into_bytes().into()));
        inventory.add(
            GuestPath::new(LIST)?,
            Entry { owner: Owner::ROOT, permissions: 0o644, node: list },
        )?;
        Ok(Drivers { inventory, modules: set.modules.len() })
    }

    pub(super) fn write(&self, path: &Path, modified: u32) -> Result<(), SuperminError> {
        let file =
            File::create(path).map_err(|source| SuperminError::host("write", path, source))?;
        initramfs::write(&self.inventory, modified, file)?;
        Ok(())
    }
}

fn place(module: &str) -> String {
    format!("{FOLDER}/{module}.ko")
}

fn host_file(path: &Path) -> Result<Content, SuperminError> {
    let path = std::fs::canonicalize(path)
        .map_err(|source| SuperminError::host("look at", path, source))?;
    let meta = std::fs::symlink_metadata(&path)
        .map_err(|source| SuperminError::host("look at", &path, source))?;
    Ok(Content::Host { path, stamp: Stamp::of(&meta) })
}

/// What to load for which device, each in an order in which it can be loaded.
fn list(set: &ModuleSet) -> Result<String, SuperminError> {
    let text = |name: &str| {
        let found = set.index.iter().find(|file| file.guest_path.ends_with(&format!("/{name}")));
        found.map_or(String::new(), |file| String::from_utf8_lossy(&file.bytes).into_owned())
    };
    let (dep, alias) = (text("modules.dep"), text("modules.alias"));
    let (softdep, weakdep) = (text("modules.softdep"), text("modules.weakdep"));
    let index = IndexText {
        dep: &dep,
        alias: &alias,
        softdep: &softdep,
        weakdep: &weakdep,
        ..IndexText::default()
    };
    // Made a moment ago.
    let Ok(index) = ModuleIndex::parse(&index) else { return Ok(LIST_MAGIC.to_owned()) };
    let order = |name: &str| -> Vec<String> {
        let (mut seen, mut order) = (std::collections::HashSet::new(), Vec::new());
        if let kiln_model::module_index::Resolution::Modules(paths) = index.resolve(name) {
            for path in paths {
                // Circles would have been noticed when the set was made.
                let _ = index.plan(path, &mut seen, &mut order);
            }
        }
        order.iter().map(|path| place(&module_name(path))).collect()
    };
    let mut list = LIST_MAGIC.to_owned();
    for name in FILE_SYSTEMS {
        for path in order(name) {
            list.push_str(&format!("needed {path}\n"));
        }
    }
    let mut orders: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (pattern, name) in index.aliases() {
        let paths = orders.entry((*name).to_owned()).or_insert_with(|| order(name));
        let names_a_device = pattern.contains(':') && !pattern.contains(char::is_whitespace);
        if names_a_device && !paths.is_empty() {
            list.push_str(&format!("alias {pattern} {}\n", paths.join(" ")));
        }
    }
    Ok(list)
}
