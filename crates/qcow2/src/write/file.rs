//! An image in a file.

use std::io::{self, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

use kiln_block::{BlockDevice, ByteLen, is_zero};

use super::{BATCH, Progress, Shape, WriteOptions, Written, data_runs, go_on, read_clusters};
use crate::compressed::Packer;
use crate::entry::{compressed_entry, stored_entry};
use crate::header::NewHeader;
use crate::refcount::Refcounts;
use crate::{Compression, Qcow2Error};

/// Writes a disk as an image to an empty file. What it holds is read once, from front to back, and stretches of zeros
/// take no space. The header is written last.
pub fn write<W: Write + Seek>(
    device: &dyn BlockDevice,
    out: &mut W,
    options: &WriteOptions,
    progress: &mut Progress<'_>,
) -> Result<Written, Qcow2Error> {
    let shape = Shape::new(device, options.cluster)?;
    let mut out = Output { out, at: None };
    let mut refcounts = Refcounts::new(shape.cluster);
    refcounts.take(1, &mut |at, bytes| out.put(at, bytes))?;
    let l1_offset = refcounts.take(shape.l1_clusters(), &mut |at, bytes| out.put(at, bytes))?;
    let packers = match options.compression {
        None => Vec::new(),
        Some(how) => (0..options.threads.clamp(1, 64))
            .map(|_| Packer::new(how).map(Mutex::new))
            .collect::<io::Result<Vec<_>>>()?,
    };
    let mut image = ImageWriter { shape, out, refcounts, packers, packed_end: None, stored: 0 };
    let mut l1 = vec![0; usize::try_from(shape.l1_entries).unwrap_or(0)];
    for (number, start, end) in shape.tables() {
        let table = image.write_part(device, (start, end), progress)?;
        if let Some(entry) = l1.get_mut(usize::try_from(number).unwrap_or(usize::MAX)) {
            *entry = table;
        }
    }
    let ImageWriter { mut out, refcounts, stored, .. } = image;
    let (refcounts_at, refcount_clusters) =
        refcounts.finish(&mut |at, bytes| out.put(at, bytes))?;
    let end = out.out.seek(SeekFrom::End(0))?;
    let mut bytes: Vec<u8> = l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    out.put(l1_offset, &bytes)?;
    let header = NewHeader {
        cluster_bits: shape.bits,
        size: shape.size,
        l1_entries: u32::try_from(shape.l1_entries).unwrap_or(u32::MAX),
        l1_offset,
        refcounts_at,
        refcount_clusters: u32::try_from(refcount_clusters).unwrap_or(u32::MAX),
        compression: options.compression.unwrap_or(Compression::Deflate),
    };
    out.put(0, &header.encode())?;
    out.out.flush()?;
    go_on(progress, shape.disk)?;
    Ok(Written { stored: ByteLen::new(stored), file: ByteLen::new(end) })
}

/// A file, and where in it the next write would go.
struct Output<'a, W> {
    out: &'a mut W,
    at: Option<u64>,
}

impl<W: Write + Seek> Output<'_, W> {
    fn put(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if self.at != Some(at) {
            self.at = None;
            self.out.seek(SeekFrom::Start(at))?;
        }
        self.out.write_all(bytes)?;
        self.at = Some(at + bytes.len() as u64);
        Ok(())
    }
}

struct ImageWriter<'a, W> {
    shape: Shape,
    out: Output<'a, W>,
    refcounts: Refcounts,
    /// None: clusters are stored as they are.
    packers: Vec<Mutex<Packer>>,
    /// The end of what is compressed, if that is in the last cluster there is.
    packed_end: Option<u64>,
    stored: u64,
}

impl<W: Write + Seek> ImageWriter<'_, W> {
    /// Writes what one L2 table tells about, then the table; returns the entry that leads to it.
    fn write_part(
        &mut self,
        device: &dyn BlockDevice,
        (start, end): (u64, u64),
        progress: &mut Progress<'_>,
    ) -> Result<u64, Qcow2Error> {
        let mut table = vec![0_u64; self.shape.index(self.shape.covers())];
        let mut any = false;
        let mut buffer = Vec::new();
        for (from, to) in data_runs(device, &self.shape, (start, end))? {
            let mut at = from;
            while at < to {
                go_on(progress, at)?;
                let len = BATCH.min(to - at);
                buffer.resize(usize::try_from(len).unwrap_or(0), 0);
                read_clusters(device, &self.shape, at, &mut buffer)?;
                let first = self.shape.index(at - start);
                let entries = &mut table[first..first + self.shape.index(len)];
                self.write_clusters(&buffer, entries)?;
                any |= entries.iter().any(|entry| *entry != 0);
                at += len;
            }
        }
        go_on(progress, end)?;
        if !any {
            return Ok(0);
        }
        let out = &mut self.out;
        let place = self.refcounts.take(1, &mut |at, bytes| out.put(at, bytes))?;
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.out.put(place, &bytes)?;
        Ok(stored_entry(place))
    }

    fn write_clusters(&mut self, buffer: &[u8], entries: &mut [u64]) -> Result<(), Qcow2Error> {
        let size = usize::try_from(self.shape.cluster).unwrap_or(usize::MAX);
        let clusters: Vec<&[u8]> = buffer.chunks_exact(size).collect();
        let packed = self.pack(&clusters);
        // Clusters that follow each other in the buffer and in the file are written together.
        let mut waiting: Option<(u64, std::ops::Range<usize>)> = None;
        for (number, (cluster, entry)) in clusters.iter().zip(entries).enumerate() {
            if is_zero(cluster) {
                continue;
            }
            self.stored += cluster.len() as u64;
            if let Some(Some(bytes)) = packed.get(number) {
                *entry = self.put_packed(bytes)?;
                continue;
            }
            let out = &mut self.out;
            let place = self.refcounts.take(1, &mut |at, bytes| out.put(at, bytes))?;
            *entry = stored_entry(place);
            let from = number * size;
            match &mut waiting {
                Some((start, range))
                    if range.end == from && *start + range.len() as u64 == place =>
                {
                    range.end += size;
                }
                _ => {
                    if let Some((start, range)) = waiting.replace((place, from..from + size)) {
                        self.out.put(start, &buffer[range])?;
                    }
                }
            }
        }
        if let Some((start, range)) = waiting {
            self.out.put(start, &buffer[range])?;
        }
        Ok(())
    }

    /// Each cluster packed, or `None` where that saves nothing.
    fn pack(&self, clusters: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
        if self.packers.is_empty() {
            return Vec::new();
        }
        let share = clusters.len().div_ceil(self.packers.len()).max(1);
        let pack = |clusters: &[&[u8]], packer: &Mutex<Packer>| -> Vec<Option<Vec<u8>>> {
            let mut packer = packer.lock().unwrap_or_else(PoisonError::into_inner);
            let mut room = vec![0; clusters.first().map_or(0, |cluster| cluster.len() - 1)];
            let mut packed = |cluster: &&[u8]| {
                if is_zero(cluster) {
                    return None;
                }
                packer.pack(cluster, &mut room).map(|len| room[..len].to_vec())
            };
            clusters.iter().map(&mut packed).collect()
        };
        std::thread::scope(|scope| {
            let pack = &pack;
            let mut parts = clusters.chunks(share).zip(&self.packers);
            let own = parts.next();
            let others: Vec<_> =
                parts.map(|(part, packer)| scope.spawn(move || pack(part, packer))).collect();
            let mut found = own.map(|(part, packer)| pack(part, packer)).unwrap_or_default();
            for (other, part) in others.into_iter().zip(clusters.chunks(share).skip(1)) {
                // Whoever could not pack its part leaves it as it is.
                found.extend(other.join().unwrap_or_else(|_| vec![None; part.len()]));
            }
            found
        })
    }

    /// Puts a packed cluster behind the last one, if that is where the file has got to.
    fn put_packed(&mut self, bytes: &[u8]) -> Result<u64, Qcow2Error> {
        let len = bytes.len() as u64;
        let end = self.refcounts.end();
        let follows = self.packed_end.filter(|at| {
            let room = end.saturating_sub(*at);
            let in_last = *at <= end && room < self.shape.cluster && room > 0;
            in_last && (len <= room || self.refcounts.goes_on())
        });
        let out = &mut self.out;
        let at = match follows {
            Some(at) if self.refcounts.share_last() => {
                if at + len > end {
                    self.refcounts.take(1, &mut |at, bytes| out.put(at, bytes))?;
                }
                at
            }
            _ => self.refcounts.take(1, &mut |at, bytes| out.put(at, bytes))?,
        };
        self.out.put(at, bytes)?;
        self.packed_end = Some(at + len);
        Ok(compressed_entry(self.shape.bits, at, len))
    }
}
