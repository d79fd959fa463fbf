//! Images that lie: each is refused with a word, or read; nothing panics, nothing takes memory without end.

use std::io::Cursor;
use std::ops::ControlFlow;
use std::sync::Arc;

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice};
use kiln_qcow2::{Compression, Image, Qcow2Error, WriteOptions, write};

use crate::scattered;

fn image(compression: Option<Compression>) -> Vec<u8> {
    let device = MemoryDevice::holding(&scattered(3 << 20, 8));
    let mut out = Cursor::new(Vec::new());
    let options = WriteOptions { cluster: ByteLen::kib(4), compression, threads: 1 };
    write(&device, &mut out, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    out.into_inner()
}

fn open(bytes: &[u8]) -> Result<kiln_qcow2::Disk, Qcow2Error> {
    let image = Image::open("it", Arc::new(MemoryDevice::holding(bytes)))?;
    let below: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(ByteLen::mib(1)));
    image.disk(None, Some(below), Arc::default())
}

/// Reads what a reader of a small disk would, and what is at its end.
fn use_it(bytes: &[u8]) -> Result<(), String> {
    let disk = open(bytes).map_err(|error| error.to_string())?;
    let size = disk.size().get();
    let mut outcome = Ok(());
    let mut buffer = vec![0; 1 << 20];
    for start in [0, 1 << 20, 2 << 20, size.saturating_sub(1 << 20)] {
        let len = size.saturating_sub(start).min(1 << 20);
        let part = &mut buffer[..usize::try_from(len).unwrap()];
        if let Err(error) = disk.read_at(ByteOffset::new(start), part) {
            outcome = Err(error.to_string());
        }
        if let Err(error) = disk.extents(ByteOffset::new(start), ByteLen::new(len)) {
            outcome = Err(error.to_string());
        }
    }
    outcome
}

#[test]
fn every_field_of_the_header_out_of_range_is_refused() {
    let good = image(None);
    assert_eq!(use_it(&good), Ok(()));
    let fields: &[(usize, usize, &[u64], &str)] = &[
        (0, 4, &[0, u64::MAX], "not a qcow2 image"),
        (4, 4, &[0, 1, 4, 0xffff_ffff], "version"),
        (8, 8, &[u64::MAX, 1 << 40, 4096, 5000], "backing file's name"),
        (20, 4, &[0, 8, 22, 64, 0xffff_ffff], "clusters of 2^"),
        (24, 8, &[u64::MAX, 1 << 62, 1 << 40], "disk of"),
        (32, 4, &[1, 2, 3, 0xffff_ffff], "encrypted"),
        (36, 4, &[0, 1, 0xffff_ffff, 0x0100_0000], "L1 table"),
        (40, 8, &[0, 1, 4097, 1 << 40, u64::MAX, u64::MAX << 12], "L1 table"),
        (48, 8, &[0, 1, 4097, 1 << 40, u64::MAX << 12], "refcount table"),
        (56, 4, &[0, 0xffff_ffff, 1 << 20], "refcount table"),
        (72, 8, &[4, 32, 1 << 63, 8, 16], ""),
        (96, 4, &[7, 64, 0xffff_ffff], "refcounts of 2^"),
        (100, 4, &[0, 103, 105, 8192, 0xffff_ffff], "header of"),
        (104, 1, &[1, 2, 255], ""),
    ];
    for (at, len, values, part) in fields {
        for value in *values {
            let mut bytes = good.clone();
            bytes[*at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
            let error = use_it(&bytes).expect_err(&format!("{value:#x} at {at}"));
            assert!(error.contains(part), "{value:#x} at {at}: {error}");
        }
    }
    // Snapshots that are nowhere, or too many.
    for (count, table) in [(1_u32, 0_u64), (1, 1 << 40), (1, 4097), (u32::MAX, 4096)] {
        let mut bytes = good.clone();
        bytes[60..64].copy_from_slice(&count.to_be_bytes());
        bytes[64..72].copy_from_slice(&table.to_be_bytes());
        use_it(&bytes).expect_err(&format!("{count} snapshots at {table}"));
    }
}

#[test]
fn an_unknown_feature_is_called_what_the_image_calls_it() {
    let mut bytes = image(None);
    bytes[72..80].copy_from_slice(&(1_u64 << 40).to_be_bytes());
    bytes[112..116].copy_from_slice(&0x6803_f857_u32.to_be_bytes());
    bytes[116..120].copy_from_slice(&48_u32.to_be_bytes());
    bytes[121] = 40;
    bytes[122..134].copy_from_slice(b"time\x1b travel");
    let error = use_it(&bytes).unwrap_err();
    assert!(error.contains("time") && error.contains("travel\" (bit 40)"), "{error}");
    assert!(!error.contains('\x1b'), "{error}");
}

#[test]
fn tables_that_lead_out_of_the_file_or_between_clusters_are_damage() {
    let good = image(None);
    let l1 = 4096;
    let l2 = usize::try_from(u64::from_be_bytes(good[l1..l1 + 8].try_into().unwrap()) & !(1 << 63));
    let l2 = l2.unwrap();
    let entry = (l2..).step_by(8).find(|at| good[*at..at + 8] != [0; 8]).unwrap();
    for value in [1_u64 << 63 | 512, 1 << 63 | 1 << 50, 1 << 40, 4096 + 512, 0x00ff_ffff_ffff_fe00]
    {
        for at in [l1, entry] {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
            let error = use_it(&bytes).expect_err(&format!("{value:#x} at {at}"));
            assert!(error.contains("damaged at byte"), "{error}");
        }
    }
    // A table that is the header, the table that leads to it, or itself: read as what it is.
    for value in [4096_u64, l2 as u64] {
        for at in [l1, entry] {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
            let _ = use_it(&bytes);
        }
    }
}

#[test]
fn what_is_compressed_unpacks_to_a_cluster_or_is_damage() {
    // A cluster that would unpack to 4 GiB of zeros, were it not stopped at 4 KiB.
    let bomb = zstd::encode_all(&vec![0; 64 << 20][..], 1).unwrap();
    let wide = {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.include_contentsize(false).unwrap();
        std::io::copy(&mut &[7; 9000][..], &mut encoder).unwrap();
        encoder.finish().unwrap()
    };
    let good = image(Some(Compression::Zstd));
    let l2 = u64::from_be_bytes(good[4096..4104].try_into().unwrap()) & !(1 << 63);
    let l2 = usize::try_from(l2).unwrap();
    let entry = (l2..).step_by(8).find(|at| good[*at] & 0x40 != 0).unwrap();
    let guest = (entry - l2) / 8 * 4096;
    for (payload, fine) in [
        (bomb, true),
        (wide, false),
        (vec![0; 4096], false),
        (b"\x28\xb5\x2f\xfd".to_vec(), false),
        (zstd::encode_all(&[1; 4095][..], 1).unwrap(), false),
        (zstd::encode_all(&[1; 4096][..], 1).unwrap(), true),
    ] {
        let mut bytes = good.clone();
        let at = bytes.len();
        bytes.extend(&payload);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let split = 62 - (12 - 8);
        let value = 1_u64 << 62 | ((payload.len() as u64 - 1) / 512) << split | at as u64;
        bytes[entry..entry + 8].copy_from_slice(&value.to_be_bytes());
        let disk = open(&bytes).unwrap();
        let mut cluster = [0; 4096];
        let outcome = disk.read_at(ByteOffset::new(guest as u64), &mut cluster);
        // Of a cluster that is too long the first bytes count, as they do for QEMU.
        assert_eq!(outcome.is_ok(), fine, "{outcome:?}");
    }
}

#[test]
fn bytes_that_rot_anywhere_never_bring_a_reader_down() {
    for compression in [None, Some(Compression::Deflate), Some(Compression::Zstd)] {
        let good = image(compression);
        let mut dice = Dice::seeded(11);
        for _ in 0..400 {
            let mut bytes = good.clone();
            for _ in 0..=dice.below(4) {
                // Headers and tables twice as often as data.
                let space = if dice.below(3) == 0 { good.len() as u64 } else { 16384 };
                let at = usize::try_from(dice.below(space)).unwrap();
                bytes[at] = u8::try_from(dice.below(256)).unwrap();
            }
            let _ = use_it(&bytes);
        }
        for len in (0..good.len()).step_by(4096 - 24) {
            let _ = use_it(&good[..len]);
        }
    }
}
