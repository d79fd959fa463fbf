use std::io::Write as _;
use std::sync::Arc;

use kiln_block::{BlockSource as _, ByteLen};

use super::super::{BuiltImage, Form, GuestExecutable, ImageRequest, ImageStore, PruneLimits};
use crate::ext2;
use crate::kernel::{Kernel, KernelCache, KernelSource};
use crate::manifest::{ManifestSource, Part};

use super::*;

const TEXT: &str = "this text lies in an archive\n";

struct Bench {
    folder: tempfile::TempDir,
    store: ImageStore,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&folder.path().join("store")).unwrap();
        let bench = Bench { folder, store };
        bench.pack("base.tar.gz", TEXT, true);
        bench
    }

    /// Writes an archive with one large file, which is not root's, under two names.
    fn pack(&self, name: &str, text: &str, packed: bool) {
        let mut builder = tar::Builder::new(Vec::new());
        let text = text.repeat(20_000);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o640);
        header.set_uid(7);
        header.set_gid(8);
        builder.append_data(&mut header, "srv/text", text.as_bytes()).unwrap();
        header.set_size(0);
        header.set_entry_type(tar::EntryType::Link);
        builder.append_link(&mut header, "srv/same", "srv/text").unwrap();
        let mut bytes = builder.into_inner().unwrap();
        if packed {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&bytes).unwrap();
            bytes = gzip.finish().unwrap();
        }
        fs::write(self.folder.path().join(name), bytes).unwrap();
    }

    fn build(&self, archive: &str, form: Form) -> BuiltImage {
        let request = ImageRequest {
            manifest: ManifestSource {
                name: "guest.toml".to_owned(),
                text: format!("bases = [{{ source = {archive:?} }}]"),
                folder: Some(self.folder.path().to_owned()),
                part: Part::Whole,
            },
            kernel: Kernel {
                release: "6.0.0-test".to_owned(),
                digest: "00".repeat(32),
                image: PathBuf::from("/nonexistent"),
                modules: None,
                source: KernelSource::Boot,
            },
            kernels: KernelCache::new(self.folder.path().join("kernels")),
            guest: GuestExecutable::Bytes(Arc::from(*b"init")),
            modified: 0,
            root: PathBuf::from("/"),
            form,
        };
        self.store.get_or_build(&request).unwrap()
    }

    fn root(&self, archive: &str) -> BuiltImage {
        self.build(archive, Form::Root { free: ByteLen::new(0) })
    }

    /// How many unpacked archives there are.
    fn unpacked(&self) -> usize {
        fs::read_dir(self.folder.path().join("store").join(FOLDER)).unwrap().count()
    }
}

fn disk(image: &BuiltImage) -> Vec<u8> {
    let plan = ext2::Plan::load(&image.path).unwrap();
    let mut disk = vec![0; usize::try_from(image.disk.unwrap().get()).unwrap()];
    plan.read(0, &mut disk).unwrap();
    disk
}

fn holds(image: &BuiltImage, text: &str) -> bool {
    disk(image).windows(text.len()).any(|bytes| bytes == text.as_bytes())
}

#[test]
fn the_plan_of_a_root_disk_has_files_in_archives_that_another_process_finds() {
    let bench = Bench::new();
    bench.pack("plain.tar", TEXT, false);
    for (archive, unpacked) in [("plain.tar", 0), ("base.tar.gz", 1)] {
        let image = bench.root(archive);
        assert!(image.bytes < 200_000, "{archive}: no file is in the plan, {}", image.bytes);
        assert!(holds(&image, TEXT), "{archive}");
        assert_eq!(bench.unpacked(), unpacked, "{archive}");
        let again = bench.root(archive);
        assert!(again.cached && again.key == image.key, "{archive}");
    }
    bench.pack("base.tar.gz", "another text\n", true);
    let other = bench.root("base.tar.gz");
    assert!(!other.cached && holds(&other, "another text\n"));
}

#[test]
fn an_unpacked_archive_that_is_gone_is_unpacked_again() {
    let bench = Bench::new();
    drop(bench.root("base.tar.gz"));
    fs::remove_dir_all(bench.folder.path().join("store").join(FOLDER)).unwrap();
    let again = bench.root("base.tar.gz");
    assert!(!again.cached && holds(&again, TEXT));
}

#[test]
fn an_unpacked_archive_goes_with_the_last_image_that_needs_it() {
    let bench = Bench::new();
    let image = bench.root("base.tar.gz");
    let all = PruneLimits { max_bytes: Some(0), ..PruneLimits::default() };
    assert_eq!(bench.store.prune(&all).unwrap().in_use.len(), 1, "somebody has a lease");
    assert_eq!(bench.unpacked(), 1);
    drop(image);
    bench.store.prune(&PruneLimits::default()).unwrap();
    assert_eq!(bench.unpacked(), 1, "the image is still there");
    bench.store.prune(&all).unwrap();
    assert_eq!(bench.unpacked(), 0);
}

#[test]
fn an_initramfs_has_its_own_copy_with_owner_and_links() {
    let bench = Bench::new();
    let image = bench.build("base.tar.gz", Form::Initramfs);
    let (_, mut reader) = bench.store.inspect(&image.key).unwrap();
    let members: Vec<_> = reader.by_ref().map(Result::unwrap).collect();
    let of = |name: &str| members.iter().find(|member| member.name == name.as_bytes()).unwrap();
    let (same, text) = (of("srv/same"), of("srv/text"));
    assert_eq!((text.owner, text.mode, text.links), ((7, 8), 0o100_640, 2));
    assert_eq!(same.inode, text.inode);
    assert!(reader.data(text, 1 << 20).unwrap() == TEXT.repeat(20_000).into_bytes());
    bench.store.prune(&PruneLimits::default()).unwrap();
    assert_eq!(bench.unpacked(), 0, "it does without the archive");
}
