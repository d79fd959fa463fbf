//! [`Pool::send`].

use std::io::Write;
use std::ops::ControlFlow;

use kiln_block::{BlockDevice as _, ByteLen, ByteOffset, Extent, ExtentKind, is_zero};

use crate::disk::Disk;
use crate::format::{BLOCK, BLOCK_LEN};
use crate::node::FANOUT;
use crate::stream::identity;
use crate::stream::record::{Header, Kind, MAX_DATA, Record, Writer};
use crate::stream::{OnProgress, Progress, StreamError, Token};
use crate::tree::Side;
use crate::{Pool, PoolError};

/// Bytes of the disk whose extents are asked for at once: at most 8 MiB of them.
const WINDOW: u64 = 1 << 30;
/// Bytes of the disk that a leaf of its map tells about.
const LEAF: u64 = FANOUT * BLOCK_LEN;

/// What is sent, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct SendOptions<'a> {
    /// An earlier snapshot of the same disk: only what changed since is sent.
    pub from: Option<&'a str>,
    /// Compresses data with zstd.
    pub compress: bool,
    /// Goes on from there.
    pub resume: Option<Token>,
}

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of the disk in it.
    pub data: ByteLen,
    /// Bytes of the stream.
    pub bytes: u64,
}

impl Pool {
    /// Writes a snapshot of a disk as a stream, whole or as what changed since another one. Neither can be removed
    /// meanwhile.
    pub fn send(
        &self,
        disk: &str,
        snapshot: &str,
        options: &SendOptions<'_>,
        out: &mut dyn Write,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Sent, StreamError> {
        let device = self.open_snapshot(disk, snapshot)?;
        let base = options.from.map(|base| self.open_snapshot(disk, base)).transpose()?;
        let mut header = self.header_of(disk, snapshot, options.from)?;
        if let Some(token) = options.resume {
            if token.id != header.id() || token.position > header.size {
                let (disk, snapshot) = (disk.to_owned(), snapshot.to_owned());
                return Err(StreamError::OtherToken { token, disk, snapshot });
            }
            header.position = token.position;
        }
        let packer = match options.compress {
            true => Some(zstd::bulk::Compressor::new(3).map_err(StreamError::Write)?),
            false => None,
        };
        let mut sender = Sender {
            device: &device,
            name: format!("{disk}@{snapshot}"),
            size: header.size,
            writer: Writer::new(out, &header)?,
            packer,
            incremental: base.is_some(),
            buffer: Vec::new(),
            packed: Vec::new(),
            data: 0,
            on_progress,
        };
        // However large and scattered a disk is, what is to be sent of it is looked at a window at a time.
        let mut window = header.position;
        while window < header.size {
            let end = header.size.min((window / WINDOW + 1) * WINDOW);
            let extents = match &base {
                // Neither can be removed, so their maps stay what they are.
                Some(base) => {
                    let side = |of: &Disk| Side { root: of.head.place().root, shown: of.shown() };
                    let leaves = window / LEAF..end.div_ceil(LEAF);
                    self.core.differences((side(base), side(&device)), &leaves)?
                }
                None => {
                    let (at, len) = (ByteOffset::new(window), ByteLen::new(end - window));
                    let extents = device.extents(at, len);
                    extents.map_err(|source| sender.unreadable(source))?
                }
            };
            for extent in extents {
                sender.extent(extent, window)?;
            }
            window = end;
            sender.tell(window)?;
        }
        sender.tell(header.size)?;
        let data = ByteLen::new(sender.data);
        let bytes = sender.writer.end(header.size)?;
        Ok(Sent { data, bytes })
    }

    fn header_of(
        &self,
        disk: &str,
        snapshot: &str,
        base: Option<&str>,
    ) -> Result<Header, PoolError> {
        let catalog = self.core.catalog();
        let of = catalog.snapshot(disk, snapshot)?;
        let base_of = base.map(|base| catalog.snapshot(disk, base)).transpose()?;
        Ok(Header {
            pool: self.core.uuid,
            snapshot: identity::of(&self.core, of),
            base: base_of.map(|base| identity::of(&self.core, base)),
            size: of.size,
            position: 0,
            disk_name: disk.to_owned(),
            snapshot_name: snapshot.to_owned(),
            base_name: base.unwrap_or_default().to_owned(),
        })
    }
}

struct Sender<'a> {
    device: &'a Disk,
    name: String,
    size: u64,
    writer: Writer<'a>,
    packer: Option<zstd::bulk::Compressor<'static>>,
    /// What is zeros here may be something else at the receiver.
    incremental: bool,
    buffer: Vec<u8>,
    packed: Vec<u8>,
    data: u64,
    on_progress: &'a mut OnProgress<'a>,
}

impl Sender<'_> {
    fn unreadable(&self, source: kiln_block::DeviceError) -> StreamError {
        StreamError::Disk { act: "read", name: self.name.clone(), source }
    }

    fn tell(&mut self, at: u64) -> Result<(), StreamError> {
        let progress = Progress {
            at: ByteLen::new(at),
            size: ByteLen::new(self.size),
            bytes: self.writer.bytes(),
        };
        match (self.on_progress)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(StreamError::Stopped),
        }
    }

    /// Sends what of an extent lies from `position` on, within the disk.
    fn extent(&mut self, extent: Extent, position: u64) -> Result<(), StreamError> {
        let start = extent.at.get().max(position);
        let end = (extent.at.get() + extent.len.get()).min(self.size);
        if start >= end {
            return Ok(());
        }
        if extent.kind != ExtentKind::Data {
            return self.zeros(start, end - start);
        }
        let mut at = start;
        while at < end {
            let len = (MAX_DATA - at % MAX_DATA).min(end - at);
            self.data(at, len)?;
            at += len;
            self.tell(at)?;
        }
        Ok(())
    }

    fn zeros(&mut self, at: u64, len: u64) -> Result<(), StreamError> {
        if !self.incremental {
            return Ok(());
        }
        self.writer.record(Record { kind: Kind::Zeros, packed: false, at, len }, &[])
    }

    fn data(&mut self, at: u64, len: u64) -> Result<(), StreamError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(usize::try_from(len).unwrap_or(0), 0);
        let read = self.device.read_at(ByteOffset::new(at), &mut buffer);
        let sent = read.map_err(|source| self.unreadable(source)).and_then(|()| {
            let blocks: Vec<&[u8]> = buffer.chunks(BLOCK).collect();
            let mut done = 0;
            for run in blocks.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
                let place = at + done as u64 * BLOCK_LEN;
                if is_zero(run[0]) {
                    self.zeros(place, run.len() as u64 * BLOCK_LEN)?;
                } else {
                    self.run(place, &buffer[done * BLOCK..(done + run.len()) * BLOCK])?;
                }
                done += run.len();
            }
            Ok(())
        });
        self.buffer = buffer;
        sent
    }

    fn run(&mut self, at: u64, bytes: &[u8]) -> Result<(), StreamError> {
        let len = bytes.len() as u64;
        self.data += len;
        if let Some(packer) = &mut self.packer {
            self.packed.resize(bytes.len() - 1, 0);
            if let Ok(count) = packer.compress_to_buffer(bytes, &mut self.packed[..]) {
                let record = Record { kind: Kind::Data, packed: true, at, len };
                return self.writer.record(record, &self.packed[..count]);
            }
        }
        self.writer.record(Record { kind: Kind::Data, packed: false, at, len }, bytes)
    }
}
