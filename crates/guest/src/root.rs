//! From the initramfs to a root disk: `kiln.root=SERIAL` says which, and the disk is never written. Over it lies an
//! empty tmpfs that takes what is written. `kiln.root=SERIAL,rw` names a disk that takes it itself.
//!
//! The initramfs is emptied and left as `switch_root(8)` does it: its file system cannot be unmounted, only
//! covered.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::statfs;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};

use crate::cmdline::Cmdline;
use crate::disks;

/// How long the root disk may take to appear.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is mounted already and moves to the new root.
const KEPT: [&str; 5] = ["/proc", "/dev", "/sys", "/run", "/tmp"];
/// Below `/run`, so that the parts of the new root can still be looked at in it.
const PARTS: &str = "/run/kiln-root";

/// Moves to the root disk, if the command line names one.
pub(crate) fn enter(cmdline: &Cmdline) -> Result<(), String> {
    let Some(wanted) = cmdline.kiln("root") else { return Ok(()) };
    let (serial, written) = match wanted.split_once(',') {
        Some((serial, "rw")) => (serial, true),
        Some((_, mode)) => return Err(format!("a root disk is mounted rw or not, not {mode}")),
        None => (wanted, false),
    };
    let device = find(serial)?;
    let part = |name: &str| Path::new(PARTS).join(name);
    let (disk, over, root) = (part("disk"), part("over"), part("root"));
    for folder in [&disk, &over, &root] {
        fs::create_dir_all(folder).map_err(told("make", folder))?;
    }
    if written {
        mount_disk(&device, &root, MountFlags::empty())?;
        return switch_to(&root);
    }
    mount_disk(&device, &disk, MountFlags::RDONLY)?;
    let memory = MountFlags::empty();
    mount("tmpfs", &over, "tmpfs", memory, c"mode=0755").map_err(told_errno("mount", &over))?;
    for name in ["upper", "work"] {
        let folder = over.join(name);
        fs::create_dir(&folder).map_err(told("make", &folder))?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        disk.display(),
        over.join("upper").display(),
        over.join("work").display()
    );
    let options = CString::new(options).unwrap_or_default();
    mount("overlay", &root, "overlay", MountFlags::empty(), options.as_c_str())
        .map_err(told_errno("mount an overlay on", &root))?;
    switch_to(&root)
}

fn told(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> String {
    move |error| format!("cannot {act} {}: {error}", path.display())
}

fn told_errno(act: &'static str, path: &Path) -> impl FnOnce(Errno) -> String {
    move |error| format!("cannot {act} {}: {error}", path.display())
}

/// The disk with that serial, which the kernel may still be finding.
fn find(serial: &str) -> Result<PathBuf, String> {
    let link = Path::new("/dev/disk/by-id").join(format!("virtio-{serial}"));
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        disks::rescan().map_err(|error| format!("cannot look for disks: {error}"))?;
        if let Ok(device) = fs::canonicalize(&link) {
            return Ok(device);
        }
        if Instant::now() > deadline {
            let driver = "is its driver among kiln.modules?";
            return Err(format!("no disk has the serial {serial}; {driver}"));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// ext4's driver reads ext2, too, and is the only one in many kernels.
fn mount_disk(device: &Path, target: &Path, access: MountFlags) -> Result<(), String> {
    let mut last = Errno::NODEV;
    for kind in ["ext4", "ext2"] {
        match mount(device, target, kind, access | MountFlags::NOATIME, c"") {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(format!("cannot mount {} as ext4 or ext2: {last}", device.display()))
}

fn switch_to(root: &Path) -> Result<(), String> {
    for kept in KEPT.map(Path::new) {
        let target = root.join(kept.strip_prefix("/").unwrap_or(kept));
        fs::create_dir_all(&target).map_err(told("make", &target))?;
        // /run holds the new root and so comes last, once that is where it will stay.
        if kept == Path::new("/run") || !is_mount(kept) {
            continue;
        }
        // Whatever the root disk holds in /tmp must stay visible.
        if kept == Path::new("/tmp") && holds_something(&target) {
            continue;
        }
        mount_move(kept, &target).map_err(told_errno("move", kept))?;
    }
    let old = fs::metadata("/").map_err(told("look at", Path::new("/")))?.dev();
    // A kernel that mounted the disk by itself has no initramfs to empty.
    if is_memory(Path::new("/")) {
        empty(Path::new("/"), old);
    }
    std::env::set_current_dir(root).map_err(told("enter", root))?;
    mount_move(".", "/").map_err(told_errno("move", root))?;
    rustix::process::chroot(".").map_err(told_errno("make the root", root))?;
    std::env::set_current_dir("/").map_err(told("enter", Path::new("/")))?;
    // The old /run is covered with everything that was mounted in it; programs get one of their own.
    let flags = MountFlags::NOSUID;
    mount("tmpfs", "/run", "tmpfs", flags, c"mode=0755")
        .map_err(told_errno("mount", Path::new("/run")))
}

fn holds_something(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut inside| inside.next().is_some())
}

fn is_memory(path: &Path) -> bool {
    const RAMFS: u64 = 0x8584_58f6;
    const TMPFS: u64 = 0x0102_1994;
    let found = statfs(path).map(|found| found.f_type);
    found.is_ok_and(|kind| [RAMFS, TMPFS].iter().any(|is| u64::try_from(kind) == Ok(*is)))
}

fn is_mount(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev());
    device(path).ok() != device(Path::new("/")).ok()
}

/// Frees the memory of the initramfs; nothing of another file system is touched.
pub(crate) fn empty(folder: &Path, device: u64) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        match entry.metadata() {
            Ok(meta) if meta.dev() != device => {}
            Ok(meta) if meta.is_dir() => {
                empty(&path, device);
                let _ = fs::remove_dir(&path);
            }
            Ok(_) => {
                let _ = fs::remove_file(&path);
            }
            // What cannot be looked at stays in memory, which harms nothing.
            Err(_) => {}
        }
    }
}
