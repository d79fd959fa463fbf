//! An image of this machine's programs and a distribution's kernel modules, checked with GNU cpio.

use std::process::{Command, Stdio};
use std::sync::Arc;

use kiln_image::cache::{GuestExecutable, ImageError, ImageRequest, ImageStore};
use kiln_image::kernel::KernelCache;
use kiln_image::manifest::{ManifestSource, Part};

use crate::distribution_kernel;

fn request(folder: &tempfile::TempDir, text: &str) -> ImageRequest {
    let manifest = ManifestSource {
        name: "guest.toml".to_owned(),
        text: text.to_owned(),
        folder: Some(folder.path().to_owned()),
        part: Part::Whole,
    };
    let kernels = KernelCache::new(folder.path().join("kernels"));
    let guest = GuestExecutable::Bytes(Arc::from(*b"#!/bin/sh\n"));
    ImageRequest::new(manifest, distribution_kernel(), kernels, guest)
}

#[test]
fn an_image_holds_the_shell_the_modules_and_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&folder.path().join("images")).unwrap();
    let request = request(
        &folder,
        "include = [\"base\"]\nmodules = [\"btrfs\", \"?no_such_module\"]\nexclude = [\"*/xor.ko\"]",
    );
    let image = store.get_or_build(&request).unwrap();
    assert!(image.notes.iter().any(|note| note.contains("no_such_module")), "{:?}", image.notes);

    let listed = Command::new("cpio")
        .args(["-i", "-t", "--quiet"])
        .stdin(Stdio::from(std::fs::File::open(&image.path).unwrap()))
        .output()
        .expect("cpio is needed to check the image: run script/bootstrap");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout).unwrap();
    let ours: Vec<String> = store
        .inspect(&image.key)
        .unwrap()
        .1
        .map(|member| String::from_utf8(member.unwrap().name).unwrap())
        .collect();
    assert_eq!(listed.lines().collect::<Vec<_>>(), ours);

    let has = |ending: &str| ours.iter().any(|name| name.ends_with(ending));
    for ending in ["init", "/bash", "/btrfs.ko", "/modules.dep", "dev/console", "etc/passwd"] {
        assert!(has(ending), "{ending} in {listed}");
    }
    assert!(!has("/xor.ko"), "what is excluded stays out");
    assert!(store.get_or_build(&request).unwrap().cached);
}

#[test]
fn a_module_the_kernel_does_not_have_is_refused_with_the_nearest_name() {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&folder.path().join("images")).unwrap();
    let error = store.get_or_build(&request(&folder, "modules = [\"btfrs\"]")).unwrap_err();
    assert!(matches!(error, ImageError::Module(_)), "{error}");
    assert!(error.to_string().contains("did you mean btrfs"), "{error}");
    assert!(store.list().unwrap().is_empty());
}
