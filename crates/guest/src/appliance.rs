//! From an initramfs with nothing but drivers to somebody else's root disk (`docs/formats/appliance.md`): the modules
//! this machine has devices for, the disk that `root=` names, and its `/init`, which finds nothing mounted.
//!
//! [`crate::root`] moves to a root disk as Kiln's own machines have it, under Kiln's agent; here another program
//! becomes process 1.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_model::module_index::normalise;
use kiln_model::wildcard;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};
use rustix::system::finit_module;

use crate::cmdline::Cmdline;
use crate::console::say;
use crate::power;
use crate::program;
use crate::root;

/// What to load; that it is there says that this is such an initramfs.
const DRIVERS: &str = "/kiln-drivers";
const MAGIC: &str = "kiln drivers 1";
/// A machine with hundreds of disks takes its time to find them all.
const PATIENCE: Duration = Duration::from_secs(300);
const NEW_ROOT: &str = "/root";

/// Becomes the appliance's `/init`, if this is an appliance's initramfs; else does nothing.
pub(crate) fn take_over() {
    let Ok(text) = fs::read_to_string(DRIVERS) else { return };
    let Err(trouble) = boot(&text);
    say!("{trouble}");
    power::off();
}

fn boot(drivers: &str) -> Result<std::convert::Infallible, String> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let _ = fs::create_dir(target);
        match mount(kind, target, kind, MountFlags::empty(), c"") {
            // The kernel may have mounted devtmpfs itself.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => return Err(format!("cannot mount {kind}: {error}")),
        }
    }
    let cmdline = Cmdline::read();
    let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let wanted = words.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix("root="));
    let mut drivers = Drivers::parse(drivers)?;
    drivers.load_needed(&cmdline);
    let device = find_root(wanted, &mut drivers, &cmdline)?;
    let read_only = words.split_ascii_whitespace().any(|word| word == "ro");
    mount_root(&device, read_only)?;
    for target in ["/dev", "/sys", "/proc"] {
        // The new root's init mounts them where and how it likes.
        let _ = unmount(target, UnmountFlags::DETACH);
    }
    enter(Path::new(NEW_ROOT)).map_err(|error| format!("cannot enter the new root: {error}"))?;
    let error = program::become_program(c"/init", c"init");
    let there: Vec<String> = fs::read_dir("/")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .take(40)
        .collect();
    Err(format!("cannot run /init of {}: {error}; its root holds {there:?}", device.display()))
}

/// Which modules are for which devices.
struct Drivers<'t> {
    /// For no device: file systems.
    needed: Vec<&'t str>,
    /// A pattern of device aliases, and modules in the order in which they must be loaded.
    aliases: Vec<(&'t str, Vec<&'t str>)>,
    loaded: HashSet<&'t str>,
    /// Aliases that were looked at.
    seen: HashSet<String>,
}

impl<'t> Drivers<'t> {
    fn parse(text: &'t str) -> Result<Drivers<'t>, String> {
        let mut lines = text.lines();
        if lines.next() != Some(MAGIC) {
            return Err(format!("{DRIVERS} was written for another version of Kiln"));
        }
        let mut drivers = Drivers {
            needed: Vec::new(),
            aliases: Vec::new(),
            loaded: HashSet::new(),
            seen: HashSet::new(),
        };
        for line in lines {
            let mut words = line.split(' ');
            match (words.next(), words.next()) {
                (Some("needed"), Some(path)) => drivers.needed.push(path),
                (Some("alias"), Some(pattern)) => drivers.aliases.push((pattern, words.collect())),
                _ => return Err(format!("{DRIVERS} has a line that makes no sense: {line:?}")),
            }
        }
        Ok(drivers)
    }

    fn load_needed(&mut self, cmdline: &Cmdline) {
        for path in std::mem::take(&mut self.needed) {
            self.load(path, cmdline);
        }
    }

    /// Loads what devices want that were not there before. Says whether there were any.
    fn load_for_devices(&mut self, cmdline: &Cmdline) -> bool {
        let mut any = false;
        for (device, alias) in aliases() {
            if !self.seen.insert(alias.clone()) {
                continue;
            }
            any = true;
            if is_empty_ide(&device, &alias) {
                continue;
            }
            // Indexes write `_` for `-`, also in aliases.
            let alias = normalise(&alias);
            let matching =
                self.aliases.iter().filter(|(pattern, _)| wildcard::matches(pattern, &alias));
            let paths: Vec<&str> = matching.flat_map(|(_, paths)| paths.iter().copied()).collect();
            for path in paths {
                self.load(path, cmdline);
            }
        }
        any
    }

    fn load(&mut self, path: &'t str, cmdline: &Cmdline) {
        if !self.loaded.insert(path) {
            return;
        }
        let name = Path::new(path).file_stem().unwrap_or_default().to_string_lossy();
        let parameters = CString::new(cmdline.module_parameters(&name)).unwrap_or_default();
        let loaded = File::open(path)
            .map_err(|error| error.to_string())
            .and_then(|file| finit_module(&file, &parameters, 0).map_err(|e| e.to_string()));
        // One that is loaded in vain: what matters is whether the root device appears.
        if let Err(error) = loaded {
            say!("cannot load {path}: {error}");
        }
    }
}

/// Whether a device is an IDE controller at the ports that all of them once had, and nothing is attached to it. Most machines
/// have one like that, and no driver takes as long to load and to find that out.
fn is_empty_ide(device: &Path, alias: &str) -> bool {
    // Class, subclass, and of the interface the bits that say which channels left those ports.
    let interface = alias.split_once("bc01sc01i").and_then(|(_, digits)| digits.get(..2));
    let interface = interface.and_then(|digits| u8::from_str_radix(digits, 16).ok());
    let is_old = interface.is_some_and(|interface| interface & 0b101 == 0);
    is_old && ["resource0", "resource2"].iter().all(|ports| !has_disk(&device.join(ports)))
}

/// Whether a disk is attached to a channel: it keeps what its registers are given. In doubt there is one.
fn has_disk(ports: &Path) -> bool {
    let ask = |disk: u8| -> io::Result<bool> {
        let ports = File::options().read(true).write(true).open(ports)?;
        ports.write_all_at(&[disk], 6)?;
        for (sectors, lowest) in [(0x55, 0xaa), (0xaa, 0x55), (0x55, 0xaa)] {
            ports.write_all_at(&[sectors], 2)?;
            ports.write_all_at(&[lowest], 3)?;
        }
        let (mut sectors, mut lowest) = ([0], [0]);
        ports.read_exact_at(&mut sectors, 2)?;
        ports.read_exact_at(&mut lowest, 3)?;
        Ok(sectors == [0x55] && lowest == [0xaa])
    };
    [0xa0, 0xb0].into_iter().any(|disk| ask(disk).unwrap_or(true))
}

/// What every device on a bus says it is. No others have drivers, and there are ten times as many of those.
fn aliases() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for bus in fs::read_dir("/sys/bus").into_iter().flatten().flatten() {
        for device in fs::read_dir(bus.path().join("devices")).into_iter().flatten().flatten() {
            if let Ok(text) = fs::read_to_string(device.path().join("modalias")) {
                found.push((device.path(), text.trim().to_owned()));
            }
        }
    }
    found
}

/// The root device, as soon as it is there.
fn find_root(
    wanted: Option<&str>,
    drivers: &mut Drivers<'_>,
    cmdline: &Cmdline,
) -> Result<PathBuf, String> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        let any = drivers.load_for_devices(cmdline);
        if let Some(device) = root_device(wanted) {
            return Ok(device);
        }
        if Instant::now() > deadline {
            let disks: Vec<String> = disks().map(|(name, _)| name).collect();
            let wanted = wanted.unwrap_or("(no root= was given)");
            return Err(format!("no root device {wanted} appeared; there are {disks:?}"));
        }
        if !any {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }
}

/// Disks and partitions, by name, and where they can be opened.
fn disks() -> impl Iterator<Item = (String, PathBuf)> {
    let entries = fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
    entries.map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = Path::new("/dev").join(&name);
        (name, path)
    })
}

/// As `root=` names it: a device, the file system's UUID or its label. Without one, the last disk.
fn root_device(wanted: Option<&str>) -> Option<PathBuf> {
    let holds = |at: u64, bytes: &[u8]| {
        disks()
            .map(|(_, path)| path)
            .find(|path| superblock(path, at, bytes.len()) == Some(bytes.to_vec()))
    };
    match wanted {
        Some(text) if text.starts_with("UUID=") => {
            let digits: Vec<u8> = text[5..].bytes().filter(|byte| *byte != b'-').collect();
            let uuid = digits
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap_or_default(), 16));
            let uuid: Vec<u8> = uuid.collect::<Result<_, _>>().ok()?;
            (uuid.len() == 16).then(|| holds(0x68, &uuid))?
        }
        Some(text) if text.starts_with("LABEL=") => {
            let mut label = text.as_bytes()[6..].to_vec();
            label.resize(16, 0);
            holds(0x78, &label)
        }
        Some(name) => {
            let path = Path::new("/dev").join(name.strip_prefix("/dev/").unwrap_or(name));
            path.exists().then_some(path)
        }
        None => {
            let mut whole: Vec<(String, PathBuf)> = disks()
                .filter(|(name, _)| {
                    ["vd", "sd", "hd"].iter().any(|kind| name.starts_with(kind)) && name.len() == 3
                })
                .collect();
            whole.sort();
            whole.pop().map(|(_, path)| path)
        }
    }
}

/// Some bytes of an ext2 file system's superblock, if there is one on the device.
fn superblock(device: &Path, at: u64, len: usize) -> Option<Vec<u8>> {
    let mut block = [0; 1024];
    File::open(device).ok()?.read_exact_at(&mut block, 1024).ok()?;
    let start = usize::try_from(at).ok()?;
    (block[56..58] == [0x53, 0xef]).then(|| block.get(start..start + len).map(<[u8]>::to_vec))?
}

fn mount_root(device: &Path, read_only: bool) -> Result<(), String> {
    let _ = fs::create_dir(NEW_ROOT);
    let mut flags = MountFlags::NOATIME;
    flags.set(MountFlags::RDONLY, read_only);
    let is_memory = device.to_string_lossy().starts_with("/dev/pmem");
    let mut last = Errno::NODEV;
    // Memory that is a disk need not be copied to be read.
    for options in if is_memory { &[c"dax", c""][..] } else { &[c""][..] } {
        // ext4's driver reads ext2, too, and is the only one in many kernels.
        for kind in ["ext2", "ext4"] {
            match mount(device, NEW_ROOT, kind, flags, *options) {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
    }
    Err(format!("cannot mount {} as ext2 or ext4: {last}", device.display()))
}

/// Frees the initramfs's memory and makes `folder` the root.
fn enter(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let old = fs::metadata("/")?.dev();
    std::env::set_current_dir(folder)?;
    root::empty(Path::new("/"), old);
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")
}
