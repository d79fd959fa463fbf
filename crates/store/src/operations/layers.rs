//! Disks as overlaybd layers: all that one holds, or what changed since an earlier snapshot.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_block::{BlockDevice, FileDevice};
use kiln_overlaybd::{Codec, LayerError, Packing, Sealing, Uuid, pack, pack_changes};
use kiln_parallax::Pool;

use super::files::open;
use crate::error::{Refusal, StoreError, Why};
use crate::name::Name;
use crate::reply::Reply;
use crate::request::{LayerCodec, LayerForm, Stop};

/// Writes a disk or snapshot as a layer, to an empty file; with `from`, only the sectors that changed since that
/// snapshot of the same disk.
pub(super) fn export(
    pool: &Pool,
    (name, from): (&str, Option<&str>),
    form: &LayerForm,
    (file, path): (OwnedFd, &str),
    stop: &Stop,
) -> Result<Reply, StoreError> {
    let sealing = sealing(form)?;
    let disk: Arc<dyn BlockDevice> = Arc::new(open(pool, name)?);
    let size = disk.size().get();
    let file = File::from(file);
    let copy = file.try_clone().map_err(|error| Refusal::of(Why::File, &error))?;
    let out = Stoppable { file: copy, stop };
    let written = match from {
        None => pack(name, &disk, out, &sealing),
        Some(from) => {
            let parts = Name::of(name);
            let before = format!("{}@{from}", parts.disk);
            let old = open(pool, &before)?;
            let changed = pool.diff(parts.disk, from, parts.snapshot)?;
            pack_changes((&before, &old), (name, &disk), &changed, out, &sealing)
        }
    };
    let written = written.map_err(|error| refused(&error, stop).tried(tried(name, path)))?.len;
    // Whoever exported it may unplug it.
    let device = FileDevice::of(file, path.as_ref(), false);
    let device = device.map_err(|error| Refusal::of(Why::File, &error))?;
    device.flush().map_err(|error| Refusal::device("write", path, &error))?;
    Ok(Reply::Copied { size, source_size: size, written })
}

fn tried(name: &str, path: &str) -> String {
    format!("cannot export {name} to {path}")
}

fn sealing(form: &LayerForm) -> Result<Sealing, Refusal> {
    let uuid = |text: &Option<String>| match text {
        None => Ok(Uuid::default()),
        Some(text) => text.parse().map_err(|error| Refusal::of(Why::Request, &error)),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let packing = form.compress.map(|codec| Packing {
        codec: match codec {
            LayerCodec::Lz4 => Codec::Lz4,
            LayerCodec::Zstd => Codec::Zstd,
        },
        threads,
        ..Packing::default()
    });
    Ok(Sealing {
        uuid: uuid(&form.uuid)?,
        parent: uuid(&form.parent)?,
        user_tag: Vec::new(),
        packing,
        in_tar: form.tar,
    })
}

fn refused(error: &LayerError, stop: &Stop) -> Refusal {
    let why = match error {
        _ if stop.is_stopped() => Why::Stopped,
        LayerError::Device { source: kiln_block::DeviceError::Damaged { .. }, .. } => Why::Damaged,
        LayerError::Device { .. } => Why::Failed,
        LayerError::Io { .. } => Why::File,
        _ => Why::Request,
    };
    Refusal::of(why, error)
}

/// A file whose writing ends when nobody wants it any more.
struct Stoppable<'a> {
    file: File,
    stop: &'a Stop,
}

impl Write for Stoppable<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stop.is_stopped() {
            return Err(io::Error::other("interrupted"));
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Stoppable<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use kiln_block::{ByteLen, ByteOffset, MemoryDevice, ReadOnly};
    use kiln_overlaybd::{Input, Layer, OpenOptions, Stack};
    use kiln_parallax::{DiskOptions, PoolOptions};

    fn exported(pool: &Pool, name: &str, from: Option<&str>, form: &LayerForm) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let copy = file.reopen().unwrap();
        export(pool, (name, from), form, (copy.into(), "file"), &Stop::new()).unwrap();
        std::fs::read(file.path()).unwrap()
    }

    #[test]
    fn a_disk_is_what_it_was_and_the_layer_of_what_changed_since() {
        let options = PoolOptions { log: ByteLen::mib(1), ..PoolOptions::default() };
        let device = Arc::new(MemoryDevice::new(ByteLen::mib(64)));
        let pool = Pool::create(device, &options).unwrap();
        pool.create_disk("disk", ByteLen::mib(8), &DiskOptions::default()).unwrap();
        let disk = pool.open_disk("disk").unwrap();
        disk.write_at(ByteOffset::new(4096), &[7; 40_000]).unwrap();
        pool.snapshot("disk", "monday").unwrap();
        disk.write_at(ByteOffset::new(8192 + 512), &[9; 100]).unwrap();
        disk.discard(ByteOffset::new(16384), ByteLen::new(8192)).unwrap();
        disk.write_at(ByteOffset::new(5 << 20), b"new").unwrap();
        pool.snapshot("disk", "tuesday").unwrap();
        disk.write_at(ByteOffset::new(6 << 20), b"later").unwrap();
        let uuid = |n: u8| Some(Uuid::from_bytes([n; 16]).to_string());
        let form = LayerForm { uuid: uuid(1), tar: true, ..LayerForm::default() };
        let base = exported(&pool, "disk@monday", None, &form);
        let compress = Some(LayerCodec::Zstd);
        let form = LayerForm { uuid: uuid(2), parent: uuid(1), compress, ..LayerForm::default() };
        let changes = exported(&pool, "disk@tuesday", Some("monday"), &form);
        let open = |bytes: &[u8]| {
            let input = Input::new("layer", Arc::new(MemoryDevice::holding(bytes)));
            Layer::open(input, &OpenOptions::default()).unwrap()
        };
        let top = open(&changes);
        let sectors: u32 = top.segments().iter().map(|segment| segment.len).sum();
        assert_eq!(sectors, 1 + 16 + 1, "what changed, and no more");
        let stack = Stack::new(vec![open(&base), top]).unwrap();
        stack.require_chain().unwrap();
        let (mut read, mut wanted) = (vec![0; 8 << 20], vec![0; 8 << 20]);
        ReadOnly(stack).read_at(ByteOffset::ZERO, &mut read).unwrap();
        let tuesday = pool.open_snapshot("disk", "tuesday").unwrap();
        tuesday.read_at(ByteOffset::ZERO, &mut wanted).unwrap();
        assert!(read == wanted);
        let wrong = LayerForm { uuid: Some("x".to_owned()), ..LayerForm::default() };
        let file = tempfile::tempfile().unwrap();
        let refused = export(&pool, ("disk", None), &wrong, (file.into(), "f"), &Stop::new());
        assert!(matches!(refused, Err(StoreError::Refused(no)) if no.why == Why::Request));
    }
}
