use std::fs;
use std::io::Write;

use super::*;
use crate::kernel::testing::{boot_image, deb, module};

/// A Debian mirror in a folder, read by curl like any other.
struct Shelf {
    dir: tempfile::TempDir,
    list: String,
}

impl Shelf {
    fn new() -> Shelf {
        Shelf { dir: tempfile::tempdir().unwrap(), list: String::new() }
    }

    fn add(&mut self, release: &str, version: &str, files: &[(&str, &[u8])]) {
        let bytes = deb(files);
        let filename = format!("pool/{}_{version}.deb", release.replace(' ', "_"));
        let path = self.dir.path().join("mirror").join(&filename);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &bytes).unwrap();
        let sha256 = sha256::of_file(&path).unwrap();
        let name = match release.split_once(' ') {
            Some((prefix, release)) => format!("{prefix}{release}"),
            None => format!("linux-image-{release}"),
        };
        self.list += &format!(
            "Package: {name}\nVersion: {version}\nFilename: {filename}\n\
             Size: {}\nSHA256: {sha256}\nDescription: a kernel\n more of it\n\n",
            bytes.len()
        );
    }

    fn kernel(&mut self, release: &str, version: &str) {
        let image = boot_image(release, b"x");
        let module = module(&[("depends", ""), ("alias", "fs-thing")]);
        let vmlinuz = format!("./boot/vmlinuz-{release}");
        let thing = format!("./usr/lib/modules/{release}/kernel/fs/thing.ko");
        let files = [(&vmlinuz[..], &image[..]), (&thing, &module), ("./usr/share/doc/x", b"doc")];
        self.add(release, version, &files);
    }

    fn open(&self) -> Origin {
        let dir = self.dir.path().join("mirror/dists/stable/main/binary-amd64");
        fs::create_dir_all(&dir).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
        xz.write_all(self.list.as_bytes()).unwrap();
        fs::write(dir.join("Packages.xz"), xz.finish().unwrap()).unwrap();
        Origin::Mirror(format!("file://{}/mirror", self.dir.path().display()))
    }

    fn cache(&self) -> KernelCache {
        KernelCache::new(self.dir.path().join("cache"))
    }
}

const CLOUD: &str = "6.12.117+deb12-cloud-amd64";

#[test]
fn the_newest_kernel_is_fetched_once_and_then_found_without_asking() {
    let mut shelf = Shelf::new();
    shelf.kernel("6.1.0-56-cloud-amd64", "6.1.192-2");
    shelf.kernel(CLOUD, "6.12.117-1~deb12u1");
    shelf.kernel("6.13.0-amd64", "6.13.0-1");
    shelf.kernel("6.14.0-rt-amd64", "6.14.0-1");
    let (cache, request) = (shelf.cache(), FetchRequest::default());
    let mut steps = Vec::new();
    let kernel =
        fetch(&request, &shelf.open(), &cache, &mut |step| steps.push(format!("{step:?}")))
            .unwrap();
    assert_eq!((kernel.release.as_str(), kernel.version.as_str()), (CLOUD, "6.12.117-1~deb12u1"));
    assert!(kernel.image().exists());
    let modules = kernel.path.join("lib/modules").join(CLOUD);
    assert_eq!(fs::read_to_string(modules.join("modules.dep")).unwrap(), "kernel/fs/thing.ko:\n");
    assert_eq!(
        fs::read_to_string(modules.join("modules.alias")).unwrap(),
        "alias fs_thing thing\n"
    );
    assert!(!kernel.path.join("share").exists());
    assert!(steps.iter().any(|step| step.contains("Downloading")), "{steps:?}");
    assert_eq!(fs::read_dir(cache.kernels().join(".fetch")).unwrap().count(), 0, "leftovers");

    let nowhere = Origin::Mirror("file:///nowhere".to_owned());
    let mut silent = |step: Progress<'_>| panic!("{step:?}");
    assert_eq!(fetch(&request, &nowhere, &cache, &mut silent).unwrap(), kernel);
}

#[test]
fn a_version_or_its_beginning_chooses_and_the_flavour_must_fit() {
    let mut shelf = Shelf::new();
    shelf.kernel("6.1.0-55-cloud-amd64", "6.1.190-1");
    shelf.kernel("6.1.0-56-cloud-amd64", "6.1.192-2");
    shelf.kernel(CLOUD, "6.12.117-1~deb12u1");
    shelf.kernel("6.1.0-56-amd64", "6.1.192-2");
    let (cache, origin) = (shelf.cache(), shelf.open());
    let get = |version: &str, flavour| {
        let request = FetchRequest { version: Some(version.to_owned()), flavour, refresh: false };
        fetch(&request, &origin, &cache, &mut |_| {}).map(|kernel| kernel.release)
    };
    assert_eq!(get("6.1.0-55", Flavour::Cloud).unwrap(), "6.1.0-55-cloud-amd64");
    assert_eq!(get("6.1.192-2", Flavour::Cloud).unwrap(), "6.1.0-56-cloud-amd64");
    assert_eq!(get("6.1", Flavour::Generic).unwrap(), "6.1.0-56-amd64");
    assert_eq!(get(CLOUD, Flavour::Cloud).unwrap(), CLOUD);
    let error = get("6.2", Flavour::Cloud).unwrap_err().to_string();
    insta::assert_snapshot!(error, @r#"no Debian cloud kernel "6.2" is to be had; there are: 6.12.117+deb12-cloud-amd64, 6.1.0-56-cloud-amd64, 6.1.0-55-cloud-amd64"#);
}

#[test]
fn a_package_with_another_digest_is_refused_and_deleted() {
    let mut shelf = Shelf::new();
    shelf.kernel(CLOUD, "6.12.117-1");
    let deb = shelf.dir.path().join(format!("mirror/pool/{CLOUD}_6.12.117-1.deb"));
    let mut bytes = fs::read(&deb).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&deb, bytes).unwrap();
    let error =
        fetch(&FetchRequest::default(), &shelf.open(), &shelf.cache(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, FetchError::Digest { .. }), "{error}");
    assert!(shelf.cache().list().unwrap().is_empty());
    assert_eq!(fs::read_dir(shelf.cache().kernels().join(".fetch")).unwrap().count(), 0);
}

#[test]
fn a_download_that_broke_off_is_continued_and_a_killed_ones_leftovers_go() {
    let mut shelf = Shelf::new();
    shelf.kernel(CLOUD, "6.12.117-1");
    let (cache, origin) = (shelf.cache(), shelf.open());
    let deb = shelf.dir.path().join(format!("mirror/pool/{CLOUD}_6.12.117-1.deb"));
    let whole = fs::read(&deb).unwrap();
    let work = cache.kernels().join(".fetch");
    fs::create_dir_all(&work).unwrap();
    let part = work.join(format!("{}.part", sha256::of_file(&deb).unwrap()));
    fs::write(part, &whole[..100]).unwrap();
    fs::create_dir_all(work.join("unpack-abc/kernel/boot")).unwrap();
    assert_eq!(
        fetch(&FetchRequest::default(), &origin, &cache, &mut |_| {}).unwrap().release,
        CLOUD
    );
    assert_eq!(fs::read_dir(work).unwrap().count(), 0, "leftovers");
}

#[test]
fn packages_that_are_not_kernels_are_refused() {
    let mut shelf = Shelf::new();
    shelf.add(CLOUD, "1", &[("boot/README", b"no kernel")]);
    let error =
        fetch(&FetchRequest::default(), &shelf.open(), &shelf.cache(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, FetchError::NoKernelInside { .. }), "{error}");
    let mut shelf = Shelf::new();
    shelf.add(CLOUD, "1", &[("boot/../../x", b"climbs")]);
    let error =
        fetch(&FetchRequest::default(), &shelf.open(), &shelf.cache(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, FetchError::Unpack { source: DebError::UnsafePath(_), .. }), "{error}");
    assert!(shelf.cache().list().unwrap().is_empty());
}

#[test]
fn a_kernel_in_several_packages_is_put_together() {
    let mut shelf = Shelf::new();
    let (release, version) = ("7.2.11+deb13-cloud-amd64", "7.2.11-1~bpo13+1");
    let image = boot_image(release, b"x");
    let vmlinuz = format!("./usr/lib/modules/{release}/vmlinuz");
    let thing = format!("./usr/lib/modules/{release}/kernel/fs/thing.ko");
    let builtin = format!("./usr/lib/modules/{release}/modules.builtin");
    shelf.add(release, version, &[("./usr/share/doc/x", b"doc")]);
    shelf.add(&format!("linux-binary- {release}"), version, &[(&vmlinuz, &image)]);
    shelf.add(&format!("linux-base- {release}"), version, &[(&builtin, b"kernel/x.ko\n")]);
    shelf.add(&format!("linux-modules- {release}"), version, &[(&thing, &module(&[("a", "b")]))]);
    shelf.add(&format!("linux-modules- {release}"), "7.2.10-1", &[("./boot/wrong", b"")]);
    let kernel =
        fetch(&FetchRequest::default(), &shelf.open(), &shelf.cache(), &mut |_| {}).unwrap();
    assert!(kernel.image().exists());
    let modules = kernel.path.join("lib/modules").join(release);
    assert!(modules.join("kernel/fs/thing.ko").exists());
    assert!(modules.join("modules.builtin").exists());
    assert_eq!(kernel.sha256.len(), 64 + 1 + 64 + 1 + 64);
    let again = FetchRequest { refresh: true, ..FetchRequest::default() };
    let mut quiet = |step: Progress<'_>| assert!(matches!(step, Progress::Asking(_)), "{step:?}");
    assert_eq!(fetch(&again, &shelf.open(), &shelf.cache(), &mut quiet).unwrap(), kernel);
}

#[test]
fn a_mirror_that_is_not_there_is_named() {
    let shelf = Shelf::new();
    let origin = Origin::Mirror("file:///nowhere".to_owned());
    let error = fetch(&FetchRequest::default(), &origin, &shelf.cache(), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("file:///nowhere/dists/stable"), "{error}");
}

#[test]
fn two_fetches_at_once_unpack_one_kernel() {
    let mut shelf = Shelf::new();
    shelf.kernel(CLOUD, "6.12.117-1");
    let (cache, origin) = (shelf.cache(), shelf.open());
    let unpacked = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut count = |step: Progress<'_>| {
                    if step == Progress::Indexing {
                        unpacked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                };
                fetch(&FetchRequest::default(), &origin, &cache, &mut count).unwrap();
            });
        }
    });
    assert_eq!(unpacked.into_inner(), 1);
}

#[test]
fn a_list_cannot_name_what_would_be_an_option_or_leave_the_mirror() {
    let good = "Package: linux-image-6.1.0-1-cloud-amd64\nVersion: 6.1-1\nFilename: pool/a.deb\nSize: 3\n\
                SHA256: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n";
    assert_eq!(packages::parse(good).len(), 1);
    for (from, to) in [
        ("pool/a.deb", "../a.deb"),
        ("pool/a.deb", "-o/a"),
        ("Version: 6.1-1", "Version: -x"),
        ("6.1.0-1-cloud", "../../x-cloud"),
        ("SHA256: 0", "SHA256: ../0"),
        ("Size: 3", "Size: x"),
        ("amd64\n", "amd64-dbg\n"),
    ] {
        assert!(packages::parse(&good.replacen(from, to, 1)).is_empty(), "{to}");
    }
}
