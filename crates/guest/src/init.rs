//! What PID 1 does before anything else may run: mounts, names, the loopback, `/sbin/modprobe`.
//!
//! Nothing here is fatal: a kernel without cgroups or debugfs is a kernel under test like any other.

use std::ffi::CStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::mount::{MountFlags, mount};
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketType, send, socket};

use crate::cmdline::Cmdline;
use crate::console::say;

struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: &'static CStr,
}

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC).union(MountFlags::NODEV);

/// In this order; `/proc` and `/dev` come first because the others look there.
const MOUNTS: [Mount; 10] = [
    Mount { kind: "proc", target: "/proc", flags: SAFE, data: c"" },
    Mount { kind: "devtmpfs", target: "/dev", flags: MountFlags::NOSUID, data: c"mode=0755" },
    Mount { kind: "sysfs", target: "/sys", flags: SAFE, data: c"" },
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: c"mode=0620,ptmxmode=0666",
    },
    Mount { kind: "tmpfs", target: "/dev/shm", flags: MountFlags::NOSUID, data: c"mode=1777" },
    Mount { kind: "tmpfs", target: "/run", flags: MountFlags::NOSUID, data: c"mode=0755" },
    Mount { kind: "tmpfs", target: "/tmp", flags: MountFlags::NOSUID, data: c"mode=1777" },
    Mount { kind: "cgroup2", target: "/sys/fs/cgroup", flags: SAFE, data: c"" },
    Mount { kind: "debugfs", target: "/sys/kernel/debug", flags: SAFE, data: c"" },
    Mount { kind: "tracefs", target: "/sys/kernel/tracing", flags: SAFE, data: c"" },
];

/// Mounts what the kernel offers, and says how much of it the console tells.
pub(crate) fn set_up() -> Cmdline {
    MOUNTS.iter().for_each(mount_one);
    let cmdline = Cmdline::read();
    let hostname = cmdline.kiln("hostname").unwrap_or("kiln");
    if let Err(error) = rustix::system::sethostname(hostname.as_bytes()) {
        say!("cannot set the host name to {hostname}: {error}");
    }
    // The boot is over: from here on the console tells what the kernel does, not only what goes wrong.
    let level = cmdline.kiln("loglevel").unwrap_or("7");
    if let Err(error) = fs::write("/proc/sys/kernel/printk", level) {
        say!("cannot set the console's log level to {level}: {error}");
    }
    if let Err(error) = raise_loopback() {
        say!("cannot raise the loopback interface: {error}");
    }
    cmdline
}

/// Puts what programs expect into the root they will see.
pub(crate) fn furnish() {
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/etc/mtab", "/proc/self/mounts"),
    ] {
        link_if_absent(target, Path::new(link));
    }
    install_modprobe();
}

fn mount_one(wanted: &Mount) {
    let target = Path::new(wanted.target);
    // Asking for an unknown file system makes the kernel call modprobe, which costs more than to look.
    if wanted.kind != "proc" && !kernel_knows(wanted.kind) {
        return;
    }
    // Whatever the image put into /tmp must stay visible.
    if wanted.target == "/tmp"
        && fs::read_dir(target).is_ok_and(|mut inside| inside.next().is_some())
    {
        return;
    }
    // Below /sys the kernel makes the mount points itself, where it wants any.
    let made = if wanted.target.starts_with("/sys/") { Ok(()) } else { fs::create_dir_all(target) };
    let done = made.map_err(|error| error.to_string()).and_then(|()| {
        mount(wanted.kind, target, wanted.kind, wanted.flags, wanted.data)
            .map_err(|error| error.to_string())
    });
    match done {
        Ok(()) => {}
        Err(_) if is_mounted(target) => {}
        Err(error) => say!("cannot mount {} on {}: {error}", wanted.kind, wanted.target),
    }
}

fn kernel_knows(kind: &str) -> bool {
    fs::read_to_string("/proc/filesystems")
        .is_ok_and(|text| text.lines().any(|line| line.rsplit('\t').next() == Some(kind)))
}

fn is_mounted(target: &Path) -> bool {
    let wanted = target.to_string_lossy();
    fs::read_to_string("/proc/mounts")
        .is_ok_and(|text| text.lines().any(|line| line.split(' ').nth(1) == Some(&*wanted)))
}

fn link_if_absent(target: &str, link: &Path) {
    if let Some(folder) = link.parent() {
        let _ = fs::create_dir_all(folder);
    }
    match symlink(target, link) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => say!("cannot make {}: {error}", link.display()),
    }
}

/// The kernel itself runs `/sbin/modprobe` when it wants a module; without kmod in the image, that is us.
fn install_modprobe() {
    let modprobe = Path::new("/sbin/modprobe");
    if modprobe.exists() {
        return;
    }
    // After a change of root we run from a file that is gone, and are there as what we were called.
    let ourselves = fs::read_link("/proc/self/exe").ok().filter(|path| path.exists());
    let ourselves = ourselves.unwrap_or_else(|| "/init".into());
    link_if_absent(&ourselves.to_string_lossy(), modprobe);
}

/// Sets IFF_UP on interface 1, which is always the loopback, with one rtnetlink message; the kernel
/// acts on it before `send` returns.
fn raise_loopback() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const IFF_UP: u32 = 1;
    const NETLINK_ROUTE: Option<Protocol> = None; // number 0
    let mut message = Vec::new();
    message.extend(32_u32.to_ne_bytes()); // length: 16 of header, 16 of ifinfomsg
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8]); // sequence, port
    message.extend([0; 4]); // family, padding, type
    message.extend(1_i32.to_ne_bytes()); // interface
    message.extend(IFF_UP.to_ne_bytes()); // flags
    message.extend(IFF_UP.to_ne_bytes()); // which of them to change
    let link = socket(AddressFamily::NETLINK, SocketType::RAW, NETLINK_ROUTE)?;
    send(&link, &message, SendFlags::empty())?;
    Ok(())
}
