//! What it costs to have many snapshots and clones: `cargo bench -p kiln-parallax --bench many_states`.
//!
//! `KILN_BENCH_DIR` says on which filesystem. Those that are measured are durable when they return; the 100,000 before them, or as
//! many as `KILN_BENCH_STATES` says, are made without syncs and synced once.
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]

mod measure;

use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, FileDevice};
use kiln_parallax::{DiskOptions, Pool, PoolOptions};

use measure::{Act, Cost, best, cost, folder, micros, percentile, random, sequential, wanted};

fn states() -> u64 {
    let asked = std::env::var("KILN_BENCH_STATES").ok();
    asked.map_or(100_000, |number| number.parse().unwrap())
}

fn main() {
    let folder = folder();
    if wanted("latency") {
        latency(&folder.path().join("latency"));
    }
    if wanted("reads") {
        reads(&folder.path().join("reads"));
    }
}

/// Snapshots and clones that are made one after the other and then measured.
const MEASURED: u64 = 2000;

/// A file whose flushes sync when they are told to: what is there before anything is measured need not survive a power cut
/// in between.
struct Relaxed {
    file: FileDevice,
    syncs: AtomicBool,
}

impl BlockDevice for Relaxed {
    fn size(&self) -> ByteLen {
        self.file.size()
    }

    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        self.file.read_vectored_at(at, buffers)
    }

    fn write_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        self.file.write_vectored_at(at, buffers)
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.file.discard(at, len)
    }

    fn write_zeroes(
        &self,
        at: ByteOffset,
        len: ByteLen,
        keep_allocated: bool,
    ) -> Result<(), DeviceError> {
        self.file.write_zeroes(at, len, keep_allocated)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        match self.syncs.load(Ordering::Relaxed) {
            true => self.file.flush(),
            false => Ok(()),
        }
    }

    fn begin_writing_out(&self, at: ByteOffset, len: ByteLen) {
        if self.syncs.load(Ordering::Relaxed) {
            self.file.begin_writing_out(at, len);
        }
    }

    fn grow(&self, size: ByteLen) -> Result<(), DeviceError> {
        self.file.grow(size)
    }
}

fn row(what: &str, times: &mut [Duration]) {
    let [median, late, last] = [50, 99, 100].map(|percent| percentile(times, percent));
    println!("{what:44} {median:9.0} {late:9.0} {last:9.0}");
}

/// A snapshot after each write on a disk of 100 GiB, and now and then a clone. Then as many again that are measured,
/// in turn with flushes of the same disk, and with writes and syncs of a plain file beside the pool.
fn latency(path: &Path) {
    let options = PoolOptions { limit: ByteLen::gib(32), ..PoolOptions::default() };
    let file = FileDevice::create(path, ByteLen::mib(256)).unwrap();
    file.grow(ByteLen::mib(256)).unwrap();
    let device = Arc::new(Relaxed { file, syncs: AtomicBool::new(false) });
    let pool = Pool::create(device.clone(), &options).unwrap();
    pool.create_disk("disk", ByteLen::gib(100), &DiskOptions::default()).unwrap();
    let disk = pool.open_disk("disk").unwrap();
    let total = states();
    let mut dice = kiln_block::testing::Dice::seeded(1);
    let mut write = |number: u8| {
        let at = ByteOffset::new(dice.below(disk.size().get() / 4096) * 4096);
        disk.write_at(at, &[number; 4096]).unwrap();
    };
    let made = cost(&mut || {
        for made in 0..total {
            let name = format!("s{made}");
            write(1);
            pool.snapshot("disk", &name).unwrap();
            if made.is_multiple_of(10) {
                pool.clone_disk("disk", &name, &format!("c{made}"), &DiskOptions::default())
                    .unwrap();
            }
        }
        pool.checkpoint().unwrap();
    });
    println!(
        "{total} snapshots, {} clones: made in {:.1} s",
        total.div_ceil(10),
        made.wall.as_secs_f64()
    );
    device.syncs.store(true, Ordering::Relaxed);
    // What was never synced is written out now, not while something is measured.
    device.flush().unwrap();
    pool.checkpoint().unwrap();
    let plain = FileDevice::create(&path.with_extension("plain"), ByteLen::mib(64)).unwrap();
    for at in (0..plain.size().get()).step_by(1 << 20) {
        plain.write_at(ByteOffset::new(at), &[1; 1 << 20]).unwrap();
    }
    plain.flush().unwrap();
    let mut times: [Vec<Duration>; 4] = Default::default();
    for n in 0..MEASURED {
        let (name, clone) = (format!("m{n}"), format!("d{n}"));
        write(2);
        times[0].push(cost(&mut || pool.snapshot("disk", &name).unwrap()).wall);
        let options = DiskOptions::default();
        let work = &mut || pool.clone_disk("disk", &name, &clone, &options).unwrap();
        times[1].push(cost(work).wall);
        write(3);
        times[2].push(cost(&mut || disk.flush().unwrap()).wall);
        let at = ByteOffset::new(n * 37 % (plain.size().get() / 4096) * 4096);
        let work = &mut || {
            plain.write_at(at, &[4; 4096]).unwrap();
            plain.flush().unwrap();
        };
        times[3].push(cost(work).wall);
    }
    let [snaps, clones, flushes, syncs] = &mut times;
    println!(
        "{:44} {:>9} {:>9} {:>9}",
        "disk of 100 GiB, each durable, us", "median", "p99", "slowest"
    );
    row("snapshot", snaps);
    row("clone", clones);
    row("in turn with them: a flush of one block", flushes);
    row("and a plain file: pwrite, fdatasync", syncs);
    pool.checkpoint().unwrap();
    drop((disk, pool));
    let mut pool = None;
    let opened =
        cost(&mut || pool = Some(Pool::open(device.clone(), &PoolOptions::default()).unwrap()));
    println!("opening it: {:.0} ms", opened.wall.as_secs_f64() * 1e3);
    let pool = pool.unwrap();
    let mut deletes = Vec::new();
    for n in 0..200.min(total / 2) {
        let name = format!("s{}", n * 2 + 1);
        deletes.push(cost(&mut || pool.delete_snapshot("disk", &name).unwrap()).wall);
    }
    row(&format!("delete one of {total} snapshots, the call"), &mut deletes);
}

/// The same random reads of disks that differ in how many snapshots or ancestors they have.
fn reads(path: &Path) {
    const DISK: ByteLen = ByteLen::mib(64);
    const READS: u32 = 50_000;
    let pool = Pool::create_file(path, ByteLen::gib(16), &PoolOptions::default()).unwrap();
    let options = DiskOptions::default();
    let mut disks: Vec<(String, String)> = Vec::new();
    for snapshots in [0_u64, 1, 100, 10_000] {
        let name = format!("with-{snapshots}");
        pool.create_disk(&name, DISK, &options).unwrap();
        let disk = pool.open_disk(&name).unwrap();
        sequential(&disk, Act::Write);
        for n in 0..snapshots {
            disk.write_at(ByteOffset::new(n * 4096 % DISK.get()), &[2; 4096]).unwrap();
            pool.snapshot(&name, &n.to_string()).unwrap();
        }
        disks.push((name, format!("{snapshots} snapshots")));
    }
    for depth in [1_u64, 10, 1000] {
        let mut name = format!("deep-{depth}-0");
        pool.create_disk(&name, DISK, &options).unwrap();
        sequential(&pool.open_disk(&name).unwrap(), Act::Write);
        for n in 0..depth {
            let next = format!("deep-{depth}-{}", n + 1);
            pool.snapshot(&name, "s").unwrap();
            pool.clone_disk(&name, "s", &next, &options).unwrap();
            let disk = pool.open_disk(&next).unwrap();
            disk.write_at(ByteOffset::new(n * 4096), &[3; 4096]).unwrap();
            name = next;
        }
        disks.push((name, format!("{depth} ancestors")));
    }
    pool.checkpoint().unwrap();
    let open: Vec<_> = disks.iter().map(|(name, _)| pool.open_disk(name).unwrap()).collect();
    let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); disks.len()];
    for round in 0..11 {
        for (disk, costs) in open.iter().zip(&mut costs) {
            costs.push(cost(&mut || random(disk, READS, round, Act::Read)));
        }
    }
    println!("\n{:44} {:>9} {:>9}", "4 KiB at random, CPU µs", "", "ratio");
    let base = best(&costs[0]).cpu;
    for ((_, what), costs) in disks.iter().zip(&costs) {
        let cpu = best(costs).cpu;
        let ratio = cpu.as_secs_f64() / base.as_secs_f64();
        println!("{what:44} {:9.3} {ratio:9.3}", micros(cpu, READS));
    }
}
