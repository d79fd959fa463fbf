//! What the host asks of the machine itself rather than of a program: modules, disks, the clock, entropy, and how it is.

use std::fs;
use std::path::Path;
use std::time::Duration;

use kiln_model::protocol::{Answer, Done, ErrorKind, Heartbeat};
use rustix::event::Timespec;
use rustix::time::{ClockId, clock_gettime, clock_settime};

use crate::cmdline::Cmdline;
use crate::{disks, modules, transfer};

/// A no that is nobody's failure.
pub(crate) fn refused(text: &str) -> Answer {
    Answer::Error { kind: ErrorKind::Refused, text: text.as_bytes().to_vec() }
}

pub(crate) fn load_modules(names: &[Vec<u8>], cmdline: &Cmdline) -> Result<Answer, Answer> {
    let names: Vec<_> = names.iter().map(|name| String::from_utf8_lossy(name)).collect();
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    let loaded = modules::load(&names, "", cmdline)
        .map_err(|trouble| Answer::Error { kind: trouble.kind, text: trouble.text.into_bytes() })?;
    // A driver may have brought disks.
    let _ = disks::rescan();
    Ok(Answer::Done(Done { count: loaded, ..Done::default() }))
}

pub(crate) fn rescan_disks() -> Result<Answer, Answer> {
    match disks::rescan() {
        Ok(count) => Ok(Answer::Done(Done { count, ..Done::default() })),
        Err(error) => Err(transfer::io_error("update", Path::new("/dev/disk/by-id"), &error)),
    }
}

pub(crate) fn set_clock(nanoseconds: u64) -> Result<Answer, Answer> {
    let since_epoch = timespec(Duration::from_nanos(nanoseconds));
    match clock_settime(ClockId::Realtime, since_epoch) {
        Ok(()) => Ok(Answer::Done(Done::default())),
        Err(error) => Err(refused(&format!("cannot set the clock: {error}"))),
    }
}

/// Stirs the bytes in; the kernel credits nothing for them, but its output is another from now on.
pub(crate) fn seed_entropy(bytes: &[u8]) -> Result<Answer, Answer> {
    let path = Path::new("/dev/urandom");
    match fs::write(path, bytes) {
        Ok(()) => Ok(Answer::Done(Done::default())),
        Err(error) => Err(transfer::io_error("write", path, &error)),
    }
}

pub(crate) fn uptime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

fn memory_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// What a heartbeat says, with this many programs running.
pub(crate) fn vital_signs(sessions: usize) -> Heartbeat {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit.max(1));
    Heartbeat {
        uptime_ms: uptime_ms(),
        // The kernel counts load in 1/65536.
        load_centi: u32::try_from(info.loads[0].saturating_mul(100) >> 16).unwrap_or(u32::MAX),
        memory_total: info.totalram.saturating_mul(unit),
        memory_available: memory_available().unwrap_or(info.freeram.saturating_mul(unit)),
        sessions: u32::try_from(sessions).unwrap_or(u32::MAX),
    }
}
