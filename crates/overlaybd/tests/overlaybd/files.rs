//! Images that other tools wrote: the small ones as they are, the large ones remade from the list of
//! writes they were made with, or found in the folder that `KILN_OVERLAYBD_DATA` names.

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_block::{BlockDevice, BlockSource, ByteLen, ByteOffset, MemoryDevice, ReadOnly};
use kiln_overlaybd::{
    Input, Layer, LayerError, NewUpper, OpenOptions, Sealing, Stack, Upper, Writable,
};
use sha2::{Digest, Sha256};

/// A file kept with these tests.
pub(crate) fn kept(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A file too large to be kept; `None`, told on stderr, where the folder of them is not known.
pub(crate) fn large(name: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("KILN_OVERLAYBD_DATA") else {
        eprintln!(
            "not read: {name} (KILN_OVERLAYBD_DATA does not name the folder of large images)"
        );
        return None;
    };
    Some(Path::new(&folder).join(name))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes under a name.
pub(crate) fn input(name: &str, bytes: &[u8]) -> Input {
    Input::new(name, Arc::new(MemoryDevice::holding(bytes)))
}

/// A small cache, so that tests see it overflow.
pub(crate) fn options() -> OpenOptions {
    OpenOptions { cache: Arc::new(kiln_overlaybd::BlockCache::new(ByteLen::kib(256))), threads: 2 }
}

pub(crate) fn layer(name: &str, bytes: &[u8]) -> Result<Layer, LayerError> {
    Layer::open(input(name, bytes), &options())
}

/// Everything a disk holds.
pub(crate) fn whole(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.size().to_usize().unwrap()];
    device.read_at(ByteOffset::ZERO, &mut bytes).unwrap();
    bytes
}

pub(crate) fn stack(layers: Vec<Layer>) -> ReadOnly<Stack> {
    let stack = ReadOnly(Stack::new(layers).unwrap());
    assert!(stack.0.size().get() > 0);
    stack
}

/// One layer as a disk.
pub(crate) fn disk(name: &str, bytes: &[u8]) -> ReadOnly<Stack> {
    stack(vec![layer(name, bytes).unwrap_or_else(|error| panic!("{error}"))])
}

/// The 64 GiB base layer of 2021.
pub(crate) fn legacy() -> Vec<u8> {
    let packed = kept("o_base_legacy/ext4_64.tar.gz");
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(Cursor::new(packed)));
    let mut bytes = Vec::new();
    tar.entries().unwrap().next().unwrap().unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// An upper in a folder of its own.
pub(crate) struct Log {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) disk: Writable,
}

impl Log {
    pub(crate) fn new(new: &NewUpper, lower: Option<Stack>) -> Log {
        let folder = tempfile::tempdir().unwrap();
        let upper = Upper::create_log(&folder.path().join("data"), &folder.path().join("idx"), new);
        let disk = Writable::new(upper.unwrap(), lower).unwrap();
        Log { folder, disk }
    }

    pub(crate) fn data(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join("data")).unwrap()
    }

    pub(crate) fn index(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join("idx")).unwrap()
    }
}

/// The sealed layer of what an upper holds.
pub(crate) fn committed(disk: &Writable, sealing: &Sealing) -> Vec<u8> {
    disk.commit(Cursor::new(Vec::new()), sealing).unwrap().out.into_inner()
}

fn splitmix64(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// What a `W` line writes: random words, or runs of text with some random words in between.
fn pattern(mode: &str, seed: u64, len: usize) -> Vec<u8> {
    let fixed = 0x4141_4141_4141_4141u64.wrapping_add((seed % 16) * 0x0101_0101_0101_0101);
    let words = (0..len as u64 / 8).map(|j| match mode {
        "R" => splitmix64(seed.wrapping_mul(1_000_003).wrapping_add(j)),
        "C" if j % 64 < 8 => splitmix64(seed.wrapping_mul(1_000_003).wrapping_add(j)),
        "C" => fixed,
        _ => 0,
    });
    words.flat_map(u64::to_le_bytes).collect()
}

/// Replays a list of writes and discards.
pub(crate) fn replay(list: &str, disk: &dyn BlockDevice) {
    let text = String::from_utf8(kept(list)).unwrap();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| fields[at].parse::<u64>().unwrap();
        match fields[0] {
            "W" => {
                let bytes = pattern(fields[3], number(4), usize::try_from(number(2)).unwrap());
                disk.write_at(ByteOffset::new(number(1)), &bytes).unwrap();
            }
            "D" => disk.discard(ByteOffset::new(number(1)), ByteLen::new(number(2))).unwrap(),
            "S" | "G" => disk.flush().unwrap(),
            other => panic!("{list} has a line {other}"),
        }
    }
    disk.flush().unwrap();
}

/// The log that a list of operations makes.
pub(crate) fn replayed(list: &str, new: &NewUpper) -> Log {
    let log = Log::new(new, None);
    replay(list, &log.disk);
    log
}
