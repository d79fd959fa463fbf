//! The contract of [`BlockDevice`], sentence by sentence, as one function that panics at the first
//! sentence that does not hold.

use std::io::{IoSlice, IoSliceMut};

use super::Dice;
use crate::{BlockDevice, ByteLen, ByteOffset, DeviceError, ExtentKind};

/// What an implementation can do beyond the contract.
#[derive(Debug, Clone, Copy)]
pub struct Abilities {
    /// The smallest unit it can read and write; 1 for most, 512 for a real block device.
    pub granularity: usize,
    /// Whether it can be written to.
    pub writable: bool,
}

/// Runs every check on a device of at least 1 MiB that reads as zeros (a read-only one may hold
/// anything). The device is full of rubbish afterwards.
///
/// # Panics
///
/// At the first sentence of the contract that does not hold.
pub fn conforms(device: &dyn BlockDevice, abilities: Abilities) {
    assert!(device.size().get() >= 1 << 20, "the suite needs a disk of 1 MiB or more");
    assert_eq!(device.is_read_only(), !abilities.writable, "is_read_only tells the truth");
    refuses_what_reaches_past_the_end(device, abilities);
    does_nothing_over_nothing(device, abilities);
    scattered_reads_see_what_one_read_sees(device, abilities);
    extents_cover_a_range_exactly_and_never_lie_about_zeros(device);
    if abilities.writable {
        unwritten_bytes_read_as_zeros(device);
        agrees_with_a_plain_byte_array(device, abilities);
        parallel_writers_do_not_disturb_each_other(device);
        extents_cover_a_range_exactly_and_never_lie_about_zeros(device);
        device.flush().expect("a healthy disk flushes");
    } else {
        refuses_every_change(device, abilities);
    }
}

fn refuses_what_reaches_past_the_end(device: &dyn BlockDevice, abilities: Abilities) {
    let size = device.size().get();
    let unit = abilities.granularity as u64;
    let mut buffer = vec![0xa5; abilities.granularity * 2];
    for at in [size - unit, size, size + unit, u64::MAX - unit + 1] {
        let at = ByteOffset::new(at);
        let outside = |result: Result<(), DeviceError>| match result {
            Err(DeviceError::OutOfRange { .. } | DeviceError::ReadOnly) => {}
            other => panic!("a call past the end at {at} must be refused, not {other:?}"),
        };
        assert!(
            matches!(device.read_at(at, &mut buffer), Err(DeviceError::OutOfRange { .. })),
            "a read past the end at {at} must be refused"
        );
        let len = ByteLen::of(&buffer);
        outside(device.write_at(at, &buffer));
        outside(device.discard(at, len));
        outside(device.write_zeroes(at, len, false));
        assert!(
            matches!(device.extents(at, len), Err(DeviceError::OutOfRange { .. })),
            "extents past the end at {at} must be refused"
        );
    }
    let mut last = vec![0; abilities.granularity];
    device.read_at(ByteOffset::new(size - unit), &mut last).expect("the last bytes can be read");
    assert!(!abilities.writable || last.iter().all(|b| *b == 0), "a refused write left bytes");
}

fn does_nothing_over_nothing(device: &dyn BlockDevice, abilities: Abilities) {
    let end = ByteOffset::new(device.size().get());
    for at in [ByteOffset::ZERO, end] {
        device.read_at(at, &mut []).expect("reading nothing succeeds");
        assert!(device.extents(at, ByteLen::ZERO).expect("no extents of nothing").is_empty());
        if abilities.writable {
            device.write_at(at, &[]).expect("writing nothing succeeds");
            device.discard(at, ByteLen::ZERO).expect("discarding nothing succeeds");
            device.write_zeroes(at, ByteLen::ZERO, true).expect("zeroing nothing succeeds");
        }
    }
}

fn unwritten_bytes_read_as_zeros(device: &dyn BlockDevice) {
    let mut buffer = vec![0xff; 65536];
    device.read_at(ByteOffset::new(4096), &mut buffer).expect("read");
    assert!(buffer.iter().all(|b| *b == 0), "bytes never written read as zeros");
}

fn scattered_reads_see_what_one_read_sees(device: &dyn BlockDevice, abilities: Abilities) {
    let unit = abilities.granularity;
    let mut whole = vec![1; unit * 7];
    let at = ByteOffset::new((unit * 3) as u64);
    device.read_at(at, &mut whole).expect("read");
    let (mut a, mut b, mut c) = (vec![2; unit * 2], vec![3; unit], vec![4; unit * 4]);
    let mut row = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b), IoSliceMut::new(&mut c)];
    device.read_vectored_at(at, &mut row).expect("vectored read");
    assert_eq!([a, b, c].concat(), whole, "a row of buffers is filled in order");
}

fn refuses_every_change(device: &dyn BlockDevice, abilities: Abilities) {
    let bytes = vec![7; abilities.granularity];
    let len = ByteLen::of(&bytes);
    let refused = |result: Result<(), DeviceError>, what: &str| {
        assert!(matches!(result, Err(DeviceError::ReadOnly)), "{what} must be refused: {result:?}");
    };
    refused(device.write_at(ByteOffset::ZERO, &bytes), "a write");
    refused(device.discard(ByteOffset::ZERO, len), "a discard");
    refused(device.write_zeroes(ByteOffset::ZERO, len, false), "write-zeroes");
    device.flush().expect("a read-only disk has nothing to flush");
}

fn extents_cover_a_range_exactly_and_never_lie_about_zeros(device: &dyn BlockDevice) {
    let (start, len) = (512_u64, (1 << 20) - 1024_u64);
    let extents =
        device.extents(ByteOffset::new(start), ByteLen::new(len)).expect("extents of a range");
    let mut cursor = start;
    for extent in extents {
        assert_eq!(extent.at.get(), cursor, "extents follow each other without gap or overlap");
        assert!(!extent.len.is_zero(), "no extent is empty");
        cursor += extent.len.get();
        if extent.kind != ExtentKind::Data {
            let mut bytes = vec![1; extent.len.to_usize().expect("a small disk")];
            device.read_at(extent.at, &mut bytes).expect("read of an extent");
            assert!(bytes.iter().all(|b| *b == 0), "{extent:?} does not read as zeros");
        }
    }
    assert_eq!(cursor, start + len, "extents cover the range");
}

fn agrees_with_a_plain_byte_array(device: &dyn BlockDevice, abilities: Abilities) {
    let unit = abilities.granularity as u64;
    let space = (1_u64 << 20) / unit;
    let mut model = vec![0u8; 1 << 20];
    let mut dice = Dice::seeded(0x5eed);
    for round in 0..600 {
        let start = dice.below(space);
        let longest = (space - start).min(if round % 10 == 0 { 65536 } else { 9000 } / unit + 1);
        let count = 1 + dice.below(longest);
        let at = ByteOffset::new(start * unit);
        let len = ByteLen::new(count * unit);
        let from = usize::try_from(start * unit).expect("small");
        let span = from..from + len.to_usize().expect("small");
        match dice.below(8) {
            0..=3 => {
                let mut bytes = vec![0; span.len()];
                dice.fill(&mut bytes);
                let middle = bytes.len() / 2 / abilities.granularity * abilities.granularity;
                let (head, tail) = bytes.split_at(middle);
                device
                    .write_vectored_at(at, &[IoSlice::new(head), IoSlice::new(tail)])
                    .expect("write");
                model[span].copy_from_slice(&bytes);
            }
            4 => {
                device.write_zeroes(at, len, round % 2 == 0).expect("write-zeroes");
                model[span].fill(0);
            }
            5 => {
                device.discard(at, len).expect("discard");
                // A discarded byte is zero or what it was; whichever it is, it stays that.
                let mut now = vec![0; span.len()];
                device.read_at(at, &mut now).expect("read after a discard");
                for (byte, was) in now.iter().zip(&model[span.clone()]) {
                    assert!(*byte == 0 || byte == was, "a discard made new bytes at {at}");
                }
                model[span].copy_from_slice(&now);
            }
            6 => device.flush().expect("flush"),
            _ => {
                let mut bytes = vec![0xee; span.len()];
                device.read_at(at, &mut bytes).expect("read");
                assert!(bytes == model[span], "round {round}: wrong bytes at {at}, {len} long");
            }
        }
    }
    let mut all = vec![0; model.len()];
    device.read_at(ByteOffset::ZERO, &mut all).expect("read");
    assert!(all == model, "the disk holds what was written");
}

fn parallel_writers_do_not_disturb_each_other(device: &dyn BlockDevice) {
    let stripe = 64 << 10;
    std::thread::scope(|scope| {
        for writer in 0..8_u8 {
            scope.spawn(move || {
                for round in 0..16_u64 {
                    let at = u64::from(writer) * stripe + round % 4 * 16384;
                    let bytes = vec![writer ^ 0x40; 16384];
                    device.write_at(ByteOffset::new(at), &bytes).expect("parallel write");
                    if round % 5 == 0 {
                        device.flush().expect("parallel flush");
                    }
                }
            });
        }
    });
    let mut bytes = vec![0; 64 << 10];
    for writer in 0..8_u8 {
        device.read_at(ByteOffset::new(u64::from(writer) * stripe), &mut bytes).expect("read");
        assert!(bytes.iter().all(|b| *b == writer ^ 0x40), "writer {writer} was disturbed");
    }
}
