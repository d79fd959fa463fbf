//! The end of the machine: everything killed, synced, unmounted, switched off.

use std::fs;
use std::io::Write;
use std::panic;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::fs::sync;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::system::{RebootCommand, reboot};

use crate::console::say;

/// File systems that hold nothing to save.
const VIRTUAL: [&str; 9] =
    ["proc", "sysfs", "devtmpfs", "devpts", "cgroup2", "debugfs", "tracefs", "rootfs", "tmpfs"];

/// Kills every other process and unmounts all that can be, newest first. Only for PID 1.
pub(crate) fn quiesce() {
    // Every process but this one; the kernel spares PID 1 and the caller.
    let _ = kill_process_group(Pid::INIT, Signal::KILL);
    for target in mounted() {
        // A process that was just killed may hold it for a moment yet.
        for attempt in 0..10 {
            match unmount(&target, UnmountFlags::empty()) {
                Err(rustix::io::Errno::BUSY) if attempt < 9 => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) => {
                    say!("cannot unmount {}: {error}", target.display());
                    break;
                }
                Ok(()) => break,
            }
        }
    }
    sync();
}

fn mounted() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mut targets: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (target, kind) = (words.nth(1)?, words.next()?);
            let keep = VIRTUAL.contains(&kind) || target == "/";
            (!keep).then(|| PathBuf::from(unescape(target)))
        })
        .collect();
    targets.reverse();
    targets
}

/// `/proc/mounts` writes blanks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out + rest
}

/// Switches the machine off; comes back only if the kernel cannot.
pub(crate) fn off() -> ! {
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        say!("cannot power off: {error}");
    }
    // The other way out: sysrq's `o`. If even that fails the host will notice the silence.
    let _ = fs::write("/proc/sysrq-trigger", "o");
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// From here on a failure of PID 1 itself says why on the console and switches the machine off, instead
/// of making the kernel panic, which would be blamed on the kernel.
pub(crate) fn off_on_panic() {
    panic::set_hook(Box::new(|info| {
        let line = format!("kiln-guest: the agent itself failed: {info}\n");
        let told = fs::OpenOptions::new()
            .write(true)
            .open("/dev/console")
            .and_then(|mut console| console.write_all(line.as_bytes()));
        if told.is_err() {
            say!("the agent itself failed: {info}");
        }
        sync();
        off();
    }));
}
