//! A second reader, written from the page of the format alone and without a line of the library: simple, slow, and in
//! memory. What it reads of a layer is what the page says is in it.

use std::io::Read as _;

const SECTOR: usize = 512;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

fn size_at(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u64_at(bytes, at)).unwrap()
}

/// CRC-32C without inversions.
fn crc(seed: u32, bytes: &[u8]) -> u32 {
    static TABLE: std::sync::OnceLock<[u32; 256]> = std::sync::OnceLock::new();
    let table = TABLE.get_or_init(|| {
        std::array::from_fn(|byte| {
            (0..8).fold(u32::try_from(byte).unwrap(), |state, _| {
                if state & 1 == 1 { state >> 1 ^ 0x82f6_3b78 } else { state >> 1 }
            })
        })
    });
    bytes
        .iter()
        .fold(seed, |state, byte| state >> 8 ^ table[usize::from(state.to_le_bytes()[0] ^ byte)])
}

/// What is in the tar, if it is one.
fn untarred(file: &[u8]) -> Vec<u8> {
    if file.get(257..262) != Some(b"ustar") {
        return file.to_vec();
    }
    let mut tar = tar::Archive::new(file);
    let mut entry = tar.entries().unwrap().next().unwrap().unwrap();
    let mut payload = Vec::new();
    entry.read_to_end(&mut payload).unwrap();
    payload
}

/// What it unpacks to, if it is a ZFile.
fn unpacked(file: &[u8]) -> Vec<u8> {
    if !file.starts_with(b"ZFile\0\x01\0tuji.yyf@Alibaba") {
        return file.to_vec();
    }
    let is_complete = file[32] & 8 != 0;
    let about = if is_complete { &file[..512] } else { &file[file.len() - 512..] };
    if about[32] & 16 != 0 {
        let digest = crc(crc(crc(0, &about[..28]), &[0; 4]), &about[32..]);
        assert_eq!(digest, u32_at(about, 28), "the digest of the header");
    }
    let (table, blocks, size) = (size_at(about, 40), size_at(about, 48), size_at(about, 56));
    let block_size = u32_at(about, 72) as usize;
    let table = &file[table..table + blocks * 4];
    if about[32] & 16 != 0 {
        assert_eq!(crc(0, table), u32_at(about, 64), "the CRC of the jump table");
    }
    let mut at = 512 + u32_at(about, 84) as usize;
    let mut content = Vec::new();
    for entry in table.chunks(4) {
        let mut block = &file[at..at + u32_at(entry, 0) as usize];
        at += block.len();
        if about[88] == 1 {
            let (data, stored) = block.split_at(block.len() - 4);
            assert_eq!(crc(100_007, data), u32_at(stored, 0), "the CRC of a block");
            block = data;
        }
        let wanted = block_size.min(size - content.len());
        let plain = match about[76] {
            1 => lz4::block::decompress(block, Some(i32::try_from(wanted).unwrap())).unwrap(),
            2 => zstd::bulk::decompress(block, wanted).unwrap(),
            other => panic!("compression {other}"),
        };
        assert_eq!(plain.len(), wanted);
        content.extend(plain);
    }
    assert_eq!(content.len(), size);
    content
}

/// Lays a layer over what the layers below it hold; the disk becomes as large as the layer says.
fn lay(file: &[u8], disk: &mut Vec<u8>) {
    let layer = unpacked(&untarred(file));
    let trailer = &layer[layer.len() - 4096..];
    assert!(layer.starts_with(b"LSMT\0\x01\x02\0") && trailer.starts_with(b"LSMT\0\x01\x02\0"));
    assert_eq!(u32_at(trailer, 28) & 7, 6, "the flags of a trailer");
    let (index, entries, size) = (size_at(trailer, 32), size_at(trailer, 40), size_at(trailer, 48));
    if size > 0 {
        disk.resize(size, 0);
    }
    for entry in layer[index..index + entries * 16].chunks(16) {
        let (place, storage) = (u64_at(entry, 0), u64_at(entry, 8));
        let start = place & ((1 << 50) - 1);
        if start == (1 << 50) - 1 {
            continue;
        }
        let start = usize::try_from(start).unwrap() * SECTOR;
        let len = usize::try_from(place >> 50).unwrap() * SECTOR;
        let stored = usize::try_from(storage & ((1 << 55) - 1)).unwrap() * SECTOR;
        match storage >> 55 & 1 {
            1 => disk[start..start + len].fill(0),
            _ => disk[start..start + len].copy_from_slice(&layer[stored..stored + len]),
        }
    }
}

/// Everything that layers on each other, the lowest first, hold.
pub(crate) fn read(layers: &[Vec<u8>]) -> Vec<u8> {
    let mut disk = Vec::new();
    for layer in layers {
        lay(layer, &mut disk);
    }
    disk
}
