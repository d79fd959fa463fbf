//! Becoming a machine of one's own, after many were restored from the same instant.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use kiln_model::protocol::{Answer, Done, Renewal};
use rustix::ioctl::{self, NoArg, Opcode, Setter};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::cmdline::Cmdline;
use crate::console::say;

const RANDOM: &str = "/dev/random";
const MACHINE_ID: &str = "/etc/machine-id";
/// The most random bytes the kernel is given at once; what a host sends beyond is left out.
const MOST: usize = 64;

/// `struct rand_pool_info` with room for that many bytes.
#[repr(C)]
struct PoolInfo {
    bits: i32,
    bytes: i32,
    data: [u8; MOST],
}

/// The number says `int[2]`, which is the struct's head.
const RNDADDENTROPY: Opcode = ioctl::opcode::write::<[i32; 2]>(b'R', 0x03);
const RNDRESEEDCRNG: Opcode = ioctl::opcode::none(b'R', 0x07);

/// What a renewal needs, opened before the machine was saved: for a translated guest, each file that need not be looked up
/// or made any more is a good part of what the renewal costs.
#[derive(Debug, Default)]
pub(crate) struct Standby {
    random: Option<File>,
    /// And how long it is.
    machine_id: Option<(File, usize)>,
}

impl Standby {
    /// Opens what can be opened.
    pub(crate) fn prepare() -> Standby {
        Standby {
            random: File::options().write(true).open(RANDOM).ok(),
            machine_id: own_file(Path::new(MACHINE_ID)).ok(),
        }
    }
}

/// Does what can be done of it; the answer counts, and the console says what could not.
pub(crate) fn renew(renewal: &Renewal, cmdline: &Cmdline, standby: Standby) -> Answer {
    let since_epoch = Duration::from_nanos(renewal.since_epoch);
    let since_epoch = Timespec {
        tv_sec: i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: since_epoch.subsec_nanos().into(),
    };
    // Random numbers first: what comes later may use them.
    let results = [
        ("random numbers", reseed(&renewal.entropy, standby.random)),
        ("clock", clock_settime(ClockId::Realtime, since_epoch).map_err(Into::into)),
        ("host name", name(&renewal.hostname, cmdline)),
        ("machine id", identify(&renewal.machine_id, standby.machine_id)),
    ];
    let mut count = 0;
    for (what, result) in results {
        match result {
            Ok(()) => count += 1,
            Err(error) => say!("cannot make the {what} this machine's own: {error}"),
        }
    }
    Answer::Done(Done { count, ..Done::default() })
}

fn reseed(entropy: &[u8], random: Option<File>) -> io::Result<()> {
    let count = entropy.len().min(MOST);
    let bytes = i32::try_from(count).unwrap_or_default();
    let mut info = PoolInfo { bits: bytes * 8, bytes, data: [0; MOST] };
    info.data[..count].copy_from_slice(&entropy[..count]);
    let random = match random {
        Some(random) => random,
        None => File::options().write(true).open(RANDOM)?,
    };
    // SAFETY: the kernel reads the struct's head and as many bytes as that says, which are there.
    let add = unsafe { Setter::<RNDADDENTROPY, PoolInfo>::new(info) };
    // SAFETY: it only reads, and only what is there.
    unsafe { ioctl::ioctl(random.as_fd(), add) }?;
    // Without this the bytes would wait for the next reseeding, a minute later.
    // SAFETY: this request has no argument.
    let reseed = unsafe { NoArg::<RNDRESEEDCRNG>::new() };
    // SAFETY: it touches no memory of ours.
    unsafe { ioctl::ioctl(random.as_fd(), reseed) }?;
    Ok(())
}

fn name(hostname: &[u8], cmdline: &Cmdline) -> io::Result<()> {
    if hostname.is_empty() || cmdline.kiln("hostname").is_some() {
        return Ok(());
    }
    Ok(rustix::system::sethostname(hostname)?)
}

fn identify(id: &[u8], file: Option<(File, usize)>) -> io::Result<()> {
    if id.is_empty() {
        return Ok(());
    }
    let (file, length) = match file {
        Some(file) => file,
        None => own_file(Path::new(MACHINE_ID))?,
    };
    let line = [id, b"\n"].concat();
    file.write_all_at(&line, 0)?;
    // What an image brought may be anything.
    if length > line.len() {
        file.set_len(line.len() as u64)?;
    }
    Ok(())
}

/// Replaces the file by one of the same content, so that an image's own that is shared or a link stays as it is.
fn own_file(path: &Path) -> io::Result<(File, usize)> {
    let content = fs::read(path).unwrap_or_default();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = File::create_new(path)?;
    file.write_all_at(&content, 0)?;
    Ok((file, content.len()))
}
