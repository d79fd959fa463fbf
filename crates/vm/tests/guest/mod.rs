//! What the tests boot: the kernel they are given, and `init.c` in an initramfs.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kiln_block::ByteLen;
use kiln_model::event::Acceleration;
use kiln_vm::{Emulator, VmSpec};

/// A folder with all a machine needs.
pub(crate) struct Guest {
    folder: PathBuf,
    actions: Vec<String>,
    /// Held to be deleted with the guest.
    #[expect(dead_code, reason = "deletes the folder when dropped")]
    owned: Option<tempfile::TempDir>,
}

impl Guest {
    /// One whose init does these things in order.
    pub(crate) fn new(actions: &[&str]) -> Guest {
        let owned = tempfile::tempdir().expect("a temporary folder");
        let guest = Guest::at(owned.path(), actions);
        Guest { owned: Some(owned), ..guest }
    }

    /// The same in a folder of the caller's.
    pub(crate) fn at(folder: &Path, actions: &[&str]) -> Guest {
        build_initramfs(folder);
        let actions = actions.iter().map(|action| (*action).to_owned()).collect();
        Guest { folder: folder.to_owned(), actions, owned: None }
    }

    /// Where its files are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Two processors, 256 MiB, the kernel as it came.
    pub(crate) fn spec(&self) -> VmSpec {
        VmSpec {
            emulator: Emulator::find(None).unwrap_or_else(|error| panic!("{error}")),
            acceleration: Acceleration::Tcg,
            kernel: kernel(),
            initramfs: Some(self.folder.join("initramfs")),
            parameters: Vec::new(),
            init_arguments: self.actions.clone(),
            memory: ByteLen::mib(256),
            cpus: 2,
            disks: Vec::new(),
            console_log: self.folder.join("console.log"),
            console_limit: ByteLen::mib(4),
        }
    }

    /// The kernel unpacked, for a boot without firmware.
    pub(crate) fn vmlinux(&self) -> PathBuf {
        let path = self.folder.join("vmlinux");
        let image = fs::read(kernel()).expect("a readable kernel");
        fs::write(&path, unpack(&image)).expect("room for a kernel");
        path
    }
}

/// The bzImage to test with.
fn kernel() -> PathBuf {
    match std::env::var_os("KILN_TEST_KERNEL").map(PathBuf::from) {
        Some(path) if path.is_file() => path,
        Some(path) => panic!("KILN_TEST_KERNEL names {}, which is no file", path.display()),
        None => panic!("KILN_TEST_KERNEL is not set: run `make kernel`, then `make test`"),
    }
}

/// The payload of a bzImage, by the offsets in its header; zstd and xz only.
fn unpack(image: &[u8]) -> Vec<u8> {
    let number = |at: usize| {
        let bytes = image[at..at + 4].try_into().expect("four bytes");
        usize::try_from(u32::from_le_bytes(bytes)).expect("64 bits")
    };
    let sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + number(0x248);
    let payload = &image[start..start + number(0x24c)];
    let tool = if payload.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) { "zstd" } else { "xz" };
    let mut child = Command::new(tool)
        .args(["-d", "-c", "-q"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {tool}: {error}"));
    let mut input = child.stdin.take().expect("piped");
    let payload = payload.to_vec();
    let writer = std::thread::spawn(move || {
        // Behind the compressed data the kernel keeps its length; the tool may stop before that.
        let _ = input.write_all(&payload);
    });
    let mut unpacked = Vec::new();
    child.stdout.take().expect("piped").read_to_end(&mut unpacked).expect("a pipe");
    writer.join().expect("the writer");
    child.wait().expect("our child");
    assert!(unpacked.starts_with(b"\x7fELF"), "the kernel's payload is no ELF file");
    unpacked
}

fn build_initramfs(folder: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/init.c");
    let init = folder.join("init");
    let status = Command::new("cc")
        .args([
            "-nostdlib",
            "-static",
            "-ffreestanding",
            "-fno-stack-protector",
            "-fno-pie",
            "-no-pie",
        ])
        .args(["-O1", "-o"])
        .arg(&init)
        .arg(&source)
        .status()
        .expect("the C compiler that links Rust programs");
    assert!(status.success(), "{} does not compile", source.display());
    let mut archive = Vec::new();
    entry(&mut archive, "init", 0o100_755, &fs::read(init).expect("just built"));
    if let Some(module) = virtio_blk() {
        entry(&mut archive, "virtio_blk.ko", 0o100_644, &fs::read(module).expect("a module"));
    }
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    fs::write(folder.join("initramfs"), archive).expect("room for an initramfs");
}

/// The module, where the kernel does not have the driver built in.
fn virtio_blk() -> Option<PathBuf> {
    let kernel = kernel();
    let release = kernel.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_owned();
    let folder = kernel.parent()?.parent()?.join("lib/modules").join(release);
    let drivers = folder.join("kernel/drivers/block");
    let names = ["virtio_blk.ko", "virtio_blk.ko.xz", "virtio_blk.ko.zst"];
    names.iter().map(|name| drivers.join(name)).find(|path| path.is_file())
}

/// One file of a cpio archive in the kernel's format.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let fields = [0, mode, 0, 0, 1, 0, u32::try_from(data.len()).expect("small"), 0, 0, 0, 0];
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
