//! What QEMU is given to boot: the `vmlinux` inside the boot image, if it has a PVH entry, else the
//! boot image itself. PVH skips firmware, real mode and the kernel's own decompressor.

use std::fs;
use std::path::{Path, PathBuf};

use object::elf;
use object::read::elf::{FileHeader, ProgramHeader};

use super::cache::write_whole;
use super::{Kernel, KernelCache, KernelError, boot_image};

/// The note by which a kernel says where its PVH entry is (Xen's `elfnote.h`).
const XEN_ELFNOTE_PHYS32_ENTRY: elf::NoteType = elf::NoteType(18);

/// A file for QEMU's `-kernel`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootFile {
    /// An ELF kernel with a PVH entry.
    Vmlinux(PathBuf),
    /// The boot image, and why it must be that.
    BzImage(PathBuf, String),
}

impl BootFile {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            BootFile::Vmlinux(path) | BootFile::BzImage(path, _) => path,
        }
    }
}

impl Kernel {
    /// The fastest file to boot this kernel from. Unpacks the boot image into the cache the first
    /// time; later it only looks there. A kernel that cannot be unpacked, or has no PVH entry, is
    /// no error: it boots as it is.
    pub fn boot_file(&self, cache: &KernelCache) -> Result<BootFile, KernelError> {
        let unpacked = cache.vmlinux(&self.digest);
        if unpacked.exists() {
            return Ok(BootFile::Vmlinux(unpacked));
        }
        let refusal = unpacked.with_extension("refused");
        if let Ok(why) = fs::read_to_string(&refusal) {
            return Ok(BootFile::BzImage(self.image.clone(), why));
        }
        let image =
            fs::read(&self.image).map_err(|source| KernelError::io("read", &self.image, source))?;
        let plain = boot_image::vmlinux(&image).and_then(|plain| {
            let entry = has_pvh_entry(&plain);
            entry.then_some(plain).ok_or_else(|| "it has no PVH entry (CONFIG_PVH)".to_owned())
        });
        match plain {
            Ok(plain) => {
                write_whole(&unpacked, &plain, None)?;
                Ok(BootFile::Vmlinux(unpacked))
            }
            Err(why) => {
                write_whole(&refusal, why.as_bytes(), None)?;
                Ok(BootFile::BzImage(self.image.clone(), why))
            }
        }
    }
}

/// Whether an ELF kernel has a PVH entry.
pub fn has_pvh_entry(vmlinux: &[u8]) -> bool {
    let find = || -> object::Result<bool> {
        let header = elf::FileHeader64::<object::LittleEndian>::parse(vmlinux)?;
        let endian = header.endian()?;
        for segment in header.program_headers(endian, vmlinux)? {
            let Some(mut notes) = segment.notes(endian, vmlinux)? else { continue };
            while let Some(note) = notes.next()? {
                if note.name() == b"Xen" && note.n_type(endian) == XEN_ELFNOTE_PHYS32_ENTRY {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    };
    find().unwrap_or(false)
}
