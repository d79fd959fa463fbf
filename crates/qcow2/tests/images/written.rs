//! What is written here, as QEMU's tools see it.

use std::fs::File;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;

use kiln_block::{BlockDevice, ByteLen, MemoryDevice};
use kiln_qcow2::{Compression, Qcow2Error, WriteOptions, write, write_stream};
use proptest::prelude::*;

use crate::{assert_holds, open, qemu_img, scattered};

/// Every way of writing: `None` is through a pipe.
fn ways() -> Vec<Option<WriteOptions>> {
    let mut ways = vec![None];
    for compression in [None, Some(Compression::Zstd), Some(Compression::Deflate)] {
        for cluster in [4, 64, 2048] {
            for threads in [1, 3] {
                let cluster = ByteLen::kib(cluster);
                ways.push(Some(WriteOptions { cluster, compression, threads }));
            }
        }
    }
    ways
}

fn write_as(device: &dyn BlockDevice, path: &Path, way: Option<&WriteOptions>) {
    let mut file = File::create(path).unwrap();
    let go_on = &mut |_| ControlFlow::Continue(());
    let written = match way {
        Some(options) => write(device, &mut file, options, go_on).unwrap(),
        None => write_stream(device, &mut file, ByteLen::kib(64), go_on).unwrap(),
    };
    file.flush().unwrap();
    assert_eq!(written.file.get(), file.metadata().unwrap().len(), "{way:?}");
}

/// Checks an image with QEMU's tools, and reads it here.
fn assert_same(folder: &Path, bytes: &[u8], what: &str) {
    std::fs::write(folder.join("raw"), bytes).unwrap();
    qemu_img(folder, &["check", "-q", "-f", "qcow2", "image.qcow2"]);
    qemu_img(folder, &["compare", "-q", "-f", "raw", "-F", "qcow2", "raw", "image.qcow2"]);
    assert_holds(&*open(&folder.join("image.qcow2")), bytes, what);
}

#[test]
fn images_are_what_qemu_finds_nothing_wrong_with() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = scattered(9 << 20, 4);
    let device = MemoryDevice::holding(&bytes);
    for way in ways() {
        write_as(&device, &folder.path().join("image.qcow2"), way.as_ref());
        assert_same(folder.path(), &bytes, &format!("{way:?}"));
    }
}

#[test]
fn disks_of_odd_sizes_end_where_they_end() {
    let folder = tempfile::tempdir().unwrap();
    for size in [512, 4096, 65536 - 512, 65536, 65536 + 512, (2 << 20) + 1536] {
        let bytes = vec![0x7e; size];
        let device = MemoryDevice::holding(&bytes);
        for way in ways() {
            write_as(&device, &folder.path().join("image.qcow2"), way.as_ref());
            assert_same(folder.path(), &bytes, &format!("{size}: {way:?}"));
        }
    }
    for way in ways() {
        write_as(
            &MemoryDevice::new(ByteLen::ZERO),
            &folder.path().join("image.qcow2"),
            way.as_ref(),
        );
        qemu_img(folder.path(), &["check", "-q", "-f", "qcow2", "image.qcow2"]);
    }
}

#[test]
fn refcounts_stay_right_over_many_refcount_blocks() {
    let folder = tempfile::tempdir().unwrap();
    // A block of 4 KiB tells about 2048 clusters of 4 KiB, so this takes several.
    let bytes: Vec<u8> = (0..40_u32 << 20).map(|at| (at >> 9).to_le_bytes()[0] | 1).collect();
    let device = MemoryDevice::holding(&bytes);
    for compression in [None, Some(Compression::Zstd)] {
        let options = WriteOptions { cluster: ByteLen::kib(4), compression, threads: 2 };
        write_as(&device, &folder.path().join("image.qcow2"), Some(&options));
        assert_same(folder.path(), &bytes, &format!("{compression:?}"));
    }
    let mut dice = kiln_block::testing::Dice::seeded(5);
    let mut bytes = vec![0; 40 << 20];
    dice.fill(&mut bytes);
    let device = MemoryDevice::holding(&bytes);
    for compression in [None, Some(Compression::Zstd)] {
        let options = WriteOptions { cluster: ByteLen::kib(4), compression, threads: 2 };
        write_as(&device, &folder.path().join("image.qcow2"), Some(&options));
        assert_same(folder.path(), &bytes, &format!("{compression:?}"));
    }
}

#[test]
fn holes_and_zeros_take_no_space_and_no_time() {
    let folder = tempfile::tempdir().unwrap();
    let device = MemoryDevice::new(ByteLen::gib(8 << 10));
    device.write_at(kiln_block::ByteOffset::new(5 << 40), &[1; 4096]).unwrap();
    device.write_at(kiln_block::ByteOffset::new(6 << 40), &[0; 1 << 20]).unwrap();
    let path = folder.path().join("image.qcow2");
    write_as(&device, &path, Some(&WriteOptions::default()));
    qemu_img(folder.path(), &["check", "-q", "-f", "qcow2", "image.qcow2"]);
    let len = std::fs::metadata(&path).unwrap().len();
    assert!(len < 1 << 20, "{len}");
    let disk = open(&path);
    let mut bytes = [0; 4096];
    disk.read_at(kiln_block::ByteOffset::new(5 << 40), &mut bytes).unwrap();
    assert_eq!(bytes, [1; 4096]);
}

#[test]
fn what_was_stopped_is_no_image() {
    let device = MemoryDevice::holding(&scattered(9 << 20, 6));
    let mut file = tempfile::tempfile().unwrap();
    let mut calls = 0;
    let outcome = write(&device, &mut file, &WriteOptions::default(), &mut |_| {
        calls += 1;
        if calls == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(outcome, Err(Qcow2Error::Stopped)));
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let found = kiln_block::FileDevice::open(Path::new(&path), true).unwrap();
    assert!(!kiln_qcow2::Image::is_one(&found));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any content, any way of writing.
    #[test]
    fn any_disk_comes_back_and_qemu_agrees(
        seed in any::<u64>(),
        sectors in 1..5000_usize,
        way in 0..ways().len(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let bytes = scattered(sectors * 512, seed);
        let way = ways().swap_remove(way);
        write_as(&MemoryDevice::holding(&bytes), &folder.path().join("image.qcow2"), way.as_ref());
        assert_same(folder.path(), &bytes, &format!("{way:?}"));
    }
}
