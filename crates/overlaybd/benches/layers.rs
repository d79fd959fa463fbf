//! How fast layers are found, read and written, against the libraries that do the work below them.
//!
//! Content is what lies in `/usr/lib` and `/usr/bin`, so that compression works as in an image. All of it
//! is in memory: disks are not what is measured.
#![expect(clippy::print_stdout, reason = "figures are what a benchmark says")]

use std::hint::black_box;
use std::io::{Cursor, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice, ReadOnly};
use kiln_overlaybd::{
    BlockCache, Codec, Input, Layer, Lookup, NewUpper, OpenOptions, Packing, Sealing, Segment,
    Stack, Upper, Writable, ZFile, ZFileWriter,
};

/// How much content is packed and unpacked.
const CONTENT: usize = 96 << 20;
/// The best of so many runs counts: the machine may have other work.
const RUNS: usize = 5;

fn main() -> Result<()> {
    lookups();
    let content = content()?;
    println!("content: {} MiB of programs and libraries", content.len() >> 20);
    for codec in [Codec::Lz4, Codec::Zstd] {
        packing(codec, &content)?;
    }
    stacks()?;
    open_many()
}

fn best(mut run: impl FnMut()) -> Duration {
    let times = (0..RUNS).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed()
    });
    times.min().unwrap_or_default()
}

fn rate(count: usize, time: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / time.as_secs_f64() / 1e6
}

fn lookups() {
    for count in [1_000u64, 100_000, 1_000_000] {
        let segments: Vec<Segment> = (0..count)
            .map(|i| Segment { start: i * 16, stored_at: 8, len: 8, source: 0, zeroed: false })
            .collect();
        let starts: Vec<u64> = segments.iter().map(|segment| segment.start).collect();
        let lookup = Lookup::new(&segments);
        let mut dice = Dice::seeded(count);
        let asked: Vec<u64> = (0..1_000_000).map(|_| dice.below(count * 16)).collect();
        let tree = best(|| {
            black_box(asked.iter().map(|sector| lookup.rank(*sector)).sum::<usize>());
        });
        let binary = best(|| {
            let rank = |sector: &u64| starts.partition_point(|start| start <= sector);
            black_box(asked.iter().map(rank).sum::<usize>());
        });
        let (tree, binary) = (rate(asked.len(), tree), rate(asked.len(), binary));
        println!(
            "lookup among {count}: {tree:.1} M/s, {:.1} x partition_point ({binary:.1} M/s)",
            tree / binary
        );
    }
}

fn content() -> Result<Vec<u8>> {
    let mut content = Vec::with_capacity(CONTENT);
    let mut folders = vec![PathBuf::from("/usr/bin"), PathBuf::from("/usr/lib")];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<_> = std::fs::read_dir(&folder)?.filter_map(Result::ok).collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                // A file of another owner need not be readable.
                let Ok(file) = std::fs::File::open(entry.path()) else { continue };
                file.take((CONTENT - content.len()) as u64).read_to_end(&mut content)?;
            }
            if content.len() == CONTENT {
                return Ok(content);
            }
        }
    }
    content.truncate(content.len() / 65536 * 65536);
    Ok(content)
}

fn packing(codec: Codec, content: &[u8]) -> Result<()> {
    let pack = |threads, checksums| -> Result<Vec<u8>> {
        let packing = Packing { codec, threads, checksums, ..Packing::default() };
        let mut out = ZFileWriter::new(Cursor::new(Vec::with_capacity(content.len())), packing)?;
        out.write_all(content)?;
        Ok(out.finish()?.0.into_inner())
    };
    let packed = pack(1, true)?;
    let unchecked = pack(1, false)?;
    let ratio =
        rate(content.len(), Duration::from_secs(1)) / rate(packed.len(), Duration::from_secs(1));
    println!("{codec:?}, blocks of 4 KiB, ratio {ratio:.2}");
    let library_pack = best(|| {
        library_blocks(codec, content);
    });
    let library = rate(content.len(), library_pack);
    println!("  library packs {library:.0} MB/s");
    for threads in [1, 2] {
        let time = best(|| {
            black_box(pack(threads, true).is_ok());
        });
        let ours = rate(content.len(), time);
        println!("  {threads} threads pack {ours:.0} MB/s, {:.2} x library", ours / library);
    }
    let blocks = library_blocks(codec, content);
    let mut room = vec![0; 4096];
    let library = rate(
        content.len(),
        best(|| {
            for block in &blocks {
                match codec {
                    Codec::Lz4 => {
                        let _ = black_box(lz4::block::decompress_to_buffer(
                            block,
                            Some(4096),
                            &mut room,
                        ));
                    }
                    Codec::Zstd => {
                        let _ = black_box(UNPACK.with_borrow_mut(|context| {
                            context
                                .as_mut()
                                .map(|context| context.decompress_to_buffer(block, &mut room))
                        }));
                    }
                }
            }
        }),
    );
    println!("  library unpacks {library:.0} MB/s");
    for (packed, threads, what) in
        [(&unchecked, 1, "without CRC"), (&packed, 1, "with CRC"), (&packed, 2, "with CRC")]
    {
        let input = Input::new("packed", Arc::new(Bytes(packed.clone())));
        let zfile =
            ReadOnly(ZFile::open(input, Arc::new(BlockCache::new(ByteLen::mib(16))), threads)?);
        let mut buffer = vec![0; 4 << 20];
        let time = best(|| sweep(&zfile, &mut buffer));
        let ours = rate(content.len(), time);
        println!(
            "  {threads} threads unpack {ours:.0} MB/s {what}, {:.2} x library",
            ours / library
        );
        if threads == 1 {
            let mut small = vec![0; 4096];
            let time = best(|| sweep(&zfile, &mut small));
            println!("    in reads of 4 KiB {:.0} MB/s", rate(content.len(), time));
            let mut dice = Dice::seeded(1);
            let blocks = zfile.size().get() / 4096;
            let time = best(|| {
                for _ in 0..100_000 {
                    let at = ByteOffset::new(dice.below(blocks) * 4096);
                    black_box(zfile.read_at(at, &mut small).is_ok());
                }
            });
            println!("    random reads of 4 KiB {:.0} k/s", rate(100_000, time) * 1e3);
        }
    }
    Ok(())
}

thread_local! {
    static UNPACK: std::cell::RefCell<Option<zstd::bulk::Decompressor<'static>>> =
        std::cell::RefCell::new(zstd::bulk::Decompressor::new().ok());
}

/// Each block as the library packs it, with nothing around it.
fn library_blocks(codec: Codec, content: &[u8]) -> Vec<Vec<u8>> {
    let mut zstd = zstd::bulk::Compressor::new(3).ok();
    let pack = |block| match codec {
        Codec::Lz4 => lz4::block::compress(block, None, false).unwrap_or_default(),
        Codec::Zstd => zstd.as_mut().and_then(|zstd| zstd.compress(block).ok()).unwrap_or_default(),
    };
    content.chunks(4096).map(pack).collect()
}

fn sweep(disk: &dyn BlockDevice, buffer: &mut [u8]) {
    for at in (0..disk.size().get()).step_by(buffer.len()) {
        let take = buffer.len().min(usize::try_from(disk.size().get() - at).unwrap_or(0));
        black_box(disk.read_at(ByteOffset::new(at), &mut buffer[..take]).is_ok());
    }
}

/// Bytes as a disk, with nothing between them and their reader.
struct Bytes(Vec<u8>);

impl BlockDevice for Bytes {
    fn size(&self) -> ByteLen {
        ByteLen::of(&self.0)
    }

    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [std::io::IoSliceMut<'_>],
    ) -> Result<(), kiln_block::DeviceError> {
        let mut at = usize::try_from(at.get()).unwrap_or(usize::MAX);
        for buffer in buffers {
            let end = at + buffer.len();
            buffer.copy_from_slice(&self.0[at..end]);
            at = end;
        }
        Ok(())
    }

    fn write_vectored_at(
        &self,
        _at: ByteOffset,
        _buffers: &[std::io::IoSlice<'_>],
    ) -> Result<(), kiln_block::DeviceError> {
        Err(kiln_block::DeviceError::ReadOnly)
    }

    fn discard(&self, _at: ByteOffset, _len: ByteLen) -> Result<(), kiln_block::DeviceError> {
        Err(kiln_block::DeviceError::ReadOnly)
    }

    fn write_zeroes(
        &self,
        _at: ByteOffset,
        _len: ByteLen,
        _keep: bool,
    ) -> Result<(), kiln_block::DeviceError> {
        Err(kiln_block::DeviceError::ReadOnly)
    }

    fn flush(&self) -> Result<(), kiln_block::DeviceError> {
        Ok(())
    }
}

/// Uncompressed layers whose entries cover the disk together, spread over all layers.
fn layers(count: u64, entries: u64) -> Result<Vec<Vec<u8>>> {
    let folder = tempfile::tempdir()?;
    let mut sealed = Vec::new();
    for layer in 0..count {
        let new = NewUpper { virtual_size: entries * 4096, ..NewUpper::default() };
        let (data, index) = (folder.path().join("data"), folder.path().join("index"));
        let disk = Writable::new(Upper::create_log(&data, &index, &new)?, None)?;
        let block = vec![u8::try_from(layer % 251)?; 4096];
        for entry in (layer..entries).step_by(usize::try_from(count)?) {
            disk.write_at(ByteOffset::new(entry * 4096), &block)?;
        }
        sealed.push(disk.commit(Cursor::new(Vec::new()), &Sealing::default())?.out.into_inner());
        drop(disk);
        std::fs::remove_file(&data)?;
        std::fs::remove_file(&index)?;
    }
    Ok(sealed)
}

fn open(layers: &[Vec<u8>]) -> Result<ReadOnly<Stack>> {
    let options = OpenOptions::default();
    let opened = layers.iter().map(|bytes| {
        Layer::open(Input::new("layer", Arc::new(MemoryDevice::holding(bytes))), &options)
    });
    Ok(ReadOnly(Stack::new(opened.collect::<Result<_, _>>()?)?))
}

fn stacks() -> Result<()> {
    let mut buffer = vec![0; 4096];
    for count in [1, 50] {
        let disk = open(&layers(count, 16384)?)?;
        let mut dice = Dice::seeded(2);
        let time = best(|| {
            for _ in 0..200_000 {
                let at = ByteOffset::new(dice.below(16384) * 4096);
                black_box(disk.read_at(at, &mut buffer).is_ok());
            }
        });
        let segments = disk.0.segments().len();
        println!(
            "{count} layers, {segments} segments: random reads of 4 KiB {:.2} M/s",
            rate(200_000, time)
        );
    }
    Ok(())
}

/// Indexes alone: a million entries of zeros in fifty layers.
fn open_many() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = OpenOptions::default();
    let mut files = Vec::new();
    for layer in 0..50u64 {
        let new = NewUpper { virtual_size: 8 << 30, ..NewUpper::default() };
        let (data, index) = (folder.path().join("data"), folder.path().join("index"));
        let disk = Writable::new(Upper::create_log(&data, &index, &new)?, None)?;
        for entry in 0..20_000u64 {
            let at = ByteOffset::new((entry * 50 + layer) * 8192);
            disk.discard(at, ByteLen::new(4096))?;
        }
        let path = folder.path().join(layer.to_string());
        disk.commit(std::fs::File::create(&path)?, &Sealing::default())?;
        files.push(path);
        drop(disk);
        std::fs::remove_file(&data)?;
        std::fs::remove_file(&index)?;
    }
    let mut segments = 0;
    let time = best(|| {
        let opened = files.iter().map(|path| Layer::open(Input::open(path)?, &options));
        let stack = opened.collect::<Result<_, _>>().and_then(Stack::new);
        segments = stack.map_or(0, |stack| stack.segments().len());
    });
    println!(
        "50 layers with {segments} segments in all open in {:.1} ms",
        time.as_secs_f64() * 1e3
    );
    Ok(())
}
