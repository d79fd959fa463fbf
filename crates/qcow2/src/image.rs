//! [`Image`]: one file, without what lies below it.

use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, ReadOnly};

use crate::header::{self, CORRUPT, DIRTY, Header, Place};
use crate::snapshot::{self, SnapshotInfo};
use crate::tables::TableCache;
use crate::view::{Disk, View};
use crate::{BackingFile, Compression, Qcow2Error};

/// An image that was opened: its header and its snapshots make sense.
pub struct Image {
    pub(crate) name: String,
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) header: Header,
    snapshots: Vec<SnapshotInfo>,
}

/// What an image says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo {
    /// 2 or 3.
    pub version: u32,
    /// How large the disk is.
    pub size: ByteLen,
    /// The unit in which it is stored.
    pub cluster: ByteLen,
    /// How compressed clusters are compressed, if there are any.
    pub compression: Compression,
    /// Whether clusters consist of 32 parts.
    pub extended_l2: bool,
    /// Whoever wrote to it did not close it: its refcounts may be wrong, which do not matter to a reader.
    pub dirty: bool,
    /// Somebody found it damaged, and marked it.
    pub corrupt: bool,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Image {
    /// Whether a device starts like an image. A raw disk can as well, if somebody wrote an image to it.
    pub fn is_one(device: &dyn BlockDevice) -> bool {
        header::starts_like_one(device)
    }

    /// Opens an image; `name` is what errors call it.
    pub fn open(
        name: impl Into<String>,
        device: Arc<dyn BlockDevice>,
    ) -> Result<Image, Qcow2Error> {
        let name = name.into();
        let place = Place { name: &name, device: &*device };
        let header = Header::read(&place)?;
        let snapshots = snapshot::read(&place, &header)?;
        Ok(Image { name, device, header, snapshots })
    }

    /// What it says about itself.
    pub fn info(&self) -> ImageInfo {
        ImageInfo {
            version: self.header.version,
            size: ByteLen::new(self.header.size),
            cluster: ByteLen::new(self.header.cluster()),
            compression: self.header.compression,
            extended_l2: self.header.extended_l2(),
            dirty: self.header.incompatible & DIRTY != 0,
            corrupt: self.header.incompatible & CORRUPT != 0,
        }
    }

    /// What it names as the disk below it.
    pub fn backing(&self) -> Option<&BackingFile> {
        self.header.backing.as_ref()
    }

    /// The snapshots inside it.
    pub fn snapshots(&self) -> &[SnapshotInfo] {
        &self.snapshots
    }

    /// The disk, as it is or as a snapshot (its name or id) has it, over what lies below. An image that names a
    /// backing file needs one; where that is shorter than the disk, zeros follow it.
    pub fn disk(
        self,
        snapshot: Option<&str>,
        below: Option<Arc<dyn BlockDevice>>,
        cache: Arc<TableCache>,
    ) -> Result<Disk, Qcow2Error> {
        if let (Some(backing), None) = (self.backing(), &below) {
            let (name, backing) = (self.name.clone(), backing.shown());
            return Err(Qcow2Error::NeedsBacking { name, backing });
        }
        let (size, l1_offset, l1_entries) = match snapshot {
            None => (self.header.size, self.header.l1_offset, self.header.l1_entries),
            Some(wanted) => {
                let by_name = self.snapshots.iter().find(|found| found.name == wanted);
                let found = by_name.or_else(|| self.snapshots.iter().find(|it| it.id == wanted));
                let found = found.ok_or_else(|| Qcow2Error::NoSnapshot {
                    name: self.name.clone(),
                    snapshot: wanted.to_owned(),
                })?;
                (found.size, found.l1_offset, found.l1_entries)
            }
        };
        Ok(ReadOnly(View::new(self, (size, l1_offset, l1_entries), below, cache)))
    }
}
