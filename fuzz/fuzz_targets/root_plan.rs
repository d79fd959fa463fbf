//! A kept plan of a root disk that anybody changed, with a right digest, is refused, or is a disk that can be listed and
//! read from one end to the other; where files of the host are not what they were, that is an error.
#![no_main]

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::OnceLock;

use kiln_block::{BlockSource, ByteLen, ByteOffset};
use kiln_image::ext2::{Mapping, Options, Plan, Tree};

/// Bytes before what the digest is of, and where it is.
const HEAD: usize = 48;
const DIGEST: usize = 16;
/// Of larger disks only this much is read.
const MOST: u64 = 8 << 30;

/// A folder for the changed plan, and the plans of a small tree, by tables and by extents.
fn plans() -> &'static (PathBuf, [Vec<u8>; 2]) {
    static PLANS: OnceLock<(PathBuf, [Vec<u8>; 2])> = OnceLock::new();
    PLANS.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("kiln-fuzz-plan-{}", std::process::id()));
        let tree = folder.join("tree");
        fs::create_dir_all(tree.join("a/b")).expect("there is room for it");
        fs::write(tree.join("a/file"), vec![b'f'; 60_000]).expect("room");
        fs::hard_link(tree.join("a/file"), tree.join("again")).expect("room");
        std::os::unix::fs::symlink("x".repeat(100), tree.join("link")).expect("room");
        let holes = fs::File::create(tree.join("holes")).expect("room");
        for at in 0..8 {
            holes.write_all_at(b"data", at * 8192).expect("room");
        }
        let plan = |mapping| {
            let mut sources = Tree::new();
            sources.add_directory(&tree).expect("it was just made");
            let plan = Plan::new(sources, &Options { mapping, ..Options::default() });
            let path = folder.join("plan");
            let kept = plan.expect("it fits").store(&fs::File::create(&path).expect("room"));
            kept.expect("room");
            fs::read(&path).expect("it was just written")
        };
        let both = [plan(Mapping::Tables), plan(Mapping::Extents)];
        (folder, both)
    })
}

// The first byte says which plan. Each four bytes behind it change one of its bytes: where, and to what.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((which, changes)) = data.split_first() else { return };
    let (folder, plans) = plans();
    let mut bytes = plans[usize::from(which & 1)].clone();
    for change in changes.chunks_exact(4) {
        let at = usize::from(change[0]) | usize::from(change[1]) << 8 | usize::from(change[2]) << 16;
        let place = HEAD + at % (bytes.len() - HEAD);
        bytes[place] = change[3];
    }
    let digest = blake3::hash(&bytes[HEAD..]);
    bytes[DIGEST..HEAD].copy_from_slice(digest.as_bytes());
    let path = folder.join("changed");
    fs::write(&path, &bytes).expect("room");
    let Ok(plan) = Plan::load(&path) else { return };
    for member in plan.members() {
        assert!(!member.name.is_empty());
    }
    let size = plan.size().get().min(MOST);
    let extents = plan.extents(ByteOffset::ZERO, ByteLen::new(size)).expect("all of it");
    let covered: u64 = extents.iter().map(|extent| extent.len.get()).sum();
    assert_eq!(covered, size);
    let mut buffer = vec![0; 1 << 16];
    for extent in extents.iter().take(64) {
        let end = extent.at.get() + extent.len.get().min(1 << 20);
        for at in (extent.at.get()..end).step_by(buffer.len()) {
            let len = usize::try_from(end - at).expect("it is small").min(buffer.len());
            let _ = plan.read(at, &mut buffer[..len]);
        }
    }
});
