//! The first cluster of an image: header, extensions, name of the backing file (`docs/formats/qcow2.md`).
//!
//! Numbers are big-endian.
//!
//! | offset | size | field |
//! |-------:|-----:|-------|
//! | 0 | 4 | `QFI` and 0xfb |
//! | 4 | 4 | version, 2 or 3 |
//! | 8 | 8 + 4 | offset and length of the backing file's name |
//! | 20 | 4 | cluster bits, 9 to 21 |
//! | 24 | 8 | size of the disk |
//! | 32 | 4 | encryption, 0 |
//! | 36 | 4 + 8 | entries and offset of the L1 table |
//! | 48 | 8 + 4 | offset and clusters of the refcount table |
//! | 60 | 4 + 8 | count and offset of the snapshots |
//! | 72 | 8 | features a reader must know |
//! | 80 | 8 | features a writer must know |
//! | 88 | 8 | features that a writer who does not know them clears |
//! | 96 | 4 | refcount order, 0 to 6 |
//! | 100 | 4 | length of the header |
//! | 104 | 1 | compression, 0 deflate, 1 zstd |

use kiln_block::{BlockDevice, ByteOffset};

use crate::Qcow2Error;
use crate::error::shown;

pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of a header of version 2.
const V2_LEN: u32 = 72;
/// Bytes of the header that this build writes.
pub(crate) const HEADER_LEN: usize = 112;
const HEADER_LEN_FIELD: u32 = 112;
/// Bytes of the largest L1 table, and of the largest refcount table.
pub(crate) const MAX_TABLE: u64 = 32 << 20;
/// Extensions are looked for in as much of the first cluster.
const MAX_EXTENSIONS: u64 = 64 << 10;
/// The largest disk; larger ones would overflow what is counted with it.
const MAX_SIZE: u64 = 1 << 60;

pub(crate) const DIRTY: u64 = 1 << 0;
pub(crate) const CORRUPT: u64 = 1 << 1;
pub(crate) const DATA_FILE: u64 = 1 << 2;
pub(crate) const COMPRESSION: u64 = 1 << 3;
pub(crate) const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;

const EXT_END: u32 = 0;
const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_FEATURE_NAMES: u32 = 0x6803_f857;
const EXT_DATA_FILE: u32 = 0x4441_5441;

/// How compressed clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Raw deflate; every version of QEMU reads it.
    Deflate,
    /// Zstandard; QEMU 5.1 and later.
    Zstd,
}

/// What an image names as the disk below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingFile {
    /// As it is written there: a path that counts from the image's folder, or something only QEMU can open.
    pub name: Vec<u8>,
    /// `raw`, `qcow2`, or another one; older images do not say.
    pub format: Option<Vec<u8>>,
}

impl BackingFile {
    /// The name, fit for a terminal.
    pub fn shown(&self) -> String {
        shown(&self.name)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) backing: Option<BackingFile>,
    pub(crate) cluster_bits: u32,
    pub(crate) size: u64,
    pub(crate) l1_entries: u64,
    pub(crate) l1_offset: u64,
    pub(crate) snapshots: u32,
    pub(crate) snapshots_offset: u64,
    pub(crate) incompatible: u64,
    pub(crate) refcount_bits: u32,
    pub(crate) compression: Compression,
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(value)
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(value)
}

/// Whether a device starts like an image.
pub(crate) fn starts_like_one(device: &dyn BlockDevice) -> bool {
    let mut magic = [0; 4];
    device.size().get() >= 4
        && device.read_at(ByteOffset::ZERO, &mut magic).is_ok()
        && magic == MAGIC
}

/// A file and what errors call it.
pub(crate) struct Place<'a> {
    pub(crate) name: &'a str,
    pub(crate) device: &'a dyn BlockDevice,
}

impl Place<'_> {
    /// Bytes of the file; what lies behind its end is zeros, as it is for QEMU.
    pub(crate) fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), Qcow2Error> {
        let size = self.device.size().get();
        let there = size.saturating_sub(at).min(buffer.len() as u64);
        let (there, rest) = buffer.split_at_mut(usize::try_from(there).unwrap_or(0));
        rest.fill(0);
        self.device
            .read_at(ByteOffset::new(at.min(size)), there)
            .map_err(|source| Qcow2Error::Read { name: self.name.to_owned(), source })
    }

    pub(crate) fn damaged(&self, found: impl Into<String>) -> Qcow2Error {
        Qcow2Error::Damaged { name: self.name.to_owned(), found: found.into() }
    }

    pub(crate) fn unsupported(&self, what: impl Into<String>) -> Qcow2Error {
        Qcow2Error::Unsupported { name: self.name.to_owned(), what: what.into() }
    }

    /// A table that starts at a cluster and lies within what an offset can say.
    fn check_table(
        &self,
        what: &str,
        at: u64,
        bytes: u64,
        cluster_bits: u32,
    ) -> Result<(), Qcow2Error> {
        let aligned = at.is_multiple_of(1 << cluster_bits);
        let within = at < self.device.size().get() && at.checked_add(bytes).is_some();
        if bytes > 0 && !(aligned && within && at > 0) {
            let len = self.device.size();
            return Err(self.damaged(format!(
                "the {what} cannot be at byte {at}: it starts at a cluster behind the first, within the file's {len} bytes",
                len = len.get()
            )));
        }
        Ok(())
    }
}

impl Header {
    pub(crate) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(crate) fn extended_l2(&self) -> bool {
        self.incompatible & EXTENDED_L2 != 0
    }

    /// Entries of an L2 table.
    pub(crate) fn l2_entries(&self) -> u64 {
        self.cluster() / if self.extended_l2() { 16 } else { 8 }
    }

    /// How much of the disk one entry of the L1 table tells about.
    pub(crate) fn l2_covers(&self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    pub(crate) fn read(place: &Place<'_>) -> Result<Header, Qcow2Error> {
        if !starts_like_one(place.device) {
            return Err(Qcow2Error::NotQcow2 { name: place.name.to_owned() });
        }
        let mut bytes = [0; HEADER_LEN];
        if place.device.size().get() < u64::from(V2_LEN) {
            return Err(place.damaged("it ends within its header"));
        }
        place.read(0, &mut bytes)?;
        let version = be32(&bytes, 4);
        if version != 2 && version != 3 {
            return Err(Qcow2Error::Version { name: place.name.to_owned(), version });
        }
        let cluster_bits = be32(&bytes, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(place.damaged(format!(
                "clusters of 2^{cluster_bits} bytes; there are those of 2^9 to 2^21"
            )));
        }
        let v3 = version == 3;
        let header_len = if v3 { be32(&bytes, 100) } else { V2_LEN };
        if v3
            && (header_len < 104 || !header_len.is_multiple_of(8) || header_len > 1 << cluster_bits)
        {
            return Err(place.damaged(format!("a header of {header_len} bytes")));
        }
        let incompatible = if v3 { be64(&bytes, 72) } else { 0 };
        let mut header = Header {
            version,
            backing: None,
            cluster_bits,
            size: be64(&bytes, 24),
            l1_entries: u64::from(be32(&bytes, 36)),
            l1_offset: be64(&bytes, 40),
            snapshots: be32(&bytes, 60),
            snapshots_offset: be64(&bytes, 64),
            incompatible,
            refcount_bits: if v3 { be32(&bytes, 96) } else { 4 },
            compression: match bytes[104] {
                1 if v3 && header_len > 104 => Compression::Zstd,
                _ => Compression::Deflate,
            },
        };
        let compression = if v3 && header_len > 104 { bytes[104] } else { 0 };
        header.read_extensions(place, u64::from(header_len), be64(&bytes, 8), be32(&bytes, 16))?;
        header.refuse_unsupported(place, be32(&bytes, 32), compression)?;
        header.check(place, be64(&bytes, 48), u64::from(be32(&bytes, 56)))?;
        Ok(header)
    }

    fn read_extensions(
        &mut self,
        place: &Place<'_>,
        header_len: u64,
        name_at: u64,
        name_len: u32,
    ) -> Result<(), Qcow2Error> {
        let mut format = None;
        let end = if name_at == 0 { self.cluster() } else { name_at };
        let mut bytes =
            vec![0; usize::try_from(end.min(self.cluster()).min(MAX_EXTENSIONS)).unwrap_or(0)];
        place.read(0, &mut bytes)?;
        let mut at = usize::try_from(header_len).unwrap_or(usize::MAX);
        while let Some(head) = at.checked_add(8).and_then(|data| bytes.get(at..data)) {
            let (kind, len) = (be32(head, 0), be32(head, 4) as usize);
            if kind == EXT_END {
                break;
            }
            let data = bytes.get(at + 8..).and_then(|rest| rest.get(..len)).ok_or_else(|| {
                place.damaged(format!("header extension {kind:#x} of {len} bytes does not fit"))
            })?;
            match kind {
                EXT_BACKING_FORMAT => format = Some(data.to_vec()),
                EXT_DATA_FILE if self.incompatible & DATA_FILE != 0 => {
                    return Err(place.unsupported(format!(
                        "its data is in another file, {:?}; `qemu-img convert` makes one file of both",
                        shown(data)
                    )));
                }
                EXT_FEATURE_NAMES if self.incompatible & !KNOWN != 0 => {
                    let names = feature_names(data, self.incompatible & !KNOWN);
                    return Err(place.unsupported(format!(
                        "it uses features this build does not know: {names}"
                    )));
                }
                _ => {}
            }
            at += 8 + len.next_multiple_of(8);
        }
        if name_at != 0 {
            let fits = (1..=1023).contains(&name_len)
                && name_at
                    .checked_add(u64::from(name_len))
                    .is_some_and(|end| end <= self.cluster());
            if !fits {
                return Err(place.damaged(format!(
                    "the backing file's name, {name_len} bytes at byte {name_at}, is not within the first cluster"
                )));
            }
            let mut name = vec![0; name_len as usize];
            place.read(name_at, &mut name)?;
            self.backing = Some(BackingFile { name, format });
        }
        Ok(())
    }

    fn refuse_unsupported(
        &self,
        place: &Place<'_>,
        encryption: u32,
        compression: u8,
    ) -> Result<(), Qcow2Error> {
        let how = match encryption {
            0 => None,
            1 => Some("with AES".to_owned()),
            2 => Some("with LUKS".to_owned()),
            other => Some(format!("in a way this build does not know ({other})")),
        };
        if let Some(how) = how {
            return Err(place.unsupported(format!(
                "it is encrypted {how}; `qemu-img convert` with its secret makes a plain one"
            )));
        }
        if self.incompatible & DATA_FILE != 0 {
            return Err(place.unsupported(
                "its data is in another file, which it does not name; `qemu-img convert` makes one file of both",
            ));
        }
        let unknown = self.incompatible & !KNOWN;
        if unknown != 0 {
            return Err(place.unsupported(format!(
                "it uses features this build does not know: {}",
                feature_names(&[], unknown)
            )));
        }
        if compression > 1 {
            return Err(place.unsupported(format!(
                "it is compressed in a way this build does not know ({compression})"
            )));
        }
        if (self.incompatible & COMPRESSION != 0) != (compression != 0) {
            return Err(place.damaged("its compression and its features contradict each other"));
        }
        if self.extended_l2() && self.cluster_bits < 14 {
            return Err(place.damaged("subclusters in clusters of less than 16384 bytes"));
        }
        Ok(())
    }

    fn check(
        &self,
        place: &Place<'_>,
        refcounts_at: u64,
        refcount_clusters: u64,
    ) -> Result<(), Qcow2Error> {
        if self.refcount_bits > 6 {
            return Err(place.damaged(format!("refcounts of 2^{} bits", self.refcount_bits)));
        }
        if self.size > MAX_SIZE {
            return Err(place.damaged(format!("a disk of {} bytes", self.size)));
        }
        let refcount_bytes = refcount_clusters << self.cluster_bits;
        if refcount_bytes > MAX_TABLE || refcount_bytes == 0 {
            return Err(place.damaged(format!("a refcount table of {refcount_clusters} clusters")));
        }
        place.check_table("refcount table", refcounts_at, refcount_bytes, self.cluster_bits)?;
        self.check_l1(place, self.l1_offset, self.l1_entries, self.size)?;
        if self.snapshots > 0 {
            place.check_table("snapshot table", self.snapshots_offset, 1, self.cluster_bits)?;
        }
        Ok(())
    }

    /// Whether an L1 table can be where it is said to be, and tells about a whole disk.
    pub(crate) fn check_l1(
        &self,
        place: &Place<'_>,
        at: u64,
        entries: u64,
        size: u64,
    ) -> Result<(), Qcow2Error> {
        if entries * 8 > MAX_TABLE {
            return Err(place.damaged(format!("an L1 table of {entries} entries")));
        }
        let needs = size.div_ceil(self.l2_covers());
        if entries < needs {
            return Err(place.damaged(format!(
                "its L1 table has {entries} entries, a disk of {size} bytes needs {needs}"
            )));
        }
        place.check_table("L1 table", at, entries * 8, self.cluster_bits)
    }
}

/// What the header of a new image says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewHeader {
    pub(crate) cluster_bits: u32,
    pub(crate) size: u64,
    pub(crate) l1_entries: u32,
    pub(crate) l1_offset: u64,
    pub(crate) refcounts_at: u64,
    pub(crate) refcount_clusters: u32,
    pub(crate) compression: Compression,
}

impl NewHeader {
    /// The header, and the end of its extensions, of which there are none.
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN + 8] {
        let mut bytes = [0; HEADER_LEN + 8];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC);
        put(4, &3_u32.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &self.l1_entries.to_be_bytes());
        put(40, &self.l1_offset.to_be_bytes());
        put(48, &self.refcounts_at.to_be_bytes());
        put(56, &self.refcount_clusters.to_be_bytes());
        if self.compression == Compression::Zstd {
            put(72, &COMPRESSION.to_be_bytes());
            put(104, &[1]);
        }
        put(96, &4_u32.to_be_bytes());
        put(100, &HEADER_LEN_FIELD.to_be_bytes());
        bytes
    }
}

/// What the image itself calls the features of these bits.
fn feature_names(table: &[u8], bits: u64) -> String {
    let names = (0..64_u8).filter(|bit| bits >> bit & 1 != 0).map(|bit| {
        let row = table.chunks_exact(48).find(|row| row[0] == 0 && row[1] == bit);
        let name = row.map(|row| row[2..].split(|byte| *byte == 0).next().unwrap_or(&[]));
        match name.filter(|name| !name.is_empty()) {
            Some(name) => format!("{:?} (bit {bit})", shown(name)),
            None => format!("bit {bit}"),
        }
    });
    names.collect::<Vec<_>>().join(", ")
}
