use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::kernel::{Kernel, KernelCache, KernelSource};
use crate::manifest::{ManifestSource, Part};

struct Bench {
    folder: tempfile::TempDir,
    store: ImageStore,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&folder.path().join("store")).unwrap();
        let bench = Bench { folder, store };
        bench.write("data", "first");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn request(&self, text: &str) -> ImageRequest {
        let kernel = Kernel {
            release: "6.0.0-test".to_owned(),
            digest: "00".repeat(32),
            image: PathBuf::from("/nonexistent"),
            modules: None,
            source: KernelSource::Boot,
        };
        ImageRequest {
            manifest: ManifestSource {
                name: "guest.toml".to_owned(),
                text: text.to_owned(),
                folder: Some(self.folder.path().to_owned()),
                part: Part::Whole,
            },
            kernel,
            kernels: KernelCache::new(self.path("kernels")),
            guest: GuestExecutable::Bytes(Arc::from(*b"init")),
            modified: 0,
            root: PathBuf::from("/"),
            form: Form::Initramfs,
        }
    }

    fn data(&self) -> ImageRequest {
        self.request("files = [{ path = \"/data\", source = \"data\" }]")
    }

    fn names(&self, image: &BuiltImage) -> Vec<String> {
        let (_, reader) = self.store.inspect(&image.key).unwrap();
        reader.map(|member| member.unwrap().name.escape_ascii().to_string()).collect()
    }
}

#[test]
fn an_image_is_built_once_and_found_again() {
    let bench = Bench::new();
    let first = bench.store.get_or_build(&bench.data()).unwrap();
    let second = bench.store.get_or_build(&bench.data()).unwrap();
    assert!(!first.cached && second.cached);
    assert_eq!(
        (first.key, first.path, first.bytes),
        (second.key, second.path.clone(), second.bytes)
    );
    assert_eq!(std::fs::metadata(&second.path).unwrap().len(), second.bytes);
}

#[test]
fn two_stores_build_the_same_bytes() {
    let (bench, other) = (Bench::new(), tempfile::tempdir().unwrap());
    let request = bench.request("binaries = [\"sh\", \"ls\"]\ndirectories = [\"/srv\"]");
    let one = bench.store.get_or_build(&request).unwrap();
    let two = ImageStore::open(other.path()).unwrap().get_or_build(&request).unwrap();
    assert!(!two.cached);
    assert!(std::fs::read(one.path).unwrap() == std::fs::read(two.path).unwrap());
}

#[test]
fn every_edit_of_an_input_is_noticed() {
    let bench = Bench::new();
    let data = bench.path("data");
    let key = || bench.store.get_or_build(&bench.data()).unwrap().key;
    let mut keys = vec![key()];
    let mut edited = |what: &str| {
        let now = key();
        assert!(!keys.contains(&now), "{what} was not noticed");
        keys.push(now);
    };

    bench.write("data", "other");
    edited("new content of the same length");

    let times = std::fs::metadata(&data).unwrap();
    bench.write("data", "third");
    std::fs::File::options()
        .write(true)
        .open(&data)
        .unwrap()
        .set_modified(times.modified().unwrap())
        .unwrap();
    edited("new content with the old modification time");

    let replacement = bench.path("replacement");
    std::fs::copy(&data, &replacement).unwrap();
    std::fs::File::options()
        .write(true)
        .open(&replacement)
        .unwrap()
        .set_modified(times.modified().unwrap())
        .unwrap();
    std::fs::rename(&replacement, &data).unwrap();
    edited("another file with the same size and time");

    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o600)).unwrap();
    edited("new permissions");
}

#[test]
fn what_appears_where_nothing_was_is_noticed() {
    let bench = Bench::new();
    std::fs::create_dir_all(bench.path("tree/sub")).unwrap();
    let request = bench.request(
        "files = [{ path = \"/late\", source = \"late\", optional = true }]\n\
         trees = [{ path = \"/tree\", source = \"tree\" }]",
    );
    let before = bench.store.get_or_build(&request).unwrap();
    assert_eq!(before.notes, [format!("/late left out: no {}", bench.path("late").display())]);
    assert_eq!(bench.store.get_or_build(&request).unwrap().notes, before.notes);

    bench.write("late", "here");
    let after = bench.store.get_or_build(&request).unwrap();
    assert!(bench.names(&after).contains(&"late".to_owned()));

    bench.write("tree/sub/new", "here");
    let after = bench.store.get_or_build(&request).unwrap();
    assert!(!after.cached);
    assert!(bench.names(&after).contains(&"tree/sub/new".to_owned()));
}

#[test]
fn another_guest_kernel_or_time_is_another_image() {
    let bench = Bench::new();
    let plain = bench.store.get_or_build(&bench.data()).unwrap().key;
    let mut guest = bench.data();
    guest.guest = GuestExecutable::Bytes(Arc::from(*b"INIT"));
    let mut kernel = bench.data();
    kernel.kernel.digest = "11".repeat(32);
    let mut time = bench.data();
    time.modified = 1;
    for request in [guest, kernel, time] {
        assert_ne!(bench.store.get_or_build(&request).unwrap().key, plain);
    }
}

#[test]
fn of_many_who_ask_at_once_one_builds() {
    let bench = Bench::new();
    let request = bench.request("binaries = [\"sh\"]");
    let start = std::sync::Barrier::new(8);
    let built = std::thread::scope(|scope| {
        let asks: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    bench.store.get_or_build(&request).unwrap()
                })
            })
            .collect();
        asks.into_iter().map(|ask| ask.join().unwrap()).filter(|image| !image.cached).count()
    });
    assert_eq!(built, 1);
    assert_eq!(bench.store.list().unwrap().len(), 1);
}

#[test]
fn whatever_is_deleted_or_damaged_is_built_again() {
    let bench = Bench::new();
    let store = bench.path("store");
    let build = || bench.store.get_or_build(&bench.data()).unwrap();
    let image = build();
    let damages: [&dyn Fn(); 6] = [
        &|| std::fs::remove_file(&image.path).unwrap(),
        &|| std::fs::remove_dir_all(store.join("images")).unwrap(),
        &|| std::fs::remove_dir_all(&store).unwrap(),
        &|| std::fs::File::create(&image.path).unwrap().set_len(10).unwrap(),
        &|| std::fs::write(image.path.with_extension("json"), "{").unwrap(),
        &|| std::fs::write(image.path.with_extension("partial"), "killed").unwrap(),
    ];
    for (at, damage) in damages.into_iter().enumerate() {
        damage();
        let again = build();
        assert_eq!(again.cached, at == 5, "a partial image is nobody's loss: {at}");
        assert_eq!(std::fs::metadata(&again.path).unwrap().len(), image.bytes, "{at}");
    }
    for entry in std::fs::read_dir(store.join("memos")).unwrap() {
        std::fs::write(entry.unwrap().path(), "kiln image memo 1\nnonsense").unwrap();
    }
    assert!(build().cached, "a damaged memo costs a resolution, no build");
}

#[test]
fn a_bit_that_flipped_is_found_wherever_it_is() {
    let bench = Bench::new();
    bench.write("data", &"some data ".repeat(1000));
    for form in [Form::Initramfs, Form::Root { free: ByteLen::new(0) }] {
        let image = bench.store.get_or_build(&bench.data().as_form(form)).unwrap();
        assert_eq!(bench.store.check(&image.key).unwrap(), None);
        let bytes = std::fs::read(&image.path).unwrap();
        for at in [0, 12, bytes.len() / 3, bytes.len() / 2, bytes.len() - 1] {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            std::fs::write(&image.path, changed).unwrap();
            assert!(bench.store.check(&image.key).unwrap().is_some(), "{form:?}: byte {at}");
        }
        std::fs::write(&image.path, bytes).unwrap();
        assert_eq!(bench.store.check(&image.key).unwrap(), None);
    }
}

#[test]
fn an_image_in_use_is_not_removed() {
    let bench = Bench::new();
    let image = bench.store.get_or_build(&bench.data()).unwrap();
    let key = image.key.clone();
    let everything = PruneLimits { max_bytes: Some(0), ..PruneLimits::default() };
    let pruned = bench.store.prune(&everything).unwrap();
    assert_eq!((pruned.removed.len(), pruned.in_use.len()), (0, 1));
    let error = bench.store.remove(&key[..8]).unwrap_err();
    assert!(matches!(error, ImageError::InUse { .. }), "{error}");

    drop(image);
    let dry = bench.store.prune(&PruneLimits { dry_run: true, ..everything }).unwrap();
    assert_eq!(dry.removed[0].key, key);
    assert_eq!(bench.store.prune(&everything).unwrap(), dry);
    assert!(bench.store.list().unwrap().is_empty());
    assert!(matches!(bench.store.remove("").unwrap_err(), ImageError::NoSuchImage { .. }));
}

#[test]
fn pruning_keeps_what_was_used_last() {
    let bench = Bench::new();
    let old = bench.store.get_or_build(&bench.data()).unwrap();
    let new = bench.store.get_or_build(&bench.request("directories = [\"/srv\"]")).unwrap();
    let (old_key, new_key, bytes) = (old.key.clone(), new.key.clone(), new.bytes);
    let long_ago = SystemTime::now() - Duration::from_secs(10_000);
    File::open(&old.path).unwrap().set_modified(long_ago).unwrap();
    drop((old, new));
    let left = bench.path(&format!("store/images/{}.partial", "f".repeat(64)));
    std::fs::write(left, "").unwrap();

    let age = PruneLimits { max_age: Some(Duration::from_secs(5000)), ..PruneLimits::default() };
    let size = PruneLimits { max_bytes: Some(bytes), ..PruneLimits::default() };
    for limits in [PruneLimits { dry_run: true, ..size }, age, size] {
        let pruned = bench.store.prune(&limits).unwrap();
        assert!(pruned.removed.iter().all(|image| image.key == old_key), "{limits:?}");
    }
    let left = bench.store.list().unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].key, new_key);
    assert_eq!(left[0].about.as_ref().unwrap().kernel, "6.0.0-test");
    let files = std::fs::read_dir(bench.path("store/images")).unwrap().count();
    assert_eq!(files, 2, "the image and its description; the partial image was swept");
}

#[test]
fn a_store_that_cannot_be_written_says_so() {
    let bench = Bench::new();
    bench.write("file", "");
    let error = ImageStore::open(&bench.path("file/store")).unwrap_err();
    assert!(error.to_string().starts_with("cannot create "), "{error}");
}

#[test]
fn what_is_foreseen_is_what_is_built_and_foreseeing_builds_nothing() {
    let bench = Bench::new();
    let foreseen = bench.store.foresee(&bench.data()).unwrap();
    assert!(!foreseen.cached);
    assert!(bench.store.list().unwrap().is_empty());
    let built = bench.store.get_or_build(&bench.data()).unwrap();
    assert_eq!(foreseen.key, built.key);
    assert!(bench.store.foresee(&bench.data()).unwrap().cached);
}

/// A kernel whose modules are these; built in is what comes as `(name, None)`.
fn kernel_with(bench: &Bench, drivers: &[(&str, Option<&str>)]) -> Kernel {
    let folder = bench.path("modules");
    let mut built_in = String::new();
    for (name, needs) in drivers {
        match needs {
            Some(needs) => {
                let path = folder.join(format!("kernel/{name}.ko"));
                let fields = [("depends", *needs), ("name", *name)];
                crate::kernel::testing::put(&path, crate::kernel::testing::module(&fields));
            }
            None => built_in.push_str(&format!("kernel/{name}.ko\n")),
        }
    }
    crate::kernel::testing::put(&folder.join("modules.builtin"), built_in);
    Kernel {
        release: "6.0.0-test".to_owned(),
        digest: "00".repeat(32),
        image: PathBuf::from("/nonexistent"),
        modules: Some(folder),
        source: KernelSource::Package,
    }
}

const WAY: [(&str, Option<&str>); 8] = [
    ("virtio_pci", None),
    ("virtio_blk", Some("virtio_ring")),
    ("virtio_ring", Some("virtio")),
    ("virtio", Some("")),
    ("ext4", Some("mbcache,crc16")),
    ("mbcache", Some("")),
    ("crc16", Some("")),
    ("overlay", Some("")),
];

#[test]
fn a_root_disk_is_kept_as_a_plan_and_holds_no_file() {
    let bench = Bench::new();
    bench.write("data", &"much data ".repeat(100_000));
    let request = bench.data().as_form(Form::Root { free: ByteLen::new(0) });
    let image = bench.store.get_or_build(&request).unwrap();
    assert_eq!(image.kind, Kind::Root);
    assert!(image.bytes < 100_000, "{}", image.bytes);
    assert!(image.disk.unwrap() > ByteLen::new(1_000_000));
    let plan = ext2::Plan::load(&image.path).unwrap();
    let mut disk = vec![0; usize::try_from(image.disk.unwrap().get()).unwrap()];
    kiln_block::BlockSource::read(&plan, 0, &mut disk).unwrap();
    assert!(disk.windows(20).any(|bytes| bytes == b"much data much data "));
    let again = bench.store.get_or_build(&request).unwrap();
    assert!(again.cached && again.path == image.path && again.disk == image.disk);
    let other = bench.data().as_form(Form::Root { free: ByteLen::mib(1) });
    assert_ne!(bench.store.get_or_build(&other).unwrap().key, image.key);
    bench.write("data", "edited");
    assert_ne!(bench.store.get_or_build(&request).unwrap().key, image.key);
}

#[test]
fn an_image_becomes_a_root_disk_where_it_is_large_and_the_kernel_can_reach_one() {
    let bench = Bench::new();
    let large = File::create(bench.path("data")).unwrap();
    large.set_len(LARGEST_INITRAMFS.get() + 1).unwrap();
    let kind = |request: ImageRequest| {
        let request = request.as_form(Form::Auto);
        let foreseen = bench.store.foresee(&request).unwrap();
        let built = bench.store.get_or_build(&request).unwrap();
        assert_eq!((built.kind, built.key), (foreseen.kind, foreseen.key));
        built.kind
    };
    let able = ImageRequest { kernel: kernel_with(&bench, &WAY), ..bench.data() };
    assert_eq!(kind(able.clone()), Kind::Root);
    assert_eq!(kind(bench.data()), Kind::Initramfs, "nothing says what the kernel can do");
    large.set_len(1000).unwrap();
    assert_eq!(kind(able), Kind::Initramfs);
}

#[test]
fn an_initrd_holds_the_init_and_the_way_to_the_root_in_the_order_of_loading() {
    let bench = Bench::new();
    let kernel = kernel_with(&bench, &WAY);
    let request = ImageRequest { kernel, ..bench.data() }.as_form(Form::Initrd);
    let image = bench.store.get_or_build(&request).unwrap();
    assert_eq!(image.kind, Kind::Initramfs);
    let (_, reader) = bench.store.inspect(&image.key).unwrap();
    let members: Vec<_> = reader.map(|member| member.unwrap()).collect();
    let names: Vec<String> =
        members.iter().map(|member| member.name.escape_ascii().to_string()).collect();
    assert_eq!(names.len(), 10, "{names:?}");
    assert!(names.iter().all(|name| name == "init" || name.starts_with("drivers")), "{names:?}");
    let archive = std::fs::read(&image.path).unwrap();
    let holds = |text: &str| archive.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    assert!(holds("virtio.ko\nvirtio_ring.ko\nvirtio_blk.ko\noverlay.ko\n"));
    assert!(holds("mbcache.ko\ncrc16.ko\next4.ko\n") || holds("crc16.ko\nmbcache.ko\next4.ko\n"));
}

#[test]
fn a_kernel_that_reaches_no_root_disk_is_told_what_it_lacks() {
    let bench = Bench::new();
    let kernel = kernel_with(&bench, &WAY[..7]);
    let request = ImageRequest { kernel, ..bench.data() }.as_form(Form::Initrd);
    let error = bench.store.get_or_build(&request).unwrap_err().to_string();
    assert!(error.contains("has no module \"overlay\""), "{error}");
}
