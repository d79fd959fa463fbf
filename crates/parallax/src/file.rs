//! Pools in files.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, DeviceError, FileDevice};
use rustix::fs::{FlockOperation, flock};

use crate::PoolError;
use crate::format::{BLOCK_LEN, Layout};
use crate::grow::STEP;
use crate::open::{self, PoolOptions};
use crate::opened::Opened;
use crate::pool::Pool;

fn lock(path: &Path) -> Result<File, PoolError> {
    let failed = |source| PoolError::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(PoolError::Busy { path: path.to_owned() }),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// The file's name is durable, too.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

impl Pool {
    /// Makes a pool in a new file. It starts small, with all its space taken from the filesystem, and takes more as it is
    /// needed, until it has `most`.
    pub fn create_file(
        path: &Path,
        most: ByteLen,
        options: &PoolOptions,
    ) -> Result<Pool, PoolError> {
        let layout = Layout::new(most, most, options.log);
        let options = PoolOptions { limit: most, ..options.clone() };
        // The free map's part beyond the first blocks stays a hole until the pool is that large.
        let start = ByteLen::new(layout.data_start * BLOCK_LEN).min(most);
        let device = FileDevice::create(path, start)?;
        let made = lock(path).and_then(|lock| {
            let size = ByteLen::new((layout.data_start + STEP) * BLOCK_LEN).min(most);
            device.grow(size).map_err(|source| match source {
                DeviceError::NoSpace { .. } => PoolError::NoSpace,
                source => PoolError::Device { act: "make", source },
            })?;
            open::format(&device, &options)?;
            let failed = |source| PoolError::File { path: path.to_owned(), source };
            sync_folder(path).map_err(failed)?;
            let core = open::open(Arc::new(device), &options, false)?;
            Ok(Pool { core: Opened::new(core, Some(lock)) })
        });
        if made.is_err() {
            // Nobody can have use for a part of it.
            let _ = std::fs::remove_file(path);
        }
        made
    }

    /// Opens a pool in a file or on a block device; refused while another process has it open.
    pub fn open_file(path: &Path, options: &PoolOptions) -> Result<Pool, PoolError> {
        let lock = lock(path)?;
        let device = FileDevice::open(path, false)?;
        let core = open::open(Arc::new(device), options, false)?;
        Ok(Pool { core: Opened::new(core, Some(lock)) })
    }
}
