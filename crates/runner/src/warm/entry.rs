//! A saved machine on disk (`docs/formats/warm.md`): its head and devices in one file, its memory in another.
//!
//! | offset | size | field       | meaning                                                        |
//! |-------:|-----:|-------------|----------------------------------------------------------------|
//! |      0 |    8 | magic       | `89 4b 57 4d 0d 0a 1a 0a`                                      |
//! |      8 |    4 | version     | 1; readers refuse any other                                    |
//! |     12 |    4 | about       | length of the description                                      |
//! |     16 |    8 | state       | length of the devices' state                                   |
//! |     24 |    8 | memory      | length of the memory's file                                    |
//! |     32 |    8 | inode       | of the memory's file                                           |
//! |     40 |   16 | modified    | when that was last modified, in nanoseconds since 1970         |
//! |     56 |   32 | digest      | blake3 of the 56 bytes before, the description and the state   |
//! |     88 |      | description | JSON, for people                                               |
//! |        |      | state       | what QEMU's migration sends for the devices                    |
//!
//! The memory is too long to be read before each start, so that it is the file that was written, and was not written to
//! since, is what is checked.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use kiln_model::job::JobSpec;
use serde::{Deserialize, Serialize};

pub(super) const MAGIC: [u8; 8] = [0x89, b'K', b'W', b'M', 0x0d, 0x0a, 0x1a, 0x0a];
pub(super) const VERSION: u32 = 1;
const SIGNED: usize = 56;
const HEAD: usize = 88;
/// The longest description.
const MAX_ABOUT: usize = 64 << 10;
/// The longest file that is read.
pub(super) const MAX_ENTRY: u64 = (HEAD + MAX_ABOUT + kiln_vm::MAX_DEVICE_STATE) as u64;

/// What a saved machine is, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The kernel's release.
    pub kernel: String,
    /// The stage after which it was saved; none where its agent had just become ready.
    pub after: Option<String>,
    /// Its memory.
    pub memory: u64,
    /// Its processors.
    pub cpus: u8,
    /// Seconds since 1970.
    pub saved_at: u64,
    /// During which boot of this host: in another one it is not restored.
    pub boot: String,
    /// What it takes on disk.
    pub bytes: u64,
    /// Where its disks were kept, if they were: the pool, and what their names there begin with.
    pub disks: Option<(std::path::PathBuf, String)>,
}

impl About {
    /// What is known of a job's machine before it is saved.
    pub(crate) fn of(job: &JobSpec) -> About {
        About {
            kernel: job.kernel.identity.release.clone(),
            after: None,
            memory: job.machine.memory,
            cpus: job.machine.cpus,
            saved_at: 0,
            boot: String::new(),
            bytes: 0,
            disks: None,
        }
    }
}

/// The file of a machine's memory as it was when it was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryFile {
    len: u64,
    inode: u64,
    modified: i128,
}

impl MemoryFile {
    pub(super) fn of(file: &Metadata) -> MemoryFile {
        let modified = i128::from(file.mtime()) * 1_000_000_000 + i128::from(file.mtime_nsec());
        MemoryFile { len: file.len(), inode: file.ino(), modified }
    }
}

/// A saved machine without its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) about: About,
    pub(super) memory: MemoryFile,
    pub(super) state: Vec<u8>,
}

/// Why bytes are no saved machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    #[error("it is cut short")]
    Short,
    #[error("it is no saved machine")]
    Magic,
    #[error("it has format {0}, and this build reads {VERSION}")]
    Version(u32),
    #[error("its lengths do not add up")]
    Lengths,
    #[error("its digest is another")]
    Digest,
    #[error("its description cannot be read")]
    About,
}

fn digest(head: &[u8], rest: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(head).update(rest).finalize()
}

impl Entry {
    pub(super) fn encode(&self) -> Vec<u8> {
        // Plain data with string keys: there is nothing in it that JSON could not say.
        let about = serde_json::to_vec(&self.about).unwrap_or_default();
        let mut bytes = Vec::with_capacity(HEAD + about.len() + self.state.len());
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(u32::try_from(about.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend((self.state.len() as u64).to_le_bytes());
        bytes.extend(self.memory.len.to_le_bytes());
        bytes.extend(self.memory.inode.to_le_bytes());
        bytes.extend(self.memory.modified.to_le_bytes());
        let rest = [about, self.state.clone()].concat();
        let digest = digest(&bytes, &rest);
        bytes.extend(digest.as_bytes());
        bytes.extend(rest);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Entry, Damage> {
        let (head, rest) = bytes.split_at_checked(HEAD).ok_or(Damage::Short)?;
        if head[..8] != MAGIC {
            return Err(Damage::Magic);
        }
        let mut fields = Fields(&head[8..]);
        match fields.u32() {
            VERSION => {}
            other => return Err(Damage::Version(other)),
        }
        let about = usize::try_from(fields.u32()).map_err(|_| Damage::Lengths)?;
        let state = usize::try_from(fields.u64()).map_err(|_| Damage::Lengths)?;
        let memory = MemoryFile { len: fields.u64(), inode: fields.u64(), modified: fields.i128() };
        if about > MAX_ABOUT || about.checked_add(state) != Some(rest.len()) {
            return Err(Damage::Lengths);
        }
        if digest(&head[..SIGNED], rest).as_bytes()[..] != head[SIGNED..] {
            return Err(Damage::Digest);
        }
        let (about, state) = rest.split_at(about);
        let about = serde_json::from_slice(about).map_err(|_| Damage::About)?;
        Ok(Entry { about, memory, state: state.to_vec() })
    }
}

/// Little-endian numbers of a head, whose length was checked.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const COUNT: usize>(&mut self) -> [u8; COUNT] {
        let mut bytes = [0; COUNT];
        if let Some((first, rest)) = self.0.split_at_checked(COUNT) {
            bytes.copy_from_slice(first);
            self.0 = rest;
        }
        bytes
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn i128(&mut self) -> i128 {
        i128::from_le_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> Entry {
        Entry {
            about: About {
                kernel: "6.12.0".into(),
                after: Some("prepare".into()),
                memory: 512 << 20,
                cpus: 2,
                saved_at: 1_800_000_000,
                boot: "5d0c".into(),
                bytes: 80 << 20,
                disks: None,
            },
            memory: MemoryFile { len: 512 << 20, inode: 77, modified: 1_800_000_000_123_456_789 },
            state: (0_u8..=255).cycle().take(5000).collect(),
        }
    }

    #[test]
    fn a_saved_machine_reads_as_it_was_written() {
        let bytes = entry().encode();
        assert_eq!(bytes[..12], [0x89, b'K', b'W', b'M', 13, 10, 26, 10, 1, 0, 0, 0]);
        assert_eq!(bytes[24..32], (512_u64 << 20).to_le_bytes());
        assert_eq!(Entry::decode(&bytes).unwrap(), entry());
    }

    #[test]
    fn a_later_format_is_named() {
        let mut bytes = entry().encode();
        bytes[8] = 2;
        let error = Entry::decode(&bytes).unwrap_err();
        assert_eq!(error.to_string(), "it has format 2, and this build reads 1");
    }

    proptest! {
        #[test]
        fn one_wrong_bit_anywhere_is_noticed(at in 0..5000_usize, bit in 0..8) {
            let mut bytes = entry().encode();
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(Entry::decode(&bytes).is_err());
        }

        #[test]
        fn a_cut_is_noticed_and_nothing_panics(
            cut in 0..5000_usize,
            noise in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let bytes = entry().encode();
            prop_assert!(Entry::decode(&bytes[..cut]).is_err());
            prop_assert!(Entry::decode(&noise).is_err());
        }
    }
}
