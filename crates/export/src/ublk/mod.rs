//! Serves a disk as a block device of the running kernel (`docs/formats/ublk.md`), where that has `ublk_drv`: Linux
//! 6.5 or newer. It takes root.
//!
//! ```no_run
//! use std::sync::Arc;
//! use kiln_block::{ByteLen, MemoryDevice};
//! use kiln_export::{Export, ublk};
//!
//! let disk = Arc::new(MemoryDevice::new(ByteLen::gib(1)));
//! let device = ublk::Device::start(&Export::new(disk))?;
//! println!("{}", device.path().display());
//! # Ok::<(), ublk::UblkError>(())
//! ```

mod control;
mod helpers;
mod queue;
mod wire;
mod work;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};

use crate::Export;
use control::Controller;
use queue::Queue;
use wire::Parameters;

/// Queues of a device at most; each has a thread, and helpers while the disk makes its callers wait.
const MOST_QUEUES: usize = 4;
/// Requests that wait in one queue.
const DEPTH: u16 = 64;
/// The largest read or write.
const LARGEST_IO: u32 = 512 << 10;

/// A block device of the kernel that ends when it is stopped or dropped.
pub struct Device {
    path: PathBuf,
    number: u32,
    controller: Controller,
    queues: Vec<JoinHandle<()>>,
}

/// Why a disk is not a block device.
#[derive(Debug, thiserror::Error)]
pub enum UblkError {
    /// The kernel has no such devices, or this user no access to them.
    #[error(
        "cannot open /dev/ublk-control: it takes root and Linux 6.5, and perhaps `modprobe ublk_drv`"
    )]
    NoUblk {
        /// The cause.
        source: io::Error,
    },
    /// This user may not.
    #[error("a ublk device takes root: serve the disk over NBD or FUSE instead")]
    NotRoot,
    /// The kernel's ublk is the first one.
    #[error("this kernel's ublk is too old: it takes Linux 6.5")]
    TooOld,
    /// Commands travel through io_uring.
    #[error("io_uring is not allowed here: see the sysctl kernel.io_uring_disabled")]
    NoRing {
        /// The cause.
        source: io::Error,
    },
    /// The disk has less than one sector.
    #[error("a disk of less than 512 bytes cannot be a block device")]
    TooSmall,
    /// The kernel refused.
    #[error("cannot {act}")]
    Command {
        /// `make a ublk device`, `start a ublk device`.
        act: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl Device {
    /// Makes a block device of a disk, in threads of its own.
    ///
    /// Its size stays what it is now, in whole sectors of 512 bytes. Devices of processes that were killed
    /// are removed first.
    pub fn start(export: &Export) -> Result<Device, UblkError> {
        let sectors = export.device().size().get() / 512;
        if sectors == 0 {
            return Err(UblkError::TooSmall);
        }
        let controller = Controller::open()?;
        controller.clear_dead();
        let queues =
            thread::available_parallelism().map_or(1, |count| count.get().min(MOST_QUEUES));
        let info = controller.add(u16::try_from(queues).unwrap_or(1), DEPTH, LARGEST_IO)?;
        let path = PathBuf::from(format!("/dev/ublkb{}", info.device));
        // From here on, dropping it removes what was made.
        let mut device = Device { path, number: info.device, controller, queues: Vec::new() };
        let read_only = export.is_read_only();
        let wanted = Parameters { sectors, read_only, largest_io: info.largest_io };
        device.controller.set_parameters(info.device, wanted)?;
        device.attend_queues(info, export)?;
        device.controller.start(info.device)?;
        Ok(device)
    }

    fn attend_queues(&mut self, info: wire::Info, export: &Export) -> Result<(), UblkError> {
        let failed = |act| move |source| UblkError::Command { act, source };
        let file = open_when_there(&format!("/dev/ublkc{}", info.device))
            .map_err(failed("open a ublk device"))?;
        let file = Arc::new(file);
        let (ready, outcomes) = sync_channel(usize::from(info.queues));
        for number in 0..info.queues {
            let (file, ready) = (Arc::clone(&file), ready.clone());
            let device = Arc::clone(export.device());
            let attend = move || {
                let (depth, largest_io) = (info.depth, info.largest_io);
                Queue { file: &file, device: device.as_ref(), number, depth, largest_io }
                    .attend(ready);
            };
            let thread = thread::Builder::new().name("ublk".to_owned()).spawn(attend);
            self.queues.push(thread.map_err(failed("start a thread for a ublk device"))?);
        }
        drop(ready);
        for outcome in outcomes {
            outcome.map_err(failed("attend a ublk device"))?;
        }
        Ok(())
    }

    /// The block device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the block device away, also from those who use it: they get errors from now on. What a mounted
    /// file system had not written yet is written first, as the kernel does when a disk is unplugged.
    pub fn stop(self) {
        drop(self);
    }
}

/// Takes the block device away as [`stop`](Device::stop) does.
impl Drop for Device {
    fn drop(&mut self) {
        self.controller.stop(self.number);
        for queue in self.queues.drain(..) {
            // A queue catches what panics in the disk.
            let _ = queue.join();
        }
        self.controller.delete(self.number);
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Opens a file that the kernel or `udev` is about to make.
fn open_when_there(path: &str) -> io::Result<File> {
    let mut left = 100;
    loop {
        match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && left > 0 => {
                left -= 1;
                thread::sleep(std::time::Duration::from_millis(20));
            }
            opened => return opened,
        }
    }
}
