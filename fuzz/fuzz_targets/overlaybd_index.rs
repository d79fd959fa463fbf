//! An index of anybody's making between a sound header and trailer.
#![no_main]

use std::io::Cursor;
use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice, ReadOnly};
use kiln_overlaybd::{BlockCache, Input, Layer, OpenOptions, Sealing, Stack};

/// Sectors of data that entries may name, behind the header's eight.
const DATA: usize = 64;

fn header(flags: u32, index_offset: u64, entries: u64) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    bytes[..8].copy_from_slice(b"LSMT\0\x01\x02\0");
    bytes[8..24].copy_from_slice(&[
        0x65, 0x7e, 0x63, 0xd2, 0x94, 0x44, 0x08, 0x4c, 0xa2, 0xd2, 0xc8, 0xec, 0x4f, 0xcf, 0xae,
        0x8a,
    ]);
    bytes[28..32].copy_from_slice(&flags.to_le_bytes());
    bytes[32..40].copy_from_slice(&index_offset.to_le_bytes());
    bytes[40..48].copy_from_slice(&entries.to_le_bytes());
    bytes[48..56].copy_from_slice(&(1u64 << 16).to_le_bytes());
    bytes
}

libfuzzer_sys::fuzz_target!(|index: &[u8]| {
    let index = &index[..index.len().min(64 * 16) / 16 * 16];
    let mut file = header(7, 0, 0).to_vec();
    file.extend((0..DATA * 512).map(|at| u8::try_from(at / 512).unwrap_or(0) | 0x80));
    let at = file.len() as u64;
    file.extend(index);
    file.extend(header(6, at, index.len() as u64 / 16));
    let options = OpenOptions { cache: Arc::new(BlockCache::new(ByteLen::kib(256))), threads: 1 };
    let open = |bytes: &[u8]| {
        let layer =
            Layer::open(Input::new("layer", Arc::new(MemoryDevice::holding(bytes))), &options);
        layer.and_then(|layer| Stack::new(vec![layer])).map(ReadOnly)
    };
    let Ok(disk) = open(&file) else { return };
    let mut read = vec![0; 1 << 16];
    disk.read_at(ByteOffset::ZERO, &mut read).expect("a sound layer reads");
    let merged = disk.0.merge(Cursor::new(Vec::new()), &Sealing::default()).expect("and merges");
    let merged = open(&merged.out.into_inner()).expect("into a sound layer");
    let mut again = vec![0; 1 << 16];
    merged.read_at(ByteOffset::ZERO, &mut again).expect("that reads");
    assert!(read == again);
});
