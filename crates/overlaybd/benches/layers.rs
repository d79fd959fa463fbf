//! How fast layers are found, read and written, against the libraries that do the work below them.
//!
//! Content is the image that `KILN_BENCH_IMAGE` names (its first 256 MiB), or what lies in `/usr/lib` and
//! `/usr/bin`, so that compression works as in an image. All of it is in memory: disks are not what is measured.
//! What is compared runs in turns, and the best of several rounds counts: the machine may have other work.
//! Words after `--` choose among `lookup`, `zfile`, `stack` and `open`.
#![expect(clippy::print_stdout, reason = "figures are what a benchmark says")]

use std::hint::black_box;
use std::io::{Cursor, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, ReadOnly};
use kiln_overlaybd::{
    BlockCache, Codec, Input, Layer, Lookup, NewUpper, OpenOptions, Packing, Sealing, Segment,
    Stack, Upper, Writable, ZFile, ZFileWriter,
};

/// How much content is packed and unpacked at most.
const CONTENT: usize = 256 << 20;
const ROUNDS: usize = 7;

fn main() -> Result<()> {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|word| word == name);
    if wants("lookup") {
        lookups();
    }
    if wants("zfile") {
        let content = content()?;
        println!("content: {} MiB", content.len() >> 20);
        for codec in [Codec::Lz4, Codec::Zstd] {
            packing(codec, &content)?;
            unpacking(codec, &content)?;
        }
    }
    if wants("stack") {
        stacks()?;
    }
    if wants("open") {
        open_many()?;
    }
    Ok(())
}

/// The best time of each, all of them run in turns.
fn race<const COUNT: usize>(mut runs: [&mut dyn FnMut(); COUNT]) -> [Duration; COUNT] {
    let mut best = [Duration::MAX; COUNT];
    for _ in 0..ROUNDS {
        for (run, best) in runs.iter_mut().zip(&mut best) {
            let start = Instant::now();
            run();
            *best = start.elapsed().min(*best);
        }
    }
    best
}

fn rate(count: usize, time: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / time.as_secs_f64() / 1e6
}

fn lookups() {
    for (count, spread) in [
        (1_000u64, "evenly"),
        (100_000, "evenly"),
        (1_000_000, "evenly"),
        (1_000, "at random"),
        (100_000, "at random"),
        (1_000_000, "at random"),
        (100_000, "in clusters"),
    ] {
        let mut dice = Dice::seeded(count);
        let mut starts: Vec<u64> = (0..count)
            .map(|i| match spread {
                "evenly" => i * 16,
                "at random" => dice.below(count * 16),
                _ => (i / 1000) * 1_000_000 + i % 1000 * 8,
            })
            .collect();
        starts.sort_unstable();
        starts.dedup();
        let segment =
            |start: &u64| Segment { start: *start, stored_at: 8, len: 1, source: 0, zeroed: false };
        let segments: Vec<Segment> = starts.iter().map(segment).collect();
        let lookup = Lookup::new(&segments);
        let near = |dice: &mut Dice| {
            let start = starts[usize::try_from(dice.below(starts.len() as u64)).unwrap_or(0)];
            start + dice.below(16)
        };
        let asked: Vec<u64> = (0..1_000_000).map(|_| near(&mut dice)).collect();
        let [ours, binary] = race([
            &mut || {
                black_box(asked.iter().map(|sector| lookup.rank(*sector)).sum::<usize>());
            },
            &mut || {
                let rank = |sector: &u64| starts.partition_point(|start| start <= sector);
                black_box(asked.iter().map(rank).sum::<usize>());
            },
        ]);
        let (ours, binary) = (rate(asked.len(), ours), rate(asked.len(), binary));
        println!(
            "lookup among {} {spread}: {ours:.0} M/s, {:.1} x partition_point ({binary:.0} M/s)",
            starts.len(),
            ours / binary
        );
    }
}

fn content() -> Result<Vec<u8>> {
    let mut content = Vec::with_capacity(CONTENT);
    if let Some(image) = std::env::var_os("KILN_BENCH_IMAGE") {
        std::fs::File::open(image)?.take(CONTENT as u64).read_to_end(&mut content)?;
        content.truncate(content.len() / 65536 * 65536);
        return Ok(content);
    }
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

/// A ZFile of the content, in a buffer that is reused: getting fresh memory costs more than compressing.
fn pack(codec: Codec, threads: usize, checksums: bool, content: &[u8], out: &mut Vec<u8>) {
    let packing = Packing { codec, threads, checksums, ..Packing::default() };
    let mut cursor = Cursor::new(std::mem::take(out));
    let written = ZFileWriter::new(&mut cursor, packing).and_then(|mut zfile| {
        // In pieces, as layers are written.
        content.chunks(32 << 10).try_for_each(|piece| zfile.write_all(piece))?;
        zfile.finish().map(|(_, len)| len)
    });
    *out = cursor.into_inner();
    out.truncate(written.map_or(0, |len| usize::try_from(len).unwrap_or(0)));
}

fn packing(codec: Codec, content: &[u8]) -> Result<()> {
    let (mut one, mut two, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    let mut room = vec![0; 8192];
    let mut zstd = zstd::bulk::Compressor::new(3)?;
    let times = race([
        &mut || {
            for block in content.chunks(4096) {
                black_box(match codec {
                    Codec::Lz4 => lz4::block::compress_to_buffer(block, None, false, &mut room),
                    Codec::Zstd => zstd.compress_to_buffer(block, &mut room),
                })
                .unwrap_or(0);
            }
        },
        &mut || pack(codec, 1, false, content, &mut bare),
        &mut || pack(codec, 1, true, content, &mut one),
        &mut || pack(codec, 2, true, content, &mut two),
    ]);
    anyhow::ensure!(one == two, "the number of threads changes what is written");
    let ratio =
        rate(content.len(), Duration::from_secs(1)) / rate(one.len(), Duration::from_secs(1));
    let [library, bare, one, two] = times.map(|time| rate(content.len(), time));
    println!("{codec:?}, blocks of 4 KiB, ratio {ratio:.2}");
    println!("  pack: library {library:.0} MB/s");
    println!("    1 thread without CRC {bare:.0} MB/s, {:.2} x library", bare / library);
    println!("    1 thread with CRC {one:.0} MB/s, {:.2} x library", one / library);
    println!(
        "    2 threads {two:.0} MB/s, {:.2} x one, {:.2} x twice the library",
        two / one,
        two / library / 2.0
    );
    Ok(())
}

fn unpacking(codec: Codec, content: &[u8]) -> Result<()> {
    // Blocks as the library packs them, one behind the other, with nothing around them.
    let (mut blocks, mut ends) = (Vec::with_capacity(content.len()), Vec::new());
    let mut zstd = zstd::bulk::Compressor::new(3)?;
    for block in content.chunks(4096) {
        blocks.extend(match codec {
            Codec::Lz4 => lz4::block::compress(block, None, false)?,
            Codec::Zstd => zstd.compress(block)?,
        });
        ends.push(blocks.len());
    }
    let open = |threads, checksums| -> Result<ReadOnly<ZFile>> {
        let mut packed = Vec::new();
        pack(codec, 2, checksums, content, &mut packed);
        let input = Input::new("packed", Arc::new(Bytes(packed)));
        Ok(ReadOnly(ZFile::open(input, Arc::new(BlockCache::new(ByteLen::mib(16))), threads)?))
    };
    let (bare, one, two) = (open(1, false)?, open(1, true)?, open(2, true)?);
    let mut unpack = zstd::bulk::Decompressor::new()?;
    let mut room = vec![0; 4 << 20];
    let (mut small, mut large, mut larger, mut largest) =
        (vec![0; 4096], vec![0; 4 << 20], vec![0; 4 << 20], vec![0; 4 << 20]);
    let [library, bare, one_time, two, small_time] = race([
        &mut || {
            let mut start = 0;
            for (end, out) in ends.iter().zip((0..1024).cycle()) {
                let (block, out) = (&blocks[start..*end], &mut room[out * 4096..][..4096]);
                let _ = black_box(match codec {
                    Codec::Lz4 => lz4::block::decompress_to_buffer(block, Some(4096), out),
                    Codec::Zstd => unpack.decompress_to_buffer(block, out),
                });
                start = *end;
            }
        },
        &mut || sweep(&bare, &mut large),
        &mut || sweep(&one, &mut larger),
        &mut || sweep(&two, &mut largest),
        &mut || sweep(&one, &mut small),
    ])
    .map(|time| rate(content.len(), time));
    println!("  unpack: library {library:.0} MB/s");
    println!("    1 thread without CRC {bare:.0} MB/s, {:.2} x library", bare / library);
    println!("    1 thread with CRC {one_time:.0} MB/s, {:.2} x library", one_time / library);
    println!(
        "    1 thread in reads of 4 KiB {small_time:.0} MB/s, {:.2} x library",
        small_time / library
    );
    println!("    2 threads {two:.0} MB/s, {:.2} x one", two / one_time);
    let mut dice = Dice::seeded(1);
    let count = one.size().get() / 4096;
    let [random] = race([&mut || {
        for _ in 0..100_000 {
            let at = ByteOffset::new(dice.below(count) * 4096);
            black_box(one.read_at(at, &mut small).is_ok());
        }
    }]);
    println!("    random reads of 4 KiB {:.0} k/s", rate(100_000, random) * 1e3);
    Ok(())
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

/// Uncompressed layers that hold every `step`th block of 4 KiB together, dealt out in turn.
fn layers(count: u64, blocks: u64, step: u64) -> Result<Vec<Vec<u8>>> {
    let folder = tempfile::tempdir()?;
    let mut sealed = Vec::new();
    for layer in 0..count {
        let new = NewUpper { virtual_size: blocks * step * 4096, ..NewUpper::default() };
        let (data, index) = (folder.path().join("data"), folder.path().join("index"));
        let disk = Writable::new(Upper::create_log(&data, &index, &new)?, None)?;
        let bytes = vec![u8::try_from(layer % 251)?; 4096];
        for block in (layer..blocks).step_by(usize::try_from(count)?) {
            disk.write_at(ByteOffset::new(block * step * 4096), &bytes)?;
        }
        sealed.push(disk.commit(Cursor::new(Vec::new()), &Sealing::default())?.out.into_inner());
        drop(disk);
        std::fs::remove_file(&data)?;
        std::fs::remove_file(&index)?;
    }
    Ok(sealed)
}

fn open(layers: Vec<Vec<u8>>) -> Result<ReadOnly<Stack>> {
    let options = OpenOptions::default();
    let opened = layers
        .into_iter()
        .map(|bytes| Layer::open(Input::new("layer", Arc::new(Bytes(bytes))), &options));
    Ok(ReadOnly(Stack::new(opened.collect::<Result<_, _>>()?)?))
}

/// With every second block missing, one layer has as many segments as fifty, so that only the number of
/// layers differs; without gaps it has a handful.
fn stacks() -> Result<()> {
    const BLOCKS: u64 = 32768;
    for (step, what) in [(2, "every second block"), (1, "every block")] {
        let disks = [open(layers(1, BLOCKS, step)?)?, open(layers(50, BLOCKS, step)?)?];
        let mut dice = Dice::seeded(2);
        let places: Vec<ByteOffset> =
            (0..200_000).map(|_| ByteOffset::new(dice.below(BLOCKS) * step * 4096)).collect();
        let read = |disk: &ReadOnly<Stack>| {
            let mut buffer = vec![0; 4096];
            for at in &places {
                black_box(disk.read_at(*at, &mut buffer).is_ok());
            }
        };
        let times = race([&mut || read(&disks[0]), &mut || read(&disks[1])]);
        let [one, fifty] = times.map(|time| rate(places.len(), time));
        println!(
            "random reads of 4 KiB, {what}: 1 layer ({} segments) {one:.2} M/s, 50 layers ({} segments) {fifty:.2} M/s, {:.2} x",
            disks[0].0.segments().len(),
            disks[1].0.segments().len(),
            fifty / one
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
    let [time] = race([&mut || {
        let opened = files.iter().map(|path| Layer::open(Input::open(path)?, &options));
        let stack = opened.collect::<Result<_, _>>().and_then(Stack::new);
        segments = stack.map_or(0, |stack| stack.segments().len());
    }]);
    println!(
        "50 layers with {segments} segments in all open in {:.1} ms",
        time.as_secs_f64() * 1e3
    );
    Ok(())
}
