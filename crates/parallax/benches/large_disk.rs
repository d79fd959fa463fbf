//! Memory and metadata of a disk of 100 GiB, all of it written: `cargo bench -p kiln-parallax --bench large_disk`.
//!
//! What is written is zeros, which the device below keeps as holes, so that the file takes little. The
//! disk is served by a process of its own, whose memory is measured. `KILN_BENCH_GIB` is another size.
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]

mod measure;

use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, DeviceError, FileDevice};
use kiln_parallax::{DiskOptions, Pool, PoolOptions};

use measure::{Act, cost, folder, micros, random, resident};

const SERVE: &str = "--serve";

/// A file that keeps long runs of zeros as holes.
struct Sparse(FileDevice);

impl BlockDevice for Sparse {
    fn size(&self) -> ByteLen {
        self.0.size()
    }

    fn read_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        self.0.read_vectored_at(at, buffers)
    }

    fn write_vectored_at(
        &self,
        at: ByteOffset,
        buffers: &[IoSlice<'_>],
    ) -> Result<(), DeviceError> {
        match buffers {
            [buffer] if buffer.len() >= 65536 && buffer.iter().all(|byte| *byte == 0) => {
                self.0.write_zeroes(at, ByteLen::new(buffer.len() as u64), false)
            }
            _ => self.0.write_vectored_at(at, buffers),
        }
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.0.discard(at, len)
    }

    fn write_zeroes(&self, at: ByteOffset, len: ByteLen, keep: bool) -> Result<(), DeviceError> {
        self.0.write_zeroes(at, len, keep)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.0.flush()
    }
}

fn size() -> ByteLen {
    let asked = std::env::var("KILN_BENCH_GIB").ok();
    ByteLen::gib(asked.map_or(100, |number| number.parse().unwrap()))
}

fn main() {
    let mut args = std::env::args().skip_while(|arg| arg != SERVE).skip(1);
    if let Some(path) = args.next() {
        return serve(Path::new(&path));
    }
    let folder = folder();
    let path = folder.path().join("pool");
    let len = ByteLen::new(size().get() + (8 << 30));
    let device = Arc::new(Sparse(FileDevice::create(&path, len).unwrap()));
    let pool = Pool::create(device, &PoolOptions::default()).unwrap();
    pool.create_disk("disk", size(), &DiskOptions::default()).unwrap();
    let empty = pool.space().used;
    {
        let disk = pool.open_disk("disk").unwrap();
        let zeros = vec![0; 1 << 20];
        for at in (0..size().get()).step_by(1 << 20) {
            disk.write_at(ByteOffset::new(at), &zeros).unwrap();
        }
        disk.flush().unwrap();
    }
    pool.checkpoint().unwrap();
    let metadata = pool.space().used.get() - empty.get() - size().get();
    println!(
        "{} written in sequence: {} MiB of metadata, {:.3} %",
        size(),
        metadata >> 20,
        metadata as f64 / size().get() as f64 * 100.0,
    );
    drop(pool);
    let served = Command::new(std::env::current_exe().unwrap()).arg(SERVE).arg(&path).status();
    assert!(served.unwrap().success(), "the serving process failed");
}

/// Reads and writes at random, and says what memory that takes.
fn serve(path: &Path) {
    let start = resident();
    let device = Arc::new(Sparse(FileDevice::open(path, false).unwrap()));
    let mut pool = None;
    let opened =
        cost(&mut || pool = Some(Pool::open(device.clone(), &PoolOptions::default()).unwrap()));
    let pool = pool.unwrap();
    let disk = pool.open_disk("disk").unwrap();
    let mib = |len: ByteLen| len.get() as f64 / f64::from(1 << 20);
    println!(
        "opened in {:.0} ms; resident: {:.1} MiB at the start, {:.1} MiB open",
        opened.wall.as_secs_f64() * 1e3,
        mib(start),
        mib(resident()),
    );
    for (what, act, ops) in [
        ("reads", Act::Read, 400_000),
        ("writes", Act::Write, 200_000),
        ("writes with a flush each", Act::WriteAndFlush, 5_000),
        ("reads", Act::Read, 400_000),
    ] {
        let spent = cost(&mut || random(&disk, ops, 5, act));
        println!(
            "{ops} random 4 KiB {what}: {:.2} µs of CPU each; resident {:.1} MiB, of it {:.1} MiB of cache",
            micros(spent.cpu, ops),
            mib(resident()),
            mib(pool.space().cached),
        );
    }
}
