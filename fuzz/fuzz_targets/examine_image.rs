//! Images of anybody's making are examined to the end, or refused: archives as they come, and ext2 disks of which some
//! bytes were changed.
#![no_main]

use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::OnceLock;

use kiln_block::{BlockSource, ByteLen};
use kiln_image::examine::{Bytes, differences, examine};
use kiln_image::ext2::{Mapping, Options, Plan, Tree};

struct Image(Vec<u8>);

impl Bytes for Image {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(at).expect("an image in memory");
        let bytes = at.checked_add(buffer.len()).and_then(|end| self.0.get(at..end));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Disks of a small tree, by tables and by extents.
fn disks() -> &'static [Vec<u8>; 2] {
    static DISKS: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    DISKS.get_or_init(|| {
        let tree = std::env::temp_dir().join(format!("kiln-fuzz-examine-{}", std::process::id()));
        fs::create_dir_all(tree.join("a/b")).expect("there is room for it");
        fs::write(tree.join("a/file"), vec![b'f'; 60_000]).expect("room");
        fs::hard_link(tree.join("a/file"), tree.join("again")).expect("room");
        std::os::unix::fs::symlink("x".repeat(100), tree.join("link")).expect("room");
        let holes = fs::File::create(tree.join("holes")).expect("room");
        for at in 0..8 {
            holes.write_all_at(b"data", at * 8192).expect("room");
        }
        let disks = [Mapping::Tables, Mapping::Extents].map(|mapping| {
            let mut sources = Tree::new();
            sources.add_directory(&tree).expect("it was just made");
            let options = Options { mapping, free: ByteLen::kib(64), ..Options::default() };
            let plan = Plan::new(sources, &options).expect("it fits");
            let size = usize::try_from(BlockSource::size(&plan).get()).expect("it is small");
            let mut bytes = vec![0; size];
            BlockSource::read(&plan, 0, &mut bytes).expect("nothing changed");
            bytes
        });
        fs::remove_dir_all(&tree).expect("it is ours");
        disks
    })
}

// The first byte says which: an archive, which is all that follows, or a disk. Then each four bytes change one of the
// disk's: where, and to what.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = data.split_first() else { return };
    let image = match usize::from(*which % 3).checked_sub(1) {
        None => Image(data.to_vec()),
        Some(disk) => {
            let mut bytes = disks()[disk].clone();
            for change in data.chunks_exact(4) {
                let at = usize::from(change[0]) | usize::from(change[1]) << 8;
                let place = (at | usize::from(change[2]) << 16) % bytes.len();
                bytes[place] = change[3];
            }
            Image(bytes)
        }
    };
    if let Ok(examined) = examine(&image) {
        assert!(examined.faults.len() <= 1000, "nobody reads so many");
        assert!(differences(&examined, &examined, true).is_empty());
    }
});
