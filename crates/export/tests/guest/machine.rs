//! A machine, its back-end, and the folder both need.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::serve::Backend;

/// Longer than anything here takes on a machine with other work to do.
const PATIENCE: Duration = Duration::from_secs(300);

/// A disk of 64 MiB, a kernel and an init.
pub(crate) struct Room {
    folder: tempfile::TempDir,
}

/// A machine that dies with this.
pub(crate) struct Machine {
    child: Child,
    said: String,
    more: Receiver<Vec<u8>>,
    monitor: PathBuf,
}

/// QEMU's own protocol, as far as saving a machine needs it.
pub(crate) struct Monitor {
    from: BufReader<UnixStream>,
    to: UnixStream,
}

impl Room {
    pub(crate) fn new() -> Room {
        let folder = tempfile::Builder::new().prefix("kiln-vhost").tempdir_in("/tmp").unwrap();
        let room = Room { folder };
        let disk = std::fs::File::create(room.disk()).unwrap();
        disk.set_len(64 << 20).unwrap();
        build_initramfs(room.folder());
        room
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.folder().join("disk")
    }

    fn socket(&self) -> PathBuf {
        self.folder().join("socket")
    }

    pub(crate) fn format(&self) {
        let formatted = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(self.disk()).status();
        assert!(formatted.expect("`script/bootstrap` installs mkfs.ext4").success());
    }

    /// Starts a process that serves the disk.
    pub(crate) fn serve(&self) -> Backend {
        Backend::start(&self.socket(), &self.disk())
    }

    /// Starts a machine whose init does what it is told.
    pub(crate) fn boot(&self, actions: &str, more: &[&str]) -> Machine {
        while !self.socket().exists() {
            std::thread::yield_now();
        }
        let (socket, monitor) = (self.socket(), self.folder().join("monitor"));
        let _ = std::fs::remove_file(&monitor);
        let mut child = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-display", "none", "-no-reboot", "-smp", "2", "-m", "256M"])
            .args(["-machine", "q35,accel=tcg,memory-backend=ram", "-serial", "stdio"])
            .args(["-object", "memory-backend-memfd,id=ram,size=256M,share=on"])
            .arg("-kernel")
            .arg(kiln_kernel())
            .arg("-initrd")
            .arg(self.folder().join("initramfs"))
            .arg("-append")
            .arg(format!(
                "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check cryptomgr.notests \
                 random.trust_cpu=on -- {actions}"
            ))
            .arg("-chardev")
            .arg(format!("socket,id=disk,path={},reconnect=1", socket.display()))
            .args(["-device", "vhost-user-blk-pci,chardev=disk,num-queues=2,config-wce=on"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("QEMU runs: `script/bootstrap` installs it");
        let mut console = child.stdout.take().unwrap();
        let (sender, more) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = console.read(&mut buffer) {
                if sender.send(buffer[..len].to_vec()).is_err() {
                    return;
                }
            }
        });
        Machine { child, said: String::new(), more, monitor }
    }
}

/// The kernel to test with; this crate lies below the one that knows kernels, so it is told.
fn kiln_kernel() -> PathBuf {
    let named = std::env::var_os("KILN_TEST_KERNEL").map(PathBuf::from);
    let fetched = || {
        let variable = |name| std::env::var_os(name).map(PathBuf::from);
        let cache = variable("KILN_HOME")
            .map(|home| home.join("cache"))
            .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("kiln")))
            .or_else(|| std::env::home_dir().map(|home| home.join(".cache/kiln")))?;
        let mut images: Vec<_> = std::fs::read_dir(cache.join("kernels"))
            .ok()?
            .flatten()
            .filter_map(|entry| {
                let release = entry.file_name().into_string().ok()?;
                let image = entry.path().join(format!("boot/vmlinuz-{release}"));
                Some((std::fs::metadata(&image).ok()?.modified().ok()?, image))
            })
            .collect();
        images.sort();
        images.pop().map(|(_, image)| image)
    };
    named
        .or_else(fetched)
        .filter(|image| image.is_file())
        .expect("a kernel to test with: run `make kernel`, or set KILN_TEST_KERNEL")
}

impl Machine {
    /// Waits until the guest says it.
    #[track_caller]
    pub(crate) fn until(&mut self, word: &str) {
        loop {
            assert!(!self.said.contains("WRONG"), "{}", self.said);
            if let Some(at) = self.said.find(word) {
                self.said.drain(..at + word.len());
                return;
            }
            match self.more.recv_timeout(PATIENCE) {
                Ok(bytes) => self.said.push_str(&String::from_utf8_lossy(&bytes).replace('\r', "")),
                Err(error) => panic!("{error} while waiting for {word:?} after {}", self.said),
            }
        }
    }

    pub(crate) fn monitor(&self) -> Monitor {
        // It is there before the kernel says a word, and QEMU starts before that.
        let to = loop {
            match UnixStream::connect(&self.monitor) {
                Ok(to) => break to,
                Err(_) => std::thread::yield_now(),
            }
        };
        to.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut monitor = Monitor { from: BufReader::new(to.try_clone().unwrap()), to };
        monitor.line();
        monitor.run("qmp_capabilities", "{}");
        monitor
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Monitor {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "QEMU left");
        line
    }

    /// Runs a command, and returns what it answers.
    pub(crate) fn run(&mut self, command: &str, arguments: &str) -> String {
        writeln!(self.to, r#"{{"execute":"{command}","arguments":{arguments}}}"#).unwrap();
        loop {
            let line = self.line();
            assert!(!line.contains(r#""error":"#), "{command}: {line}");
            if line.contains(r#""return":"#) {
                return line;
            }
        }
    }

    /// Asks until the answer says that.
    pub(crate) fn until(&mut self, question: &str, wanted: &str) {
        let wanted = format!("\"status\": \"{wanted}\"");
        loop {
            let answer = self.run(question, "{}");
            assert!(!answer.contains(r#""failed""#), "{answer}");
            if answer.contains(&wanted) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn build_initramfs(folder: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/init.c");
    let init = folder.join("init");
    let compiled = Command::new("cc")
        .args(["-static", "-O1", "-pthread", "-o"])
        .args([&init, &source])
        .status()
        .expect("the C compiler that links Rust programs");
    assert!(compiled.success(), "{} does not compile", source.display());
    let mut archive = Vec::new();
    entry(&mut archive, "init", 0o100_755, &std::fs::read(init).unwrap());
    for (number, module) in modules().iter().enumerate() {
        entry(&mut archive, &format!("m{number}"), 0o100_644, &std::fs::read(module).unwrap());
    }
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    std::fs::write(folder.join("initramfs"), archive).unwrap();
}

/// What the kernel does not have built in, in the order of loading.
fn modules() -> Vec<PathBuf> {
    let kernel = kiln_kernel();
    let name = kernel.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let release = name.strip_prefix("vmlinuz-").unwrap_or_default();
    let root = kernel.ancestors().nth(2).unwrap_or(Path::new("/"));
    let modules = root.join("lib/modules").join(release).join("kernel");
    let wanted = [
        "drivers/virtio/virtio_ring",
        "drivers/virtio/virtio",
        "drivers/virtio/virtio_pci_legacy_dev",
        "drivers/virtio/virtio_pci_modern_dev",
        "drivers/virtio/virtio_pci",
        "drivers/block/virtio_blk",
        "lib/crc16",
        "fs/mbcache",
        "fs/jbd2/jbd2",
        "fs/ext4/ext4",
    ];
    let file = |name: &&str| {
        let paths = ["ko", "ko.xz", "ko.zst"].map(|end| modules.join(format!("{name}.{end}")));
        paths.into_iter().find(|path| path.is_file())
    };
    wanted.iter().filter_map(file).collect()
}

/// One file of a cpio archive in the kernel's format.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let fields = [0, mode, 0, 0, 1, 0, u32::try_from(data.len()).unwrap(), 0, 0, 0, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(format!("{:08x}{:08x}", name.len() + 1, 0).as_bytes());
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}
