//! A tar archive as the source of a disk, plain or as a layer: whatever its headers say, a disk that comes of it can be
//! read from one end to the other.
#![no_main]

use kiln_block::{BlockSource, ByteLen, ByteOffset};
use kiln_image::archive::Stretch;
use kiln_image::ext2::{Mapping, Options, Plan, Tree};

/// Makes each block that is in the place of a header one, as far as a reader cares.
fn seal(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = bytes.get_mut(at..at + 512) {
        if block[0] == 0 {
            return;
        }
        block[257..262].copy_from_slice(b"ustar");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = std::str::from_utf8(&block[124..135]).ok();
        let size =
            size.and_then(|size| usize::from_str_radix(size.trim_matches([' ', '\0']), 8).ok());
        at += 512 + size.unwrap_or(0).min(1 << 20).next_multiple_of(512);
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((how, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    seal(&mut bytes);
    let path = std::env::temp_dir().join(format!("kiln-fuzz-tar-{}", std::process::id()));
    std::fs::write(&path, &bytes).expect("there is room for it");
    through(&path, how & 1 == 1, if how & 2 == 2 { Mapping::Extents } else { Mapping::Tables });
    // Not before: a file that loses its name has changed.
    let _ = std::fs::remove_file(&path);
});

fn through(path: &std::path::Path, layer: bool, mapping: Mapping) {
    let archive = Stretch::open(path).expect("it was just written");
    // What unpacks to more than all memory says nothing about this reader.
    if archive.is_packed().expect("it can be read") {
        return;
    }
    let mut tree = Tree::new();
    if tree.add_tar(&archive, layer).is_err() {
        return;
    }
    let Ok(plan) = Plan::new(tree, &Options { mapping, ..Options::default() }) else { return };
    let size = plan.size().get();
    let mut buffer = vec![0; 1 << 16];
    for extent in plan.extents(ByteOffset::ZERO, ByteLen::new(size)).expect("all of it") {
        let end = extent.at.get() + extent.len.get().min(8 << 20);
        for at in (extent.at.get()..end).step_by(buffer.len()) {
            let len = usize::try_from((end - at).min(1 << 16)).expect("it is small");
            plan.read(at, &mut buffer[..len]).expect("nothing changed");
        }
    }
}
