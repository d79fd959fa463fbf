//! What is served, by name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use kiln_block::BlockDevice;

/// The longest name or description the protocol carries, in bytes.
pub(crate) const LONGEST_STRING: usize = 4096;

/// A disk and how it is given out.
#[derive(Clone)]
pub struct Export {
    device: Arc<dyn BlockDevice>,
    description: String,
    read_only: bool,
}

/// Why a disk was not added to the served ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddExportError {
    /// Another disk has the name.
    #[error("a disk named {name:?} is served already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Clients could not ask for it.
    #[error("a served disk's name may have {LONGEST_STRING} bytes, and this one has {len}")]
    NameTooLong {
        /// How long it is.
        len: usize,
    },
}

impl Export {
    /// Gives out a disk for reading, and for writing if the disk allows it.
    pub fn new(device: Arc<dyn BlockDevice>) -> Export {
        let read_only = device.is_read_only();
        Export { device, description: String::new(), read_only }
    }

    /// Gives it out for reading only.
    #[must_use]
    pub fn read_only(mut self) -> Export {
        self.read_only = true;
        self
    }

    /// Says more about the disk to clients that ask; cut where the protocol's limit is.
    #[must_use]
    pub fn described(mut self, text: &str) -> Export {
        self.description = text[..text.floor_char_boundary(LONGEST_STRING)].to_owned();
        self
    }

    /// The disk.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// What clients are told about it.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only || self.device.is_read_only()
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("size", &self.device.size())
            .field("read_only", &self.is_read_only())
            .field("description", &self.description)
            .finish_non_exhaustive()
    }
}

/// The disks that are served, shared with every server that serves them. Disks come and go while
/// servers run; a client that has a disk keeps it until it hangs up.
#[derive(Debug, Clone, Default)]
pub struct Exports(Arc<RwLock<BTreeMap<String, Export>>>);

impl Exports {
    /// No disk yet.
    pub fn new() -> Exports {
        Exports::default()
    }

    /// Just this one.
    pub fn one(name: &str, export: Export) -> Result<Exports, AddExportError> {
        let exports = Exports::new();
        exports.add(name, export)?;
        Ok(exports)
    }

    /// Lets clients ask for a disk.
    pub fn add(&self, name: &str, export: Export) -> Result<(), AddExportError> {
        if name.len() > LONGEST_STRING {
            return Err(AddExportError::NameTooLong { len: name.len() });
        }
        let mut exports = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if exports.contains_key(name) {
            return Err(AddExportError::NameTaken { name: name.to_owned() });
        }
        exports.insert(name.to_owned(), export);
        Ok(())
    }

    /// Stops giving a disk to new clients, and returns it.
    pub fn remove(&self, name: &str) -> Option<Export> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name)
    }

    /// The names, in order.
    pub fn names(&self) -> Vec<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// The disk of exactly this name.
    pub fn get(&self, name: &str) -> Option<Export> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// A disk and its name. The empty name is the only disk's, where there is just one.
    pub(crate) fn find(&self, name: &str) -> Option<(String, Export)> {
        let exports = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let found = match exports.get_key_value(name) {
            None if name.is_empty() && exports.len() == 1 => exports.first_key_value(),
            found => found,
        };
        found.map(|(name, export)| (name.clone(), export.clone()))
    }

    /// Names and descriptions, in order of the names.
    pub(crate) fn list(&self) -> Vec<(String, String)> {
        let exports = self.0.read().unwrap_or_else(PoisonError::into_inner);
        exports
            .iter()
            .map(|(name, export)| (name.clone(), export.description().to_owned()))
            .collect()
    }
}
