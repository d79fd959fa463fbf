//! How fast layers are found, read and written, against the libraries that do the work below them.
//!
//! Content is the image that `KILN_BENCH_IMAGE` names (its first 256 MiB), or what lies in `/usr/lib` and
//! `/usr/bin`, so that compression works as in an image. All of it is in memory: disks are not what is measured.
//! What is compared runs in turns, and the best of several rounds counts: the machine may have other work.
//! What two threads can gain at most is measured in the same turns: the library alone, twice at once, each on its half.
//! Words after `--` choose among `lookup`, `zfile`, `stack` and `open`.
#![expect(clippy::print_stdout, reason = "figures are what a benchmark says")]

use std::hint::black_box;
use std::io::{Cursor, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, BlockSource, ByteLen, ByteOffset, DeviceError, ReadOnly};
use kiln_overlaybd::{
    BlockCache, Codec, Input, Layer, Lookup, NewUpper, OpenOptions, Packing, Sealing, Segment,
    Stack, Upper, Writable, ZFile, ZFileWriter,
};

/// How much content is packed and unpacked at most.
const CONTENT: usize = 256 << 20;
const ROUNDS: usize = 7;

/// What has to be reached, and whether it was.
#[derive(Default)]
struct Bars(Vec<(String, bool)>);

impl Bars {
    fn at_least(&mut self, least: f64, found: f64, what: &str) {
        self.0.push((format!("{what}: {found:.2}, at least {least}"), found >= least));
    }

    fn verdict(&self) -> ExitCode {
        for (what, is_reached) in &self.0 {
            println!("{} {what}", if *is_reached { "ok  " } else { "MISS" });
        }
        let is_good = self.0.iter().all(|(_, is_reached)| *is_reached);
        if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn main() -> Result<ExitCode> {
    let mut bars = Bars::default();
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|word| word == name);
    if wants("lookup") {
        lookups(&mut bars);
    }
    if wants("zfile") {
        let content = content()?;
        println!("content: {} MiB", content.len() >> 20);
        for codec in [Codec::Lz4, Codec::Zstd] {
            packing(codec, &content, &mut bars)?;
            unpacking(codec, &content, &mut bars)?;
        }
    }
    if wants("stack") {
        stacks(&mut bars)?;
    }
    if wants("open") {
        open_many(&mut bars)?;
    }
    Ok(bars.verdict())
}

/// The best times of one way: by the clock, and of processors, which other work on the machine changes less.
#[derive(Clone, Copy)]
struct Best {
    wall: Duration,
    cpu: Duration,
}

/// The best times of each, all of them run in turns.
fn race<const COUNT: usize>(mut runs: [&mut dyn FnMut(); COUNT]) -> [Best; COUNT] {
    let mut best = [Best { wall: Duration::MAX, cpu: Duration::MAX }; COUNT];
    for _ in 0..ROUNDS {
        for (run, best) in runs.iter_mut().zip(&mut best) {
            let (start, cpu) = (Instant::now(), processor_time());
            run();
            best.wall = start.elapsed().min(best.wall);
            best.cpu = processor_time().saturating_sub(cpu).min(best.cpu);
        }
    }
    best
}

/// Of all threads of this process.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn rate(count: usize, time: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / time.as_secs_f64() / 1e6
}

fn lookups(bars: &mut Bars) {
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
        let (ours, binary) = (rate(asked.len(), ours.cpu), rate(asked.len(), binary.cpu));
        println!(
            "lookup among {} {spread}: {ours:.0} M/s, {:.1} x partition_point ({binary:.0} M/s)",
            starts.len(),
            ours / binary
        );
        let least = match count {
            1_000 => 100.0,
            100_000 => 40.0,
            _ => 15.0,
        };
        let what = format!("lookups among {count} {spread}");
        bars.at_least(least, ours, &format!("{what}, M/s"));
        bars.at_least(3.0, ours / binary, &format!("{what}, of partition_point"));
    }
}

/// Runs both at the same time.
fn both(one: impl FnOnce() + Send, other: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(one);
        other();
    });
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

/// Packs content by the library alone.
fn pack_blocks(codec: Codec, content: &[u8]) {
    let mut room = vec![0; 8192];
    let Ok(mut zstd) = zstd::bulk::Compressor::new(3) else { return };
    for block in content.chunks(4096) {
        black_box(match codec {
            Codec::Lz4 => lz4::block::compress_to_buffer(block, None, false, &mut room),
            Codec::Zstd => zstd.compress_to_buffer(block, &mut room),
        })
        .unwrap_or(0);
    }
}

fn packing(codec: Codec, content: &[u8], bars: &mut Bars) -> Result<()> {
    let (mut one, mut two, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    let (half, rest) = content.split_at(content.len() / 8192 * 4096);
    let times = race([
        &mut || pack_blocks(codec, content),
        &mut || both(|| pack_blocks(codec, half), || pack_blocks(codec, rest)),
        &mut || pack(codec, 1, false, content, &mut bare),
        &mut || pack(codec, 1, true, content, &mut one),
        &mut || pack(codec, 2, true, content, &mut two),
    ]);
    anyhow::ensure!(one == two, "the number of threads changes what is written");
    let ratio =
        rate(content.len(), Duration::from_secs(1)) / rate(one.len(), Duration::from_secs(1));
    let [library, limit, bare, one, two] = times;
    let size = content.len();
    println!("{codec:?}, blocks of 4 KiB, ratio {ratio:.2}; single threads by processor time");
    println!("  pack: library {:.0} MB/s", rate(size, library.cpu));
    of_library("1 thread without CRC", size, bare, library);
    of_library("1 thread with CRC", size, one, library);
    let what = format!("{codec:?}, packed without CRC, of the library");
    bars.at_least(0.9, ratio_of(library.cpu, bare.cpu), &what);
    two_threads(&format!("{codec:?}, packed"), size, (library, limit), (one, two), bars);
    Ok(())
}

fn ratio_of(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}

fn of_library(what: &str, size: usize, time: Best, library: Best) {
    let times = ratio_of(library.cpu, time.cpu);
    println!("    {what} {:.0} MB/s, {times:.2} x library", rate(size, time.cpu));
}

/// What two threads gain, beside what two of the library gain, each with its own half. Where those gain less than twice,
/// for they share a memory and perhaps a core, nobody can gain more.
fn two_threads(
    what: &str,
    size: usize,
    (library, limit): (Best, Best),
    (one, two): (Best, Best),
    bars: &mut Bars,
) {
    let (most, gained) = (ratio_of(library.wall, limit.wall), ratio_of(one.wall, two.wall));
    println!(
        "    2 threads {:.0} MB/s, {gained:.2} x one with {:.2} x the processor time; library twice at once {most:.2} x",
        rate(size, two.wall),
        ratio_of(two.cpu, one.cpu)
    );
    let least = (most * 0.95).min(1.8);
    bars.at_least(
        least,
        gained,
        &format!("{what} by 2 threads, of one; the machine allows {most:.2}"),
    );
}

/// Unpacks blocks by the library alone. They lie behind each other and end there.
fn unpack_blocks(codec: Codec, blocks: &[u8], ends: &[usize]) {
    let mut room = vec![0; 4 << 20];
    let Ok(mut zstd) = zstd::bulk::Decompressor::new() else { return };
    let mut start = 0;
    for (end, out) in ends.iter().zip((0..1024).cycle()) {
        let (block, out) = (&blocks[start..*end], &mut room[out * 4096..][..4096]);
        let _ = black_box(match codec {
            Codec::Lz4 => lz4::block::decompress_to_buffer(block, Some(4096), out),
            Codec::Zstd => zstd.decompress_to_buffer(block, out),
        });
        start = *end;
    }
}

fn unpacking(codec: Codec, content: &[u8], bars: &mut Bars) -> Result<()> {
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
        let len = packed.len();
        let part = Part { all: Arc::new(packed), start: 0, len };
        let input = Input::new("packed", Arc::new(ReadOnly(part)));
        Ok(ReadOnly(ZFile::open(input, Arc::new(BlockCache::new(ByteLen::mib(16))), threads)?))
    };
    let (bare, one, two) = (open(1, false)?, open(1, true)?, open(2, true)?);
    let half = ends.len() / 2;
    let middle = ends[half - 1];
    let (first, second) = blocks.split_at(middle);
    let second_ends: Vec<usize> = ends[half..].iter().map(|end| end - middle).collect();
    let mut buffers = [(); 5].map(|()| vec![0; 4 << 20]);
    let [for_bare, for_one, for_two, for_small, for_bare_small] = &mut buffers;
    let (small, bare_small) = (&mut for_small[..4096], &mut for_bare_small[..4096]);
    let times = race([
        &mut || unpack_blocks(codec, &blocks, &ends),
        &mut || {
            let other = || unpack_blocks(codec, second, &second_ends);
            both(|| unpack_blocks(codec, first, &ends[..half]), other);
        },
        &mut || sweep(&bare, for_bare),
        &mut || sweep(&one, for_one),
        &mut || sweep(&two, for_two),
        &mut || sweep(&bare, bare_small),
        &mut || sweep(&one, small),
    ]);
    let [library, limit, bare, one_time, two, bare_small, small_time] = times;
    let size = content.len();
    println!("  unpack: library {:.0} MB/s", rate(size, library.cpu));
    for (what, time) in [
        ("1 thread without CRC", bare),
        ("1 thread with CRC", one_time),
        ("1 thread in reads of 4 KiB without CRC", bare_small),
        ("1 thread in reads of 4 KiB with CRC", small_time),
    ] {
        of_library(what, size, time, library);
    }
    for (what, time) in [("", bare), ("in reads of 4 KiB ", bare_small)] {
        let what = format!("{codec:?}, unpacked {what}without CRC, of the library");
        bars.at_least(0.9, ratio_of(library.cpu, time.cpu), &what);
    }
    two_threads(&format!("{codec:?}, unpacked"), size, (library, limit), (one_time, two), bars);
    let mut dice = Dice::seeded(1);
    let count = one.size().get() / 4096;
    let [random] = race([&mut || {
        for _ in 0..100_000 {
            let at = ByteOffset::new(dice.below(count) * 4096);
            black_box(one.read_at(at, small).is_ok());
        }
    }]);
    println!("    random reads of 4 KiB {:.0} k/s", rate(100_000, random.cpu) * 1e3);
    Ok(())
}

fn sweep(disk: &dyn BlockDevice, buffer: &mut [u8]) {
    for at in (0..disk.size().get()).step_by(buffer.len()) {
        let take = buffer.len().min(usize::try_from(disk.size().get() - at).unwrap_or(0));
        black_box(disk.read_at(ByteOffset::new(at), &mut buffer[..take]).is_ok());
    }
}

/// Layers that hold every `step`th block of 4 KiB together, dealt out in turn; how they are sealed, and what they hold.
fn layers(
    count: u64,
    (blocks, step): (u64, u64),
    sealing: &Sealing,
    content: &[u8],
) -> Result<ReadOnly<Stack>> {
    let folder = tempfile::tempdir()?;
    // All in one piece: what is compared is how many layers there are, not how memory is laid out.
    let (mut all, mut ends) = (Vec::new(), Vec::new());
    for layer in 0..count {
        let new = NewUpper { virtual_size: blocks * step * 4096, ..NewUpper::default() };
        let (data, index) = (folder.path().join("data"), folder.path().join("index"));
        let disk = Writable::new(Upper::create_log(&data, &index, &new)?, None)?;
        for block in (layer..blocks).step_by(usize::try_from(count)?) {
            let bytes = &content[usize::try_from(block)? * 4096..][..4096];
            disk.write_at(ByteOffset::new(block * step * 4096), bytes)?;
        }
        all.extend(disk.commit(Cursor::new(Vec::new()), sealing)?.out.into_inner());
        ends.push(all.len());
        drop(disk);
        std::fs::remove_file(&data)?;
        std::fs::remove_file(&index)?;
    }
    let options = OpenOptions::default();
    let all = Arc::new(all);
    let starts = [0].iter().chain(&ends);
    let opened = starts.zip(&ends).map(|(start, end)| {
        let part = Part { all: Arc::clone(&all), start: *start, len: end - start };
        Layer::open(Input::new("layer", Arc::new(ReadOnly(part))), &options)
    });
    Ok(ReadOnly(Stack::new(opened.collect::<Result<_, _>>()?)?))
}

/// Some of the bytes as a disk.
struct Part {
    all: Arc<Vec<u8>>,
    start: usize,
    len: usize,
}

impl BlockSource for Part {
    fn size(&self) -> ByteLen {
        ByteLen::new(self.len as u64)
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let at = self.start + usize::try_from(at).unwrap_or(0);
        buffer.copy_from_slice(&self.all[at..at + buffer.len()]);
        Ok(())
    }
}

/// With every second block missing, one layer has as many segments as fifty, so that only the number of
/// layers differs; without gaps it has a handful.
fn stacks(bars: &mut Bars) -> Result<()> {
    const BLOCKS: u64 = 32768;
    let content = content()?;
    let plain = Sealing::default();
    let packed = Sealing { packing: Some(Packing::default()), ..Sealing::default() };
    for (step, sealing, what) in [
        (2, &plain, "every second block, uncompressed"),
        (1, &plain, "every block, uncompressed"),
        (2, &packed, "every second block, lz4"),
        (1, &packed, "every block, lz4"),
    ] {
        let shape = (BLOCKS.min(content.len() as u64 / 4096), step);
        let disks = [layers(1, shape, sealing, &content)?, layers(50, shape, sealing, &content)?];
        let mut dice = Dice::seeded(2);
        let places: Vec<ByteOffset> =
            (0..200_000).map(|_| ByteOffset::new(dice.below(shape.0) * step * 4096)).collect();
        let read = |disk: &ReadOnly<Stack>| {
            let mut buffer = vec![0; 4096];
            for at in &places {
                black_box(disk.read_at(*at, &mut buffer).is_ok());
            }
        };
        let times = race([&mut || read(&disks[0]), &mut || read(&disks[1])]);
        let [one, fifty] = times.map(|time| rate(places.len(), time.cpu));
        println!(
            "random reads of 4 KiB, {what}: 1 layer ({} segments) {one:.2} M/s, 50 layers ({} segments) {fifty:.2} M/s, {:.2} x",
            disks[0].0.segments().len(),
            disks[1].0.segments().len(),
            fifty / one
        );
        bars.at_least(0.9, fifty / one, &format!("random reads of 50 layers, {what}, of 1 layer"));
    }
    Ok(())
}

/// Indexes alone: a million entries of zeros in fifty layers.
fn open_many(bars: &mut Bars) -> Result<()> {
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
        time.wall.as_secs_f64() * 1e3
    );
    bars.at_least(10.0, 1.0 / time.wall.as_secs_f64(), "stacks of 50 layers opened, in a second");
    Ok(())
}
