//! What an image is to be: an initramfs with everything, a root disk, or the little that leads to one.

use kiln_block::ByteLen;

use crate::inventory::{Inventory, Node};
use crate::modules::{Driver, ModuleError, Modules, Wanted};

/// An image whose files have more bytes than this becomes a root disk, if it may become either: a larger initramfs
/// takes longer to unpack than a root disk to find, and its memory for good.
pub const LARGEST_INITRAMFS: ByteLen = ByteLen::mib(32);

/// What leads to a root disk, besides its file system: the bus, the disk, and what makes it look writable.
const WAY: [&str; 3] = ["virtio_pci", "virtio_blk", "overlay"];
/// What leads to the host: the way to a root of another kernel is none to its modules.
const CHANNEL: &str = "virtio_console";
/// Drivers that read the disk, the one with less to load first.
const FILE_SYSTEMS: [&str; 2] = ["ext2", "ext4"];

/// What an image is asked to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// An initramfs or a root disk, by its size ([`LARGEST_INITRAMFS`]) and what the kernel can do.
    #[default]
    Auto,
    /// An initramfs.
    Initramfs,
    /// A root disk with this much room for more.
    Root {
        /// Free space.
        free: ByteLen,
    },
    /// The guest's init and the modules between the kernel and a root disk. What the manifest says is not asked.
    Initrd,
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An archive that the kernel unpacks into memory.
    Initramfs,
    /// The plan of a root disk (`docs/formats/root-plan.md`).
    Root,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Kind; 2] = [Kind::Initramfs, Kind::Root];

    /// How its file's name ends in the store.
    pub fn extension(self) -> &'static str {
        match self {
            Kind::Initramfs => "cpio",
            Kind::Root => "root",
        }
    }
}

impl Form {
    /// Feeds it to the digest of a request.
    pub(super) fn feed(self, digest: &mut blake3::Hasher) {
        let (word, free) = match self {
            Form::Auto => (b'a', 0),
            Form::Initramfs => (b'i', 0),
            Form::Root { free } => (b'r', free.get()),
            Form::Initrd => (b'd', 0),
        };
        digest.update(&[word]);
        digest.update(&free.to_le_bytes());
    }

    /// The room for more that a root disk gets.
    pub(super) fn free(self) -> ByteLen {
        match self {
            Form::Root { free } => free,
            _ => ByteLen::new(0),
        }
    }
}

/// How large all files together are.
pub(super) fn bytes_of(inventory: &Inventory) -> u64 {
    let sizes = inventory.entries().map(|(_, entry)| match &entry.node {
        Node::File(content) => content.len(),
        _ => 0,
    });
    sizes.sum()
}

/// The drivers that a kernel needs to get to a root disk.
pub(super) fn way_to_root(modules: &Modules) -> Result<Vec<Wanted>, ModuleError> {
    let mut built_in = None;
    let mut loadable = None;
    for name in FILE_SYSTEMS {
        match modules.driver(name)? {
            Driver::BuiltIn => built_in = built_in.or(Some(name)),
            Driver::Module => loadable = loadable.or(Some(name)),
            Driver::Absent | Driver::Unknown => {}
        }
    }
    // Where it has neither, the error names the one that most kernels have.
    let file_system = built_in.or(loadable).unwrap_or("ext4");
    let way = WAY.into_iter().chain([file_system]).map(Wanted::required);
    Ok(way.chain([Wanted::optional(CHANNEL)]).collect())
}

/// Whether a kernel can get to a root disk; no where nothing says.
pub(super) fn can_reach_root(modules: &Modules) -> Result<bool, ModuleError> {
    for wanted in way_to_root(modules)?.into_iter().filter(|wanted| !wanted.optional) {
        if !matches!(modules.driver(&wanted.name)?, Driver::BuiltIn | Driver::Module) {
            return Ok(false);
        }
    }
    Ok(true)
}
