//! Random writes over random stacks against a byte array, through commit, seal and merge, in every
//! encoding.

use std::io::{Cursor, Write};
use std::sync::Arc;

use kiln_block::testing::Dice;
use kiln_block::{
    BlockDevice, BlockSource, ByteLen, ByteOffset, Extent, ExtentKind, MemoryDevice, ReadOnly,
};
use kiln_overlaybd::{
    Codec, NewUpper, Packing, Sealing, Stack, ZFile, ZFileWriter, pack, pack_changes,
};
use proptest::prelude::*;

use crate::files::{Log, committed, input, layer, options, stack, whole};
use crate::naive;

const SIZE: usize = 256 << 10;

/// A write of some value or, without one, a discard; in sectors.
#[derive(Debug, Clone)]
struct Change {
    start: u64,
    len: u64,
    value: Option<u8>,
}

fn change() -> impl Strategy<Value = Change> {
    let sectors = SIZE as u64 / 512;
    (0..sectors, 1..120u64, prop::option::weighted(0.75, any::<u8>()))
        .prop_map(move |(start, len, value)| Change { start, len: len.min(sectors - start), value })
}

fn packing() -> impl Strategy<Value = Option<Packing>> {
    let codec = prop_oneof![Just(Codec::Lz4), Just(Codec::Zstd)];
    let packing = (codec, 12..=16u32, any::<bool>(), any::<bool>(), 1..3usize).prop_map(
        |(codec, shift, checksums, complete_header, threads)| Packing {
            codec,
            block_size: 1 << shift,
            checksums,
            complete_header,
            threads,
        },
    );
    prop::option::weighted(0.7, packing)
}

fn apply(changes: &[Change], disk: &dyn BlockDevice, mirror: &mut [u8]) {
    for Change { start, len, value } in changes {
        let at = ByteOffset::new(start * 512);
        let (from, to) =
            (usize::try_from(start * 512).unwrap(), usize::try_from((start + len) * 512).unwrap());
        match value {
            Some(value) => {
                // A value alone would not show a sector that ends up in another's place.
                for (byte, position) in mirror[from..to].iter_mut().zip(from..) {
                    let sector = u8::try_from(position / 512 % 251).unwrap();
                    *byte = value.wrapping_add(sector);
                }
                disk.write_at(at, &mirror[from..to]).unwrap();
            }
            None => {
                disk.discard(at, ByteLen::new(len * 512)).unwrap();
                mirror[from..to].fill(0);
            }
        }
    }
}

/// The stored extents of a stack are all that is not zero.
fn holes_are_zeros(stack: &ReadOnly<Stack>, mirror: &[u8]) {
    for extent in stack.extents(ByteOffset::ZERO, stack.size()).unwrap() {
        if extent.kind != ExtentKind::Data {
            let from = usize::try_from(extent.at.get()).unwrap();
            let len = extent.len.to_usize().unwrap();
            assert!(mirror[from..from + len].iter().all(|byte| *byte == 0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_stack_reads_like_the_byte_array_its_layers_were_written_to(
        layers in prop::collection::vec(
            (prop::collection::vec(change(), 0..12), packing(), any::<bool>(), any::<bool>()),
            1..6,
        ),
        merged in packing(),
        reads in prop::collection::vec((0..SIZE, 1..40_000usize), 8),
    ) {
        let mut mirror = vec![0; SIZE];
        let mut sealed = Vec::new();
        for (changes, packing, in_tar, in_place) in &layers {
            let new = NewUpper { virtual_size: SIZE as u64, ..NewUpper::default() };
            let log = Log::new(&new, None);
            apply(changes, &log.disk, &mut mirror);
            sealed.push(if *in_place {
                let folder = log.folder;
                let (upper, _) = log.disk.into_parts().unwrap();
                upper.seal().unwrap();
                std::fs::read(folder.path().join("data")).unwrap()
            } else {
                let sealing = Sealing { packing: *packing, in_tar: *in_tar, ..Sealing::default() };
                committed(&log.disk, &sealing)
            });
        }
        let open = |bytes: &Vec<u8>| layer("sealed", bytes).unwrap();
        let disk = stack(sealed.iter().map(open).collect());
        prop_assert!(whole(&disk) == mirror);
        prop_assert!(naive::read(&sealed) == mirror, "so the page of the format says");
        holes_are_zeros(&disk, &mirror);
        for (at, len) in reads {
            let len = len.min(SIZE - at);
            let mut read = vec![0; len];
            disk.read_at(ByteOffset::new(at as u64), &mut read).unwrap();
            prop_assert!(read == mirror[at..at + len]);
        }
        let sealing = Sealing { packing: merged, ..Sealing::default() };
        let merged = disk.0.merge(Cursor::new(Vec::new()), &sealing).unwrap().out.into_inner();
        prop_assert!(whole(&stack(vec![open(&merged)])) == mirror);
        prop_assert!(naive::read(&[merged]) == mirror);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bit by bit through everything that makes a layer of a disk: the whole of it, and only what changed.
    #[test]
    fn a_disk_packed_and_its_changes_packed_read_like_the_disk(
        first in prop::collection::vec(change(), 1..12),
        second in prop::collection::vec(change(), 0..12),
        packing in packing(),
        grown in 0..3usize,
    ) {
        let sealing = Sealing { packing, ..Sealing::default() };
        let (small, size) = (SIZE, SIZE + grown * 4096);
        let mut before = vec![0; small];
        let old: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(ByteLen::of(&before)));
        apply(&first, &*old, &mut before);
        let mut after = before.clone();
        after.resize(size, 0);
        let new: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::holding(&after));
        apply(&second, &*new, &mut after);
        let base = pack("old", &old, Cursor::new(Vec::new()), &sealing).unwrap().out.into_inner();
        let all = [Extent { at: ByteOffset::ZERO, len: new.size(), kind: ExtentKind::Data }];
        let changes = pack_changes(
            ("old", &*old), ("new", &new), &all, Cursor::new(Vec::new()), &sealing,
        ).unwrap();
        let different = before.chunks(512).zip(after.chunks(512)).filter(|(a, b)| a != b).count();
        let top = changes.out.into_inner();
        let open = |bytes: &Vec<u8>| layer("packed", bytes).unwrap();
        prop_assert!(whole(&stack(vec![open(&base)])) == before);
        let told: u64 = open(&top).segments().iter().map(|segment| u64::from(segment.len)).sum();
        prop_assert_eq!(told, different as u64);
        let disk = stack(vec![open(&base), open(&top)]);
        prop_assert!(whole(&disk) == after);
    }
}

#[test]
fn a_file_packs_and_unpacks_whatever_its_length_and_its_threads() {
    let mut dice = Dice::seeded(3);
    for len in [0usize, 1, 4095, 4096, 4097, 65536, 1_300_001, 2_500_000] {
        let mut bytes = vec![0; len];
        dice.fill(&mut bytes[..len / 3]);
        for codec in [Codec::Lz4, Codec::Zstd] {
            let pack = |threads| {
                let packing = Packing { codec, block_size: 16384, threads, ..Packing::default() };
                let mut out = ZFileWriter::new(Cursor::new(Vec::new()), packing).unwrap();
                out.write_all(&bytes).unwrap();
                out.finish().unwrap().0.into_inner()
            };
            let packed = pack(1);
            assert!(packed == pack(3), "the number of threads changes nothing");
            let zfile = ZFile::open(input("packed", &packed), options().cache, 2).unwrap();
            assert_eq!(BlockSource::size(&zfile).get(), len as u64);
            assert!(whole(&ReadOnly(zfile)) == bytes, "{len} bytes, {codec:?}");
        }
    }
}

#[test]
fn what_no_other_reader_could_read_is_not_written_but_read() {
    let mut bytes = vec![0; 65536];
    Dice::seeded(1).fill(&mut bytes);
    let packing = Packing { block_size: 65536, ..Packing::default() };
    let mut out = ZFileWriter::new(Cursor::new(Vec::new()), packing).unwrap();
    // It may be noticed at once, or by a thread that compresses later.
    let refused = out.write_all(&bytes).and_then(|()| out.finish().map(|_| ()));
    let told = refused.unwrap_err().to_string();
    assert!(told.contains("use blocks of 32 KiB or less"), "{told}");
    // The same block, as the tools write it that cannot read it back.
    let mut small = ZFileWriter::new(Cursor::new(Vec::new()), packing).unwrap();
    small.write_all(&vec![0; 65536]).unwrap();
    let mut file = small.finish().unwrap().0.into_inner();
    let block = lz4::block::compress(&bytes, None, false).unwrap();
    assert!(block.len() > 65536);
    file.truncate(512);
    let index = (512 + block.len()) as u64;
    file.extend(&block);
    file.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
    file[32] = 0x0b;
    file[40..48].copy_from_slice(&index.to_le_bytes());
    file[88] = 0;
    let zfile = ZFile::open(input("large", &file), options().cache, 1).unwrap();
    assert!(whole(&ReadOnly(zfile)) == bytes);
}

#[test]
fn a_stack_has_at_most_255_layers_and_reads_from_each() {
    let mut layers = Vec::new();
    for number in 0..255u64 {
        let new = NewUpper { virtual_size: 1 << 20, ..NewUpper::default() };
        let log = Log::new(&new, None);
        let value = vec![u8::try_from(number).unwrap(); 4096];
        log.disk.write_at(ByteOffset::new(number * 2048), &value).unwrap();
        layers.push(committed(&log.disk, &Sealing::default()));
    }
    let open = |bytes: &Vec<u8>| layer("sealed", bytes).unwrap();
    let disk = stack(layers.iter().map(open).collect());
    let read = whole(&disk);
    for (number, chunk) in read.chunks(2048).take(255).enumerate() {
        assert!(chunk.iter().all(|byte| usize::from(*byte) == number), "layer {number}");
    }
    layers.push(layers[0].clone());
    let told = Stack::new(layers.iter().map(open).collect()).unwrap_err().to_string();
    assert!(told.contains("1 to 255 layers, not 256"), "{told}");
}
