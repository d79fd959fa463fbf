//! The programs people use: libnbd's, QEMU's and fio.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, FileDevice, MemoryDevice, ReadOnly, zeros};
use kiln_export::nbd::{Address, Server};
use kiln_export::{Export, Exports};

use crate::client::one;
use crate::sockets::socket_folder;

/// A server of some disks for the length of a test.
struct Served {
    folder: tempfile::TempDir,
    server: Server,
}

impl Served {
    fn new(exports: Exports) -> Served {
        let folder = socket_folder();
        let address = Address::Unix(folder.path().join("s"));
        let server = Server::start(&address, exports).unwrap();
        Served { folder, server }
    }

    fn uri(&self, name: &str) -> String {
        self.server.address().uri(name)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

pub(crate) fn try_run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap_or_else(|error| {
        panic!("cannot run {program}: {error}; `script/bootstrap --with-tests` installs it")
    })
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = try_run(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// 8 MiB with data at both ends and in the middle, and holes between.
fn patchy() -> Arc<MemoryDevice> {
    let device = MemoryDevice::new(ByteLen::mib(8));
    let mut bytes = vec![0; 300_000];
    Dice::seeded(9).fill(&mut bytes);
    for at in [0, 4 << 20, (8 << 20) - 300_000] {
        device.write_at(ByteOffset::new(at), &bytes).unwrap();
    }
    Arc::new(device)
}

#[test]
fn nbdinfo_sees_what_the_server_can_do() {
    let exports = one(patchy());
    let base = Export::new(Arc::new(zeros(ByteLen::gib(1)))).described("of zeros");
    exports.add("base", base).unwrap();
    let served = Served::new(exports);
    let told = run("nbdinfo", &[&served.uri("disk")]);
    for line in [
        "protocol: newstyle-fixed without TLS, using structured packets",
        "export-size: 8388608",
        "base:allocation",
        "can_cache: true",
        "can_df: true",
        "can_fast_zero: true",
        "can_flush: true",
        "can_fua: true",
        "can_multi_conn: true",
        "can_trim: true",
        "can_zero: true",
        "is_read_only: false",
        "block_size_maximum: 33554432",
    ] {
        assert!(told.contains(line), "{line} is missing in:\n{told}");
    }
    let told = run("nbdinfo", &["--list", &served.uri("")]);
    assert!(told.contains("export=\"base\"") && told.contains("description: of zeros"), "{told}");
    assert!(told.contains("is_read_only: true"), "{told}");
    let told = try_run("nbdinfo", &[&served.uri("nobody")]);
    assert!(!told.status.success(), "{told:?}");
}

#[test]
fn nbdinfo_and_qemu_img_see_the_same_map() {
    let served = Served::new(one(patchy()));
    let map = run("nbdinfo", &["--map", "--totals", &served.uri("disk")]);
    // 300 000 bytes touch 74 pages.
    assert!(map.contains("909312  10.8%   0 data"), "{map}");
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &served.uri("disk")]);
    assert_eq!(map.matches("\"data\": true").count(), 3, "{map}");
    assert_eq!(map.matches("\"data\": false").count(), 2, "{map}");
}

#[test]
fn nbdcopy_brings_a_disk_out_and_in_again() {
    let device = patchy();
    let served = Served::new(one(device.clone()));
    let copy = served.file("copy");
    run("nbdcopy", &[&served.uri("disk"), text(&copy)]);
    assert!(std::fs::read(&copy).unwrap() == device.to_vec());
    let target = Arc::new(MemoryDevice::new(ByteLen::mib(8)));
    let back = Served::new(one(target.clone()));
    run("nbdcopy", &["--flush", "--connections=4", text(&copy), &back.uri("disk")]);
    assert!(target.to_vec() == device.to_vec());
    let between = Arc::new(MemoryDevice::new(ByteLen::mib(8)));
    let third = Served::new(one(between.clone()));
    run("nbdcopy", &["--destination-is-zero", &served.uri("disk"), &third.uri("disk")]);
    assert!(between.to_vec() == device.to_vec());
}

#[test]
fn qemu_img_converts_and_compares() {
    let device = patchy();
    let served = Served::new(one(device.clone()));
    let image = served.file("image.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &served.uri("disk"), text(&image)]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &served.uri("disk"), text(&image)]);
    let path = served.file("disk.raw");
    let file = FileDevice::create(&path, ByteLen::mib(8)).unwrap();
    let target = Served::new(one(Arc::new(file)));
    let uri = target.uri("disk");
    run("qemu-img", &["convert", "-n", "-f", "qcow2", "-O", "raw", text(&image), &uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &served.uri("disk"), &uri]);
    assert!(std::fs::read(&path).unwrap() == device.to_vec());
    run("qemu-io", &["-f", "raw", "-c", "write -P 1 0 512", &uri]);
    let compared =
        try_run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &served.uri("disk"), &uri]);
    assert_eq!(compared.status.code(), Some(1), "a difference is found");
}

#[test]
fn qemu_img_benches_reads_writes_and_flushes() {
    let served = Served::new(one(patchy()));
    let uri = served.uri("disk");
    for extra in [&[][..], &["-w"], &["-w", "--flush-interval=64", "-s", "65536"]] {
        let arguments = ["bench", "-f", "raw", "-c", "400", "-d", "32"];
        run("qemu-img", &[&arguments[..], extra, &[&uri]].concat());
    }
}

#[test]
fn qemu_io_does_every_operation_on_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let file = FileDevice::create(&path, ByteLen::mib(64)).unwrap();
    let served = Served::new(one(Arc::new(file)));
    let script = [
        "write -P 0x5a 4k 1M",
        "write -f -P 0x5b 0 512",
        "read -P 0x5a 4k 1M",
        "read -P 0x5b 0 512",
        "writev -P 0x11 8M 4k 64k 512",
        "read -P 0x11 8M 70144",
        "write -z 8k 64k",
        "read -P 0 8k 64k",
        "write -z -u 128k 128k",
        "read -P 0 128k 128k",
        "discard 512k 64k",
        "aio_write -P 0x33 16M 1M",
        "aio_write -P 0x34 17M 1M",
        "aio_flush",
        "flush",
        "read -P 0x33 16M 1M",
        "read -P 0x34 17M 1M",
        "write -P 0x44 32M 32M",
        "read -P 0x44 32M 32M",
    ];
    let mut arguments = vec!["-f", "raw"];
    for line in script {
        arguments.extend(["-c", line]);
    }
    let uri = served.uri("disk");
    arguments.push(&uri);
    let told = run("qemu-io", &arguments);
    assert!(!told.contains("failed") && !told.contains("error"), "{told}");
    drop(served);
    let mut end = vec![0; 512];
    std::os::unix::fs::FileExt::read_exact_at(&File::open(&path).unwrap(), &mut end, 40 << 20)
        .unwrap();
    assert_eq!(end, [0x44; 512]);
}

#[test]
fn qemu_io_is_told_why_it_may_not() {
    let served = Served::new(one(Arc::new(zeros(ByteLen::mib(1)))));
    let told = try_run("qemu-io", &["-f", "raw", "-c", "write 0 512", &served.uri("disk")]);
    assert!(!told.status.success());
    assert!(String::from_utf8_lossy(&told.stderr).contains("Permission denied"), "{told:?}");
    run("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0 0 1M", &served.uri("disk")]);
}

/// A source that only reads, to be sure that serving one needs nothing else.
#[test]
fn a_sealed_source_is_copied_through_nbd() {
    struct Counting;
    impl kiln_block::BlockSource for Counting {
        fn size(&self) -> ByteLen {
            ByteLen::mib(2)
        }
        fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), kiln_block::DeviceError> {
            for (byte, at) in buffer.iter_mut().zip(at..) {
                *byte = at.to_le_bytes()[1] ^ at.to_le_bytes()[0];
            }
            Ok(())
        }
    }
    let served = Served::new(one(Arc::new(ReadOnly(Counting))));
    let copy = served.file("copy");
    run("nbdcopy", &[&served.uri("disk"), text(&copy)]);
    let bytes = std::fs::read(&copy).unwrap();
    assert_eq!((bytes.len(), bytes[0x1234]), (2 << 20, 0x12 ^ 0x34));
}

#[test]
fn fio_verifies_what_it_wrote_at_random_with_a_deep_queue() {
    let engines = run("fio", &["--enghelp"]);
    // Not every distribution builds fio with libnbd; qemu-io and the raw client cover the same ground.
    let folder = tempfile::tempdir().unwrap();
    let file = FileDevice::create(&folder.path().join("disk"), ByteLen::mib(32)).unwrap();
    let served = Served::new(one(Arc::new(file)));
    if engines.split_whitespace().any(|engine| engine == "nbd") {
        run(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &format!("--uri={}", served.uri("disk")),
                "--rw=randwrite",
                "--bs=4k",
                "--size=32m",
                "--iodepth=32",
                "--fsync=64",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_state_save=0",
            ],
        );
    }
}
