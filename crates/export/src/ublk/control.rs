//! The controller: devices are made, started, stopped and removed through it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::UblkError;
use super::wire::{ANY_DEVICE, Control, Info, Parameters, control};

/// What a device's server notes about itself: `KILN`, then its process.
const OURS: u64 = 0x4b49_4c4e << 32;

/// `/dev/ublk-control`, and the ring through which commands reach it.
pub(super) struct Controller {
    file: File,
    ring: Mutex<IoUring<squeue::Entry128, cqueue::Entry>>,
}

impl Controller {
    pub(super) fn open() -> Result<Controller, UblkError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/ublk-control")
            .map_err(|source| UblkError::NoUblk { source })?;
        let ring = IoUring::builder().build(2).map_err(|source| UblkError::NoRing { source })?;
        Ok(Controller { file, ring: Mutex::new(ring) })
    }

    /// Gives a command and waits for its end. What it reads or fills is `memory`.
    fn command(&self, what: Control, device: u32, memory: &mut [u8], data: u64) -> io::Result<()> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let len = u16::try_from(memory.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let address = match memory.len() {
            0 => 0,
            _ => memory.as_mut_ptr().expose_provenance() as u64,
        };
        let entry = opcode::UringCmd80::new(types::Fd(self.file.as_raw_fd()), what.code())
            .cmd(control(device, address, len, data))
            .build();
        // SAFETY: the command reads and fills nothing but `memory`, which is borrowed until it has ended.
        unsafe { ring.submission().push(&entry) }.map_err(|_| io::ErrorKind::ResourceBusy)?;
        loop {
            match ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if let Some(done) = ring.completion().next() {
                return match done.result() {
                    code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                    _ => Ok(()),
                };
            }
        }
    }

    /// Makes a device, and says what became of it.
    pub(super) fn add(&self, queues: u16, depth: u16, largest_io: u32) -> Result<Info, UblkError> {
        let note = OURS | u64::from(std::process::id());
        let wanted = Info { queues, depth, state: 0, largest_io, device: ANY_DEVICE, note };
        let mut bytes = wanted.to_bytes();
        self.command(Control::Add, ANY_DEVICE, &mut bytes, 0).map_err(|source| {
            match source.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                Some(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => UblkError::NotRoot,
                _ => UblkError::Command { act: "make a ublk device", source },
            }
        })?;
        let info = Info::parse(&bytes);
        if !Info::can_serve(&bytes) {
            self.delete(info.device);
            return Err(UblkError::TooOld);
        }
        Ok(info)
    }

    pub(super) fn set_parameters(&self, device: u32, wanted: Parameters) -> Result<(), UblkError> {
        let mut bytes = wanted.to_bytes();
        self.command(Control::SetParameters, device, &mut bytes, 0)
            .map_err(|source| UblkError::Command { act: "set up a ublk device", source })
    }

    /// Makes the disk appear. Its queues have to be attended already.
    pub(super) fn start(&self, device: u32) -> Result<(), UblkError> {
        self.command(Control::Start, device, &mut [], u64::from(std::process::id()))
            .map_err(|source| UblkError::Command { act: "start a ublk device", source })
    }

    /// Takes the disk away and ends its queues.
    pub(super) fn stop(&self, device: u32) {
        // It has to go whatever becomes of this; a device that is gone is what is wanted.
        let _ = self.command(Control::Stop, device, &mut [], 0);
    }

    /// Removes a device whose queues have ended.
    pub(super) fn delete(&self, device: u32) {
        let _ = self.command(Control::Delete, device, &mut [], 0);
    }

    /// Removes the devices of servers like this one that were killed.
    pub(super) fn clear_dead(&self) {
        let Ok(folder) = std::fs::read_dir("/sys/class/ublk-char") else { return };
        for entry in folder.flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("ublkc")?.parse().ok());
            let Some(device) = number else { continue };
            let mut bytes = [0; Info::LEN];
            if self.command(Control::GetInfo, device, &mut bytes, 0).is_err() {
                continue;
            }
            let Info { note, state, .. } = Info::parse(&bytes);
            if state == 0 && note & !0xffff_ffff == OURS && !lives(note) {
                self.delete(device);
            }
        }
    }
}

/// Whether the process in a note is there.
fn lives(note: u64) -> bool {
    let process = i32::try_from(note & 0xffff_ffff).ok().and_then(rustix::process::Pid::from_raw);
    process.is_some_and(|process| {
        rustix::process::test_kill_process(process) != Err(rustix::io::Errno::SRCH)
    })
}
