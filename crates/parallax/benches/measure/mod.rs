//! What the benches have in common: cost of a piece of work, and what a row says about it.
#![expect(dead_code, reason = "no bench uses all of it")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset};
use tempfile::TempDir;

/// CPU and wall time.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) cpu: Duration,
    pub(crate) wall: Duration,
}

fn cpu_now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(now.tv_sec).unwrap(), u32::try_from(now.tv_nsec).unwrap())
}

pub(crate) fn cost(work: &mut dyn FnMut()) -> Cost {
    let (cpu, wall) = (cpu_now(), Instant::now());
    work();
    Cost { cpu: cpu_now() - cpu, wall: wall.elapsed() }
}

pub(crate) fn best(costs: &[Cost]) -> Cost {
    Cost {
        cpu: costs.iter().map(|cost| cost.cpu).min().unwrap(),
        wall: costs.iter().map(|cost| cost.wall).min().unwrap(),
    }
}

pub(crate) fn micros(time: Duration, ops: u32) -> f64 {
    time.as_secs_f64() * 1e6 / f64::from(ops)
}

/// Of times that need not be sorted, the one that so many of a hundred do not reach.
pub(crate) fn percentile(times: &mut [Duration], of_hundred: usize) -> f64 {
    times.sort_unstable();
    micros(times[(times.len() * of_hundred / 100).min(times.len() - 1)], 1)
}

/// Whether a row was asked for: by a part of its name, or all.
pub(crate) fn wanted(name: &str) -> bool {
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    asked.is_empty() || asked.iter().any(|part| name.contains(part.as_str()))
}

/// A folder on the filesystem that `KILN_BENCH_DIR` names.
pub(crate) fn folder() -> TempDir {
    match std::env::var_os("KILN_BENCH_DIR") {
        Some(path) => tempfile::tempdir_in(PathBuf::from(path)).unwrap(),
        None => tempfile::tempdir().unwrap(),
    }
}

/// 4 KiB each, at random places.
pub(crate) fn random(disk: &dyn BlockDevice, ops: u32, seed: u64, act: Act) {
    let mut dice = Dice::seeded(seed);
    let mut buffer = vec![0x5a; 4096];
    let blocks = disk.size().get() / 4096;
    for _ in 0..ops {
        let at = ByteOffset::new(dice.below(blocks) * 4096);
        match act {
            Act::Read => disk.read_at(at, &mut buffer).unwrap(),
            Act::Write | Act::WriteAndFlush => disk.write_at(at, &buffer).unwrap(),
        }
        if let Act::WriteAndFlush = act {
            disk.flush().unwrap();
        }
    }
    if let Act::Write = act {
        disk.flush().unwrap();
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Act {
    Read,
    /// All of them, then one flush.
    Write,
    WriteAndFlush,
}

/// All of a disk, 64 KiB each.
pub(crate) fn sequential(disk: &dyn BlockDevice, act: Act) {
    let mut buffer = vec![0xa5; 65536];
    for at in (0..disk.size().get()).step_by(65536) {
        match act {
            Act::Read => disk.read_at(ByteOffset::new(at), &mut buffer).unwrap(),
            _ => disk.write_at(ByteOffset::new(at), &buffer).unwrap(),
        }
    }
    if !matches!(act, Act::Read) {
        disk.flush().unwrap();
    }
}

/// Bytes this process gave to `write` and its kin.
pub(crate) fn bytes_written() -> u64 {
    field("/proc/self/io", "wchar:")
}

/// Resident memory of this process.
pub(crate) fn resident() -> ByteLen {
    ByteLen::kib(field("/proc/self/status", "VmRSS:"))
}

fn field(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
