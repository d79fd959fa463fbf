//! What the tests boot: the kernel they are given, and `init.c` in an initramfs.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_block::ByteLen;
use kiln_model::event::Acceleration;
use kiln_model::testing::kernel;
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
    let mut unpacked = Vec::new();
    let done = match payload[..4] {
        [0x28, 0xb5, 0x2f, 0xfd] => zstd::Decoder::new(payload)
            .and_then(|decoder| decoder.single_frame().read_to_end(&mut unpacked)),
        [0x02, 0x21, 0x4c, 0x18] => Ok(unpack_lz4(&payload[4..], &mut unpacked)),
        _ => liblzma::read::XzDecoder::new(payload).read_to_end(&mut unpacked),
    };
    done.expect("a kernel compressed with zstd, lz4 or xz");
    assert!(unpacked.starts_with(b"\x7fELF"), "the kernel's payload is no ELF file");
    unpacked
}

/// The frames of `lz4 -l`: blocks of a length and their data, then the size of it all. Trusts the kernel it is given.
fn unpack_lz4(mut frames: &[u8], out: &mut Vec<u8>) -> usize {
    while frames.len() > 4 {
        let (len, rest) = frames.split_at(4);
        let len = u32::from_le_bytes(len.try_into().expect("four bytes"));
        let (mut block, later) = rest.split_at(usize::try_from(len).expect("64 bits"));
        frames = later;
        loop {
            let token = take(&mut block);
            let literals = length(&mut block, token >> 4);
            out.extend_from_slice(&block[..literals]);
            block = &block[literals..];
            if block.is_empty() {
                break;
            }
            let back = usize::from(take(&mut block)) | usize::from(take(&mut block)) << 8;
            for _ in 0..length(&mut block, token & 15) + 4 {
                out.push(out[out.len() - back]);
            }
        }
    }
    out.len()
}

fn take(block: &mut &[u8]) -> u8 {
    let (first, rest) = block.split_first().expect("a whole block");
    *block = rest;
    *first
}

fn length(block: &mut &[u8], start: u8) -> usize {
    let mut length = usize::from(start);
    let mut more = start == 15;
    while more {
        let next = take(block);
        length += usize::from(next);
        more = next == 255;
    }
    length
}

fn build_initramfs(folder: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machine/guest/init.c");
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
    for (number, module) in modules().iter().enumerate() {
        let module = fs::read(module).expect("a readable module");
        entry(&mut archive, &format!("m{number}"), 0o100_644, &module);
    }
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    fs::write(folder.join("initramfs"), archive).expect("room for an initramfs");
}

/// What the kernel does not have built in, in the order of loading.
fn modules() -> Vec<PathBuf> {
    let kernel = kernel();
    let name = kernel.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let release = name.strip_prefix("vmlinuz-").unwrap_or_default();
    let root = kernel.ancestors().nth(2).unwrap_or(Path::new("/"));
    let drivers = root.join("lib/modules").join(release).join("kernel/drivers");
    let wanted = [
        "virtio/virtio_ring",
        "virtio/virtio",
        "virtio/virtio_pci_legacy_dev",
        "virtio/virtio_pci_modern_dev",
        "virtio/virtio_pci",
        "char/virtio_console",
        "block/virtio_blk",
    ];
    let file = |name: &&str| {
        let paths = ["ko", "ko.xz", "ko.zst"].map(|end| drivers.join(format!("{name}.{end}")));
        paths.into_iter().find(|path| path.is_file())
    };
    wanted.iter().filter_map(file).collect()
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
