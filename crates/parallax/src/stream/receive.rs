//! [`Pool::receive`].
//!
//! What arrives goes to a disk of its own, one block longer than it will be: in that block is how far it got. The block
//! is written only after what came before it was flushed, so it never says too much. When all is there, the block is
//! cut off, and the disk becomes what it was sent as, at once.

use std::io::Read;
use std::ops::ControlFlow;

use kiln_block::{BlockDevice as _, ByteLen, ByteOffset, DeviceError};

use crate::disk::Disk;
use crate::format::{BLOCK, BLOCK_LEN};
use crate::stream::identity;
use crate::stream::record::{HEADER_LEN, Header, Kind, Reader};
use crate::stream::{OnProgress, Progress, StreamError, Token};
use crate::{DiskOptions, Pool};

/// Names of disks that are being received start like this; the stream's id follows.
const PREFIX: &str = "receiving-";
/// Bytes of the disk after which is made durable how far it got.
const STEP: u64 = 64 << 20;

/// How a stream is received.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReceiveOptions<'a> {
    /// The disk, if not the one the stream names.
    pub disk: Option<&'a str>,
}

/// What was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The disk.
    pub disk: String,
    /// Its new snapshot.
    pub snapshot: String,
    /// Bytes of the disk.
    pub size: ByteLen,
    /// Bytes that were written to it.
    pub written: ByteLen,
    /// Bytes of the stream.
    pub bytes: u64,
}

/// A disk that was received in part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial {
    /// What it is called until it is complete.
    pub name: String,
    /// What it was called where it was sent.
    pub disk: String,
    /// The snapshot that was sent.
    pub snapshot: String,
    /// What the sender goes on from.
    pub token: Token,
    /// Bytes of the disk.
    pub size: ByteLen,
}

impl Pool {
    /// Makes a disk and its snapshot, or the next snapshot of a disk, out of a stream. What was received in part
    /// earlier is gone on with.
    ///
    /// An incremental stream is for a disk that has the stream's base and was not changed since; it must not be open.
    pub fn receive(
        &self,
        input: &mut dyn Read,
        options: &ReceiveOptions<'_>,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Received, StreamError> {
        let (mut reader, header) = Reader::new(input)?;
        let disk = options.disk.unwrap_or(&header.disk_name).to_owned();
        self.may_receive(&header, &disk)?;
        let mut incoming = self.incoming(&header, &disk)?;
        let outcome = incoming.take(&mut reader, &header, on_progress);
        let partial = incoming.name.clone();
        match outcome {
            Ok(()) => {}
            Err(error @ (StreamError::Pool(_) | StreamError::Disk { .. })) => return Err(error),
            Err(source) => {
                // Nothing of what arrived can be trusted.
                if matches!(source, StreamError::WrongSum) {
                    incoming.position = 0;
                }
                let token = incoming.keep()?;
                let source = Box::new(source);
                return Err(StreamError::Cut { disk, token, source });
            }
        }
        incoming.reach(header.size)?;
        let written = ByteLen::new(incoming.written);
        drop(incoming);
        self.resize(&partial, ByteLen::new(header.size))?;
        self.adopt(&header, &partial, &disk)?;
        Ok(Received {
            disk,
            snapshot: header.snapshot_name,
            size: ByteLen::new(header.size),
            written,
            bytes: reader.bytes(),
        })
    }

    /// What was received in part and can be gone on with.
    pub fn partials(&self) -> Vec<Partial> {
        let mut found = Vec::new();
        let named = |name: &str| name.starts_with(PREFIX) && name.len() == PREFIX.len() + 32;
        for info in self.disks().into_iter().filter(|info| named(&info.name)) {
            let Ok(disk) = self.open_disk(&info.name) else { continue };
            let Some(size) = info.size.get().checked_sub(BLOCK_LEN) else { continue };
            if let Ok(Some((header, position))) = read_place(&disk, size) {
                found.push(Partial {
                    name: info.name,
                    disk: header.disk_name.clone(),
                    snapshot: header.snapshot_name.clone(),
                    token: Token { id: header.id(), position },
                    size: ByteLen::new(size),
                });
            }
        }
        found
    }

    fn may_receive(&self, header: &Header, disk: &str) -> Result<(), StreamError> {
        let catalog = self.core.catalog();
        if header.base.is_none() {
            catalog.may_take(0, disk)?;
            // The name within the disk is its first, so it is only looked at.
            catalog.may_take(u64::MAX, &header.snapshot_name)?;
            return Ok(());
        }
        let owner = catalog.disk(disk)?.id;
        catalog.may_take(owner, &header.snapshot_name)?;
        drop(catalog);
        self.base_of(header, disk).map(|_| ())
    }

    /// The name of the snapshot an incremental stream starts from, in this pool.
    pub(super) fn base_of(&self, header: &Header, disk: &str) -> Result<String, StreamError> {
        let base = {
            let catalog = self.core.catalog();
            let owner = catalog.disk(disk)?.id;
            let snapshots = catalog.snapshots(owner);
            let wanted = |id| header.base == Some(id);
            let found = snapshots.into_iter().find(|it| wanted(identity::of(&self.core, it)));
            found.map(|state| state.name.clone())
        };
        let base = base.ok_or_else(|| StreamError::WrongBase {
            disk: disk.to_owned(),
            from: header.disk_name.clone(),
            base: header.base_name.clone(),
        })?;
        let info = self.stat(disk)?;
        let same_size =
            self.snapshots(disk)?.iter().any(|it| it.name == base && it.size == info.size);
        let newest = info.origin == Some((disk.to_owned(), base.clone()));
        if !newest || !same_size || !self.diff(disk, &base, None)?.is_empty() {
            return Err(StreamError::Changed { disk: disk.to_owned(), base });
        }
        Ok(base)
    }

    /// The disk that what arrives goes to, new or as an earlier part of the stream left it.
    fn incoming(&self, header: &Header, disk: &str) -> Result<Incoming, StreamError> {
        let name = format!("{PREFIX}{:032x}", u128::from_be_bytes(header.id()));
        let longer = ByteLen::new(header.size + BLOCK_LEN);
        let found = self.stat(&name).ok();
        if found.is_none() && header.position > 0 {
            let here = "nothing of it: send it from the start".to_owned();
            return Err(StreamError::Gap { starts: header.position, here });
        }
        if found.is_none() {
            self.begin(header, &name, disk)?;
        }
        // What was cut off after it became whole has no block of its own any more.
        let whole = found.is_some_and(|found| found.size.get() == header.size);
        if whole {
            self.resize(&name, longer)?;
        }
        let device = self.open_disk(&name)?;
        let mut incoming = Incoming::new(name, header, device);
        if whole {
            incoming.reach(header.size)?;
        }
        incoming.position = incoming.read_place()?.unwrap_or(0);
        incoming.durable = incoming.position;
        if header.position > incoming.position {
            let token = Token { id: header.id(), position: incoming.position };
            let here = format!("what ends at byte {}: the token is {token}", token.position);
            return Err(StreamError::Gap { starts: header.position, here });
        }
        Ok(incoming)
    }

    /// Makes the disk that what arrives goes to. It has its name only once it says what it is.
    fn begin(&self, header: &Header, name: &str, disk: &str) -> Result<(), StreamError> {
        let longer = ByteLen::new(header.size + BLOCK_LEN);
        let unborn = format!("{name}-new");
        if self.stat(&unborn).is_ok() {
            self.delete(&unborn)?;
        }
        match header.base {
            None => self.create_disk(&unborn, longer, &DiskOptions::default())?,
            Some(_) => {
                let base = self.base_of(header, disk)?;
                self.clone_disk(disk, &base, &unborn, &DiskOptions::default())?;
                self.resize(&unborn, longer)?;
            }
        }
        let mut incoming = Incoming::new(unborn.clone(), header, self.open_disk(&unborn)?);
        incoming.mark(0)?;
        incoming.reach(0)?;
        drop(incoming);
        // The same checkpoint makes the block durable.
        self.rename(&unborn, name)?;
        Ok(())
    }
}

/// The block that says how far it got, but for the place itself.
fn first_block(header: &Header) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let of = Header { position: 0, ..header.clone() };
    block[..HEADER_LEN].copy_from_slice(&of.encode());
    block
}

/// What the block behind the disk says: which stream, and how far.
fn read_place(device: &Disk, size: u64) -> Result<Option<(Header, u64)>, DeviceError> {
    let mut block = [0; BLOCK];
    device.read_at(ByteOffset::new(size), &mut block)?;
    let mut header = [0; HEADER_LEN];
    header.copy_from_slice(&block[..HEADER_LEN]);
    let mut position = [0; 8];
    position.copy_from_slice(&block[HEADER_LEN..HEADER_LEN + 8]);
    let position = u64::from_le_bytes(position);
    let header = Header::decode(&header).ok();
    Ok(header.filter(|_| position <= size).map(|header| (header, position)))
}

/// A disk that is being received.
struct Incoming {
    name: String,
    size: u64,
    block: [u8; BLOCK],
    /// What was written up to.
    position: u64,
    /// What is durable up to.
    durable: u64,
    written: u64,
    device: Disk,
}

impl Incoming {
    fn new(name: String, header: &Header, device: Disk) -> Incoming {
        let block = first_block(header);
        Incoming { name, size: header.size, block, position: 0, durable: 0, written: 0, device }
    }

    fn failed(&self) -> impl Fn(DeviceError) -> StreamError + use<> {
        let name = self.name.clone();
        move |source| StreamError::Disk { act: "write", name: name.clone(), source }
    }

    fn read_place(&self) -> Result<Option<u64>, StreamError> {
        let found = read_place(&self.device, self.size).map_err(self.failed())?;
        Ok(found.map(|(_, position)| position))
    }

    /// Writes how far it got, which the next flush makes durable.
    fn mark(&mut self, position: u64) -> Result<(), StreamError> {
        self.block[HEADER_LEN..HEADER_LEN + 8].copy_from_slice(&position.to_le_bytes());
        self.device.write_at(ByteOffset::new(self.size), &self.block).map_err(self.failed())
    }

    /// Makes durable what was written, then that it was.
    fn reach(&mut self, position: u64) -> Result<(), StreamError> {
        self.device.flush().map_err(self.failed())?;
        self.mark(position)?;
        self.durable = position;
        Ok(())
    }

    /// The same, and what the sender goes on from.
    fn keep(&mut self) -> Result<Token, StreamError> {
        self.reach(self.position)?;
        self.device.flush().map_err(self.failed())?;
        let mut id = [0; 16];
        id.copy_from_slice(&self.block[16..32]);
        Ok(Token { id, position: self.position })
    }

    fn take(
        &mut self,
        reader: &mut Reader<'_>,
        header: &Header,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<(), StreamError> {
        loop {
            let failed = self.failed();
            let (record, bytes) = reader.next()?;
            let at = ByteOffset::new(record.at);
            match record.kind {
                Kind::Data => self.device.write_at(at, bytes).map_err(failed)?,
                Kind::Zeros => {
                    self.device.write_zeroes(at, ByteLen::new(record.len), false).map_err(failed)?
                }
                Kind::End => return Ok(()),
            }
            if record.kind == Kind::Data {
                self.written += record.len;
            }
            // What is sent again from further ahead takes nothing back.
            self.position = self.position.max(record.at + record.len);
            if self.position - self.durable >= STEP {
                self.reach(self.position)?;
            }
            let progress = Progress {
                at: ByteLen::new(record.at + record.len),
                size: ByteLen::new(header.size),
                bytes: reader.bytes(),
            };
            if let ControlFlow::Break(()) = on_progress(progress) {
                return Err(StreamError::Stopped);
            }
        }
    }
}
