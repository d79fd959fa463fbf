//! [`View`]: the disk in an image, or one of its snapshots, over what lies below.

use std::sync::{Arc, Mutex, PoisonError};

use kiln_block::{
    BlockDevice, BlockSource, ByteLen, ByteOffset, DeviceError, Extent, ExtentKind, Extents,
    ReadOnly,
};

use crate::entry::{Content, l2_offset};
use crate::header::{Header, Place, be64};
use crate::tables::{PAGE, TableCache};
use crate::{Image, Qcow2Error, compressed};

/// The disk in an image, as a device.
pub type Disk = ReadOnly<View>;

/// The disk in an image, or one of its snapshots.
pub struct View {
    name: String,
    device: Arc<dyn BlockDevice>,
    header: Header,
    size: u64,
    l1_offset: u64,
    l1_entries: u64,
    below: Option<Arc<dyn BlockDevice>>,
    cache: Arc<TableCache>,
    owner: u64,
    /// The compressed cluster that was read last, by where it is: others may want the rest of it.
    unpacked: Mutex<Option<(u64, Arc<Vec<u8>>)>>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The first bytes of a stretch of the disk that are alike.
struct Run {
    len: u64,
    content: Content,
}

impl View {
    pub(crate) fn new(
        image: Image,
        (size, l1_offset, l1_entries): (u64, u64, u64),
        below: Option<Arc<dyn BlockDevice>>,
        cache: Arc<TableCache>,
    ) -> View {
        let owner = cache.new_owner();
        View {
            name: image.name,
            device: image.device,
            header: image.header,
            size,
            l1_offset,
            l1_entries,
            below,
            cache,
            owner,
            unpacked: Mutex::default(),
        }
    }

    fn damaged(&self, at: u64, found: &str) -> DeviceError {
        DeviceError::Damaged { at: ByteOffset::new(at), found: format!("{}: {found}", self.name) }
    }

    /// The page of a table that has byte `at` of the file.
    fn page(&self, at: u64) -> Result<Arc<[u8; 4096]>, DeviceError> {
        let place = Place { name: &self.name, device: &*self.device };
        self.cache.page(&place, self.owner, at / PAGE).map_err(|error| match error {
            Qcow2Error::Read { source, .. } => source,
            other => self.damaged(0, &other.to_string()),
        })
    }

    fn within(at: u64) -> usize {
        usize::try_from(at % PAGE).unwrap_or(0)
    }

    /// What the disk holds from `at` on, for at most `most` bytes, which are not none and lie within the disk.
    fn run(&self, at: u64, most: u64) -> Result<Run, DeviceError> {
        let header = &self.header;
        let covers = header.l2_covers();
        let mut l1 = at / covers;
        if l1 >= self.l1_entries {
            return Err(self.damaged(at, "the L1 table has no entry for it"));
        }
        let mut table = 0;
        let first = l1;
        let end = at + most;
        // Entries of the L1 table that lead nowhere are passed over together.
        while l1 * covers < end && l1 < self.l1_entries {
            let place = self.l1_offset + l1 * 8;
            let page = self.page(place)?;
            table = l2_offset(be64(&*page, Self::within(place)));
            if table != 0 {
                break;
            }
            l1 += 1;
        }
        if l1 > first || table == 0 {
            return Ok(Run { len: (l1 * covers).min(end) - at, content: Content::Below });
        }
        if !table.is_multiple_of(header.cluster()) || table >= self.device.size().get() {
            let text = format!("its L2 table cannot be at byte {table} of the file");
            return Err(self.damaged(at, &text));
        }
        self.run_in_table(table, at, most)
    }

    fn run_in_table(&self, table: u64, at: u64, most: u64) -> Result<Run, DeviceError> {
        let header = &self.header;
        let (unit_len, cluster) = (header.unit_len(), header.cluster());
        let entry_len = if header.extended_l2() { 16 } else { 8 };
        let place = table + at / cluster % header.l2_entries() * entry_len;
        let page = self.page(place)?;
        let mut entry_at = Self::within(place);
        let mut unit = u32::try_from(at % cluster / unit_len).unwrap_or(0);
        let units = u32::try_from(cluster / unit_len).unwrap_or(1);
        let mut run: Option<Run> = None;
        let into = at % unit_len;
        // Small tables share a page; what follows this one is another's.
        let left = header.l2_entries() - at / cluster % header.l2_entries();
        let left = usize::try_from(left * entry_len).unwrap_or(0);
        let table_end = page.len().min(entry_at.saturating_add(left));
        while entry_at < table_end {
            let entry = be64(&*page, entry_at);
            let bitmap = if entry_len == 16 { be64(&*page, entry_at + 8) } else { 0 };
            let content = header
                .content(entry, bitmap, unit)
                .map_err(|wrong| self.damaged(at, &format!("it is in {wrong}")))?;
            match &mut run {
                None => {
                    let (len, content) = match content {
                        // It is unpacked as a whole.
                        Content::Compressed { .. } => {
                            let len = cluster - at % cluster;
                            return Ok(Run { len: len.min(most), content });
                        }
                        Content::Stored(host) => (unit_len - into, Content::Stored(host + into)),
                        other => (unit_len - into, other),
                    };
                    run = Some(Run { len, content });
                }
                Some(run) if follows(run, content) => run.len += unit_len,
                Some(_) => break,
            }
            if run.as_ref().is_some_and(|run| run.len >= most) {
                break;
            }
            unit += 1;
            if unit == units {
                unit = 0;
                entry_at += usize::try_from(entry_len).unwrap_or(8);
            }
        }
        let mut run = run.ok_or_else(|| self.damaged(at, "its entry is behind the table"))?;
        run.len = run.len.min(most);
        Ok(run)
    }

    fn read_below(&self, at: u64, part: &mut [u8]) -> Result<(), DeviceError> {
        let Some(below) = &self.below else {
            part.fill(0);
            return Ok(());
        };
        let there = below.size().get().saturating_sub(at).min(part.len() as u64);
        let (there, beyond) = part.split_at_mut(usize::try_from(there).unwrap_or(0));
        beyond.fill(0);
        if there.is_empty() { Ok(()) } else { below.read_at(ByteOffset::new(at), there) }
    }

    fn read_stored(&self, at: u64, host: u64, part: &mut [u8]) -> Result<(), DeviceError> {
        let end = self.device.size().get();
        // The file may end within its last cluster. A cluster behind its end is one that was cut off.
        let cluster_start = host - host % self.header.cluster();
        if cluster_start >= end {
            let text = format!("it is at byte {host} of the file, which has {end}");
            return Err(self.damaged(at, &text));
        }
        // Where clusters follow each other, all but the last are whole or the next is behind the end.
        let last = (host + part.len() as u64 - 1) / self.header.cluster() * self.header.cluster();
        if last >= end {
            let text = format!("its end is at byte {last} of the file, which has {end}");
            return Err(self.damaged(at, &text));
        }
        let there = end.saturating_sub(host).min(part.len() as u64);
        let (there, beyond) = part.split_at_mut(usize::try_from(there).unwrap_or(0));
        beyond.fill(0);
        self.device.read_at(ByteOffset::new(host.min(end)), there)
    }

    fn read_compressed(
        &self,
        at: u64,
        (host, len): (u64, u64),
        part: &mut [u8],
    ) -> Result<(), DeviceError> {
        let cluster = self.header.cluster();
        let from = usize::try_from(at % cluster).unwrap_or(0);
        let held = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((of, bytes)) = held
            && of == host
        {
            part.copy_from_slice(&bytes[from..from + part.len()]);
            return Ok(());
        }
        if part.len() as u64 == cluster {
            return self.unpack(at, (host, len), part);
        }
        let mut bytes = vec![0; usize::try_from(cluster).unwrap_or(0)];
        self.unpack(at, (host, len), &mut bytes)?;
        part.copy_from_slice(&bytes[from..from + part.len()]);
        let held = Some((host, Arc::new(bytes)));
        *self.unpacked.lock().unwrap_or_else(PoisonError::into_inner) = held;
        Ok(())
    }

    fn unpack(
        &self,
        at: u64,
        (host, len): (u64, u64),
        cluster: &mut [u8],
    ) -> Result<(), DeviceError> {
        let end = self.device.size().get();
        if host >= end {
            let text = format!("it is compressed at byte {host} of the file, which has {end}");
            return Err(self.damaged(at, &text));
        }
        // The last sector may be cut off where the stream ends.
        let len = len.min(end - host);
        let mut packed = vec![0; usize::try_from(len).unwrap_or(0)];
        self.device.read_at(ByteOffset::new(host), &mut packed)?;
        if !compressed::unpack(self.header.compression, &packed, cluster) {
            let text = format!("the compressed cluster at byte {host} does not unpack to one");
            return Err(self.damaged(at, &text));
        }
        Ok(())
    }

    /// What lies below a stretch, where this image has nothing.
    fn extents_below(&self, at: u64, len: u64, found: &mut Extents) -> Result<(), DeviceError> {
        let there = match &self.below {
            Some(below) => below.size().get().saturating_sub(at).min(len),
            None => 0,
        };
        if let (Some(below), true) = (&self.below, there > 0) {
            for extent in below.extents(ByteOffset::new(at), ByteLen::new(there))? {
                found.add(extent.at.get(), extent.len.get(), extent.kind);
            }
        }
        if len > there {
            found.add(at + there, len - there, ExtentKind::Hole);
        }
        Ok(())
    }
}

fn follows(run: &Run, next: Content) -> bool {
    match (run.content, next) {
        (Content::Stored(host), Content::Stored(after)) => host.checked_add(run.len) == Some(after),
        (Content::Compressed { .. }, _) => false,
        (before, after) => before == after,
    }
}

impl BlockSource for View {
    fn size(&self) -> ByteLen {
        ByteLen::new(self.size)
    }

    fn read(&self, mut at: u64, mut buffer: &mut [u8]) -> Result<(), DeviceError> {
        while !buffer.is_empty() {
            let run = self.run(at, buffer.len() as u64)?;
            let len = usize::try_from(run.len).unwrap_or(buffer.len());
            let (part, rest) = buffer.split_at_mut(len);
            match run.content {
                Content::Below => self.read_below(at, part)?,
                Content::Zeros { .. } => part.fill(0),
                Content::Stored(host) => self.read_stored(at, host, part)?,
                Content::Compressed { at: host, len } => {
                    self.read_compressed(at, (host, len), part)?;
                }
            }
            at += run.len;
            buffer = rest;
        }
        Ok(())
    }

    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        let (mut at, end) = (at.get(), at.get() + len.get());
        let mut found = Extents::default();
        while at < end {
            let run = self.run(at, end - at)?;
            match run.content {
                Content::Below => self.extents_below(at, run.len, &mut found)?,
                Content::Zeros { reserved: true } => {
                    found.add(at, run.len, ExtentKind::Zero);
                }
                Content::Zeros { reserved: false } => {
                    found.add(at, run.len, ExtentKind::Hole);
                }
                Content::Stored(_) | Content::Compressed { .. } => {
                    found.add(at, run.len, ExtentKind::Data);
                }
            }
            at += run.len;
        }
        Ok(found.into_vec())
    }
}
