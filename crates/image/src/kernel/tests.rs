use std::fs;
use std::path::Path;

use super::testing::{boot_image, install, module, put, vmlinux};
use super::*;

struct Machine {
    root: tempfile::TempDir,
    host: Host,
    cache: KernelCache,
}

/// A machine with nothing on it, whose running kernel is 6.1.0-running.
fn machine() -> Machine {
    let root = tempfile::tempdir().unwrap();
    let host = Host {
        boot: root.path().join("host/boot"),
        modules: root.path().join("host/lib/modules"),
        running: "6.1.0-running".to_owned(),
    };
    let cache = KernelCache::new(root.path().join("cache"));
    Machine { root, host, cache }
}

impl Machine {
    fn find(&self, choice: Option<&str>) -> Result<Kernel, KernelError> {
        find(choice, &self.host, &self.cache)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// Finds by a path below the root.
    fn find_at(&self, path: &str) -> Result<Kernel, KernelError> {
        self.find(Some(self.at(path).to_str().unwrap()))
    }

    fn refusal(&self, choice: Option<&str>) -> String {
        let error = self.find(choice).unwrap_err();
        let source =
            std::error::Error::source(&error).map(|e| format!(": {e}")).unwrap_or_default();
        format!("{error}{source}").replace(self.root.path().to_str().unwrap(), "ROOT")
    }

    fn cached(&self, release: &str) {
        let dir = self.cache.kernels().join(release);
        install(&dir, release);
        put(&dir.join("package"), cache::record("linux-image", "1", "00"));
    }
}

#[test]
fn without_a_choice_the_running_kernel_is_meant_and_else_the_newest_fetched() {
    let machine = machine();
    let refusal = machine.refusal(None);
    assert!(
        refusal.contains("6.1.0-running") && refusal.contains("kiln kernel fetch debian"),
        "{refusal}"
    );
    machine.cached("6.9.1-cloud-amd64");
    machine.cached("6.12.1-cloud-amd64");
    let fetched = machine.find(None).unwrap();
    assert_eq!(fetched.release, "6.12.1-cloud-amd64");
    assert_eq!(fetched.source, KernelSource::Package);
    install(&machine.at("host"), "6.1.0-running");
    let running = machine.find(None).unwrap();
    assert_eq!(running.release, "6.1.0-running");
    assert_eq!(running.source, KernelSource::Boot);
    assert_eq!(
        running.modules,
        Some(fs::canonicalize(machine.at("host/lib/modules/6.1.0-running")).unwrap())
    );
}

#[test]
fn a_release_or_the_beginning_of_a_fetched_one_names_a_kernel() {
    let machine = machine();
    machine.cached("6.1.0-56-cloud-amd64");
    machine.cached("6.12.117+deb12-cloud-amd64");
    install(&machine.at("host"), "5.10.0");
    // Fedora's place.
    put(&machine.at("host/lib/modules/6.9.0-fc/vmlinuz"), boot_image("6.9.0-fc", b""));
    put(&machine.at("host/lib/modules/6.9.0-fc/modules.dep"), "");
    for (choice, release) in [
        ("5.10.0", "5.10.0"),
        ("6.1", "6.1.0-56-cloud-amd64"),
        ("6.12", "6.12.117+deb12-cloud-amd64"),
        ("6.1.0-56-cloud-amd64", "6.1.0-56-cloud-amd64"),
        ("6.9.0-fc", "6.9.0-fc"),
    ] {
        let kernel = machine.find(Some(choice)).unwrap();
        assert_eq!(kernel.release, release);
        assert!(kernel.modules.is_some(), "{choice}");
    }
}

#[test]
fn a_boot_directory_means_its_newest_kernel_with_the_modules_beside_it() {
    let machine = machine();
    install(&machine.at("unpacked"), "6.9.0");
    install(&machine.at("unpacked"), "6.10.0");
    for choice in ["unpacked/boot", "unpacked", "unpacked/boot/vmlinuz-6.10.0"] {
        let kernel = machine.find_at(choice).unwrap();
        assert_eq!(kernel.release, "6.10.0", "{choice}");
        assert!(kernel.modules.unwrap().ends_with("unpacked/lib/modules/6.10.0"));
        assert_eq!(kernel.digest.len(), 64);
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_its_cure() {
    let machine = machine();
    put(&machine.at("script"), "#!/bin/sh\n".repeat(100));
    put(&machine.at("vmlinux"), vmlinux(18));
    put(&machine.at("unbuilt/Kbuild"), "");
    fs::create_dir(machine.at("empty")).unwrap();
    let refusals: Vec<String> = [
        Some("no/such/kernel"),
        Some("6.66"),
        Some("not a release"),
        Some(machine.at("script").to_str().unwrap()),
        Some(machine.at("vmlinux").to_str().unwrap()),
        Some(machine.at("unbuilt").to_str().unwrap()),
        Some(machine.at("empty").to_str().unwrap()),
    ]
    .into_iter()
    .map(|choice| machine.refusal(choice))
    .collect();
    insta::assert_snapshot!(refusals.join("\n"));
}

#[test]
fn a_boot_image_kept_to_root_is_refused_with_its_cure() {
    use std::os::unix::fs::PermissionsExt;
    let machine = machine();
    install(&machine.at("host"), "6.1.0");
    let image = machine.at("host/boot/vmlinuz-6.1.0");
    fs::set_permissions(machine.root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o600)).unwrap();
    // Root may read anything: a thread which is nobody tries.
    let refusal = std::thread::scope(|scope| {
        let attempt = scope.spawn(|| {
            if rustix::process::geteuid().is_root() {
                let nobody = rustix::thread::Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            } else {
                fs::set_permissions(&image, fs::Permissions::from_mode(0o000)).unwrap();
            }
            machine.refusal(Some("6.1.0"))
        });
        attempt.join().unwrap()
    });
    insta::assert_snapshot!(refusal, @"may not read the kernel ROOT/host/boot/vmlinuz-6.1.0: run `sudo chmod +r ROOT/host/boot/vmlinuz-6.1.0`, or use another one with `kiln kernel fetch debian`");
}

fn build_tree(tree: &Path, order: &str) {
    put(&tree.join("arch/x86/boot/bzImage"), boot_image("6.13.0-rc1+", b"x"));
    put(&tree.join("fs/thing/thing.ko"), module(&[("depends", "helper"), ("alias", "fs-thing")]));
    put(&tree.join("lib/helper.ko"), module(&[("license", "GPL")]));
    put(&tree.join("modules.order"), order);
    put(&tree.join("modules.builtin"), "kernel/drivers/virtio/virtio-pci.ko\n");
}

#[test]
fn a_built_tree_needs_no_modules_install() {
    for order in
        ["fs/thing/thing.o\nlib/helper.o\n", "kernel/fs/thing/thing.ko\nkernel/lib/helper.ko\n"]
    {
        let machine = machine();
        let tree = machine.at("linux");
        build_tree(&tree, order);
        let kernel = machine.find_at("linux").unwrap();
        assert_eq!((kernel.release.as_str(), kernel.source), ("6.13.0-rc1+", KernelSource::Tree));
        assert_eq!(kernel, machine.find_at("linux/arch/x86/boot/bzImage").unwrap());
        let root = kernel.modules.clone().unwrap();
        let dir = ModuleDir::open(&root, kernel.source, &machine.cache).unwrap();
        assert_eq!(dir.text().dep, "fs/thing/thing.ko: lib/helper.ko\nlib/helper.ko:\n");
        assert!(!tree.join("modules.dep").exists(), "the tree is the user's");
        // Rebuilt: what the module says has changed.
        put(&tree.join("fs/thing/thing.ko"), module(&[("license", "GPL")]));
        let dir = ModuleDir::open(&root, kernel.source, &machine.cache).unwrap();
        assert_eq!(dir.text().dep, "fs/thing/thing.ko:\nlib/helper.ko:\n");
    }
}

#[test]
fn a_tree_whose_modules_are_not_built_says_so() {
    let machine = machine();
    build_tree(&machine.at("linux"), "fs/thing/thing.o\nfs/gone.o\n");
    let kernel = machine.find_at("linux").unwrap();
    let error =
        ModuleDir::open(&kernel.modules.unwrap(), kernel.source, &machine.cache).unwrap_err();
    assert!(error.to_string().contains("make -j$(nproc) modules"), "{error}");
}

#[test]
fn a_kernel_with_a_pvh_entry_boots_unpacked_and_is_unpacked_once() {
    let machine = machine();
    let plain = vmlinux(18);
    put(&machine.at("vmlinuz"), boot_image("6.1.0", &zstd::encode_all(&plain[..], 1).unwrap()));
    let kernel = machine.find_at("vmlinuz").unwrap();
    let first = kernel.boot_file(&machine.cache).unwrap();
    assert!(matches!(first, BootFile::Vmlinux(_)), "{first:?}");
    assert_eq!(fs::read(first.path()).unwrap(), plain);
    fs::remove_file(machine.at("vmlinuz")).unwrap();
    assert_eq!(kernel.boot_file(&machine.cache).unwrap(), first);
}

#[test]
fn a_kernel_without_a_pvh_entry_boots_as_it_is() {
    let machine = machine();
    let other_note = zstd::encode_all(&vmlinux(17)[..], 1).unwrap();
    for (payload, why) in [(&other_note[..], "no PVH entry"), (b"BZh91AY", "bzip2")] {
        put(&machine.at("vmlinuz"), boot_image("6.1.0", payload));
        let kernel = machine.find_at("vmlinuz").unwrap();
        for _ in 0..2 {
            match kernel.boot_file(&machine.cache).unwrap() {
                BootFile::BzImage(path, said) => {
                    assert_eq!(path, kernel.image);
                    assert!(said.contains(why), "{said}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn fetched_kernels_are_listed_newest_first_and_removed_whole() {
    let machine = machine();
    assert!(machine.cache.list().unwrap().is_empty());
    machine.cached("6.9.1");
    machine.cached("6.12.1");
    fs::create_dir_all(machine.cache.kernels().join("6.13-not-a-kernel")).unwrap();
    let listed: Vec<String> =
        machine.cache.list().unwrap().into_iter().map(|k| k.release).collect();
    assert_eq!(listed, ["6.12.1", "6.9.1"]);
    assert!(machine.cache.remove("6.12.1").unwrap());
    assert!(!machine.cache.remove("6.12.1").unwrap());
    assert!(!machine.cache.remove("../cache").unwrap());
    assert!(!machine.cache.kernels().join("6.12.1").exists());
    assert_eq!(machine.cache.list().unwrap().len(), 1);
}

#[test]
fn a_compressed_module_is_unpacked_once_and_again_when_it_changes() {
    let machine = machine();
    let path = machine.at("x.ko.zst");
    put(&path, zstd::encode_all(&b"one"[..], 1).unwrap());
    let first = machine.cache.plain(&path).unwrap();
    assert_eq!(fs::read(&first).unwrap(), b"one");
    assert_eq!(machine.cache.plain(&path).unwrap(), first);
    put(&path, zstd::encode_all(&b"three"[..], 1).unwrap());
    let second = machine.cache.plain(&path).unwrap();
    assert_eq!(fs::read(&second).unwrap(), b"three");
    put(&machine.at("y.ko"), b"plain");
    assert_eq!(machine.cache.plain(&machine.at("y.ko")).unwrap(), machine.at("y.ko"));
}

#[test]
fn what_is_no_module_is_named() {
    let machine = machine();
    put(&machine.at("x.ko"), b"not an ELF file");
    let error = read_module_info(&machine.at("x.ko")).unwrap_err().to_string();
    assert!(error.contains("x.ko is not a kernel module"), "{error}");
    assert!(module_info(&vmlinux(18)).is_err());
}
