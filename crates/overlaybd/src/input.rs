//! Where a layer's bytes come from: a part of some disk, with the name people know it by.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, FileDevice};

use crate::LayerError;
use crate::error::failed;

/// Bytes that do not change, and their name in errors. Cheap to clone.
#[derive(Clone)]
pub struct Input {
    name: Arc<str>,
    device: Arc<dyn BlockDevice>,
    base: u64,
    len: u64,
}

impl Input {
    /// All of a disk.
    pub fn new(name: &str, device: Arc<dyn BlockDevice>) -> Input {
        let len = device.size().get();
        Input { name: name.into(), device, base: 0, len }
    }

    /// All of a file.
    pub fn open(path: &Path) -> Result<Input, LayerError> {
        let name = path.display().to_string();
        let device = FileDevice::open(path, true)
            .map_err(|error| failed("open", &name)(std::io::Error::other(error)))?;
        Ok(Input::new(&name, Arc::new(device)))
    }

    /// Its name in errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many bytes there are.
    pub fn size(&self) -> ByteLen {
        ByteLen::new(self.len)
    }

    /// How many bytes there are, as a bare number.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// A part of it, cut to what exists. Positions in errors stay those of the whole.
    pub(crate) fn window(&self, at: u64, len: u64) -> Input {
        let at = at.min(self.len);
        Input {
            name: Arc::clone(&self.name),
            device: Arc::clone(&self.device),
            base: self.base + at,
            len: len.min(self.len - at),
        }
    }

    /// Fills a buffer; for content, whose readers are disks themselves.
    pub(crate) fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        kiln_block::check_range(self.size(), ByteOffset::new(at), ByteLen::of(buffer))?;
        self.device.read_at(ByteOffset::new(self.base + at), buffer)
    }

    /// Fills a buffer with a structure of the format named `what`.
    pub(crate) fn read(&self, at: u64, buffer: &mut [u8], what: &str) -> Result<(), LayerError> {
        let size = buffer.len();
        match at.checked_add(size as u64) {
            Some(end) if end <= self.len => self.read_at(at, buffer).map_err(|source| {
                LayerError::Device { name: self.name.to_string(), at: self.base + at, source }
            }),
            _ => Err(self.damaged(
                at,
                format!(
                    "{what} of {size} bytes reaches past the end at {}",
                    self.position(self.len)
                ),
            )),
        }
    }

    /// Says that what was read of a range is wrong; see [`BlockDevice::distrust`].
    pub(crate) fn distrust(&self, at: u64, len: u64) -> bool {
        self.device.distrust(ByteOffset::new(self.position(at)), ByteLen::new(len))
    }

    /// A broken rule at a place of this input.
    pub(crate) fn damaged(&self, at: u64, rule: impl Into<String>) -> LayerError {
        LayerError::Damaged {
            name: self.name.to_string(),
            at: self.position(at),
            rule: rule.into(),
        }
    }

    /// A place of this input, counted from where the named file starts.
    pub(crate) fn position(&self, at: u64) -> u64 {
        self.base.saturating_add(at)
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Input({} {}+{})", self.name, self.base, self.len)
    }
}

/// The little-endian `u32` at `at` of a structure whose size was checked; zero past its end.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
}

/// The little-endian `u64` at `at` of a structure whose size was checked; zero past its end.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word))
}
