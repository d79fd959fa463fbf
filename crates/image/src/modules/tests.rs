use std::fs;

use super::*;
use crate::kernel::testing::{boot_image, module, put};
use crate::kernel::{Host, find};

const RELEASE: &str = "6.12.0-test";

struct Machine {
    root: tempfile::TempDir,
    cache: KernelCache,
}

impl Machine {
    fn new() -> Machine {
        let root = tempfile::tempdir().unwrap();
        let cache = KernelCache::new(root.path().join("cache"));
        put(&root.path().join("boot/vmlinuz"), boot_image(RELEASE, b""));
        Machine { root, cache }
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("lib/modules").join(RELEASE)
    }

    fn module(&self, path: &str, fields: &[(&str, &str)]) {
        let plain = module(fields);
        let bytes = match Path::new(path).extension().and_then(|ending| ending.to_str()) {
            Some("zst") => zstd::encode_all(&plain[..], 1).unwrap(),
            _ => plain,
        };
        put(&self.dir().join(path), bytes);
    }

    fn open(&self) -> Modules {
        let host = Host {
            boot: self.root.path().join("none"),
            modules: self.root.path().join("none"),
            running: "none".to_owned(),
        };
        let image = self.root.path().join("boot/vmlinuz");
        let kernel = find(image.to_str(), &host, &self.cache).unwrap();
        let firmware = vec![self.root.path().join("updates"), self.root.path().join("firmware")];
        Modules::open(&kernel, &self.cache).unwrap().with_firmware_from(firmware)
    }
}

fn names(set: &ModuleSet) -> Vec<&str> {
    set.modules.iter().map(|module| module.name.as_str()).collect()
}

fn text(set: &ModuleSet, name: &str) -> String {
    let path = format!("{GUEST_MODULES}/{RELEASE}/{name}");
    let file = set.index.iter().find(|file| file.guest_path == path).unwrap();
    String::from_utf8(file.bytes.clone()).unwrap()
}

fn filesystem() -> Machine {
    let machine = Machine::new();
    machine.module(
        "kernel/fs/my-fs.ko.zst",
        &[
            ("depends", "sums"),
            ("alias", "fs-my"),
            ("softdep", "pre: crypto-hash gone post: late"),
            ("weakdep", "extra-later"),
        ],
    );
    machine.module("kernel/lib/sums.ko", &[("depends", "")]);
    machine.module("kernel/crypto/hash_fast.ko", &[("alias", "crypto-hash")]);
    machine.module("kernel/crypto/hash_slow.ko", &[("alias", "crypto-hash")]);
    machine.module("kernel/late.ko", &[("license", "GPL")]);
    machine.module("kernel/extra_later.ko", &[("depends", "deep")]);
    machine.module("kernel/deep.ko", &[("license", "GPL")]);
    machine.module("kernel/unrelated.ko", &[("alias", "fs-other")]);
    put(&machine.dir().join("modules.builtin"), "kernel/drivers/virtio/virtio-pci.ko\n");
    put(
        &machine.dir().join("modules.builtin.modinfo"),
        b"virtio_pci.license=GPL\0virtio_pci.alias=pci:v00001AF4d*\0",
    );
    machine
}

#[test]
fn hard_soft_and_weak_needs_come_along_in_an_order_that_loads() {
    let machine = filesystem();
    let modules = machine.open();
    let set = modules.closure(&[Wanted::required("my-fs")]).unwrap();
    assert_eq!(
        names(&set),
        ["hash_fast", "hash_slow", "sums", "my_fs", "late", "deep", "extra_later"]
    );
    assert_eq!(set, modules.closure(&[Wanted::required("fs-my")]).unwrap(), "by alias");
    let fs = &set.modules[3];
    assert_eq!(fs.guest_path, "/usr/lib/modules/6.12.0-test/kernel/fs/my-fs.ko");
    assert!(fs.source.ends_with("kernel/fs/my-fs.ko.zst"));
    assert!(fs::read(&fs.plain).unwrap().starts_with(b"\x7fELF"));
}

#[test]
fn the_guest_is_told_of_what_it_has_and_nothing_else() {
    let machine = filesystem();
    let set = machine.open().closure(&[Wanted::required("my_fs")]).unwrap();
    let files = ["dep", "alias", "softdep", "weakdep", "builtin", "builtin.modinfo"];
    let all: Vec<String> = files
        .iter()
        .map(|file| format!("== modules.{file}\n{}", text(&set, &format!("modules.{file}"))))
        .collect();
    insta::assert_snapshot!(all.concat().replace('\0', "\\0"));
}

#[test]
fn built_in_and_optional_requests_need_no_file() {
    let machine = filesystem();
    let wanted = [
        Wanted::required("virtio-pci"),
        Wanted::required("pci:v00001AF4d1"),
        Wanted::optional("gone"),
    ];
    let set = machine.open().closure(&wanted).unwrap();
    assert!(set.modules.is_empty());
    assert_eq!(set.builtin, ["virtio-pci", "pci:v00001AF4d1"]);
    assert_eq!(set.absent, ["gone"]);
}

#[test]
fn an_unknown_module_is_named_with_its_neighbours() {
    let machine = filesystem();
    let error = machine.open().closure(&[Wanted::required("my-sf")]).unwrap_err();
    insta::assert_snapshot!(error, @r#"kernel 6.12.0-test has no module "my-sf", neither built in nor by an alias: did you mean my_fs?"#);
    let bare = Machine::new();
    let error = bare.open().closure(&[Wanted::required("btrfs")]).unwrap_err();
    insta::assert_snapshot!(error, @r#"kernel 6.12.0-test has no module "btrfs", neither built in nor by an alias: no module directory was found for this kernel"#);
    assert_eq!(bare.open().driver("btrfs").unwrap(), Driver::Unknown);
    assert!(bare.open().closure(&[Wanted::optional("btrfs")]).unwrap().modules.is_empty());
}

#[test]
fn firmware_comes_along_plain_where_it_is_and_is_named_where_it_is_not() {
    let machine = Machine::new();
    machine.module(
        "kernel/nic.ko",
        &[
            ("firmware", "nic/a.bin"),
            ("firmware", "nic/b.bin"),
            ("firmware", "nic/c.bin"),
            ("firmware", "../../etc/shadow"),
        ],
    );
    let root = machine.root.path();
    put(&root.join("firmware/nic/a.bin"), "old");
    put(&root.join("updates/nic/a.bin"), "new");
    put(&root.join("firmware/nic/b.bin.zst"), zstd::encode_all(&b"packed"[..], 1).unwrap());
    let set = machine.open().closure(&[Wanted::required("nic")]).unwrap();
    let found: Vec<(&str, Vec<u8>)> =
        set.firmware.iter().map(|f| (f.guest_path.as_str(), fs::read(&f.plain).unwrap())).collect();
    assert_eq!(
        found,
        [
            ("/usr/lib/firmware/nic/a.bin", b"new".to_vec()),
            ("/usr/lib/firmware/nic/b.bin", b"packed".to_vec())
        ]
    );
    assert_eq!(set.missing_firmware, ["../../etc/shadow", "nic/c.bin"]);
}

#[test]
fn a_path_in_the_index_cannot_leave_the_guests_module_directory() {
    let machine = Machine::new();
    let outside = machine.root.path().join("elsewhere/odd.ko");
    put(&outside, module(&[("license", "GPL")]));
    machine.module("kernel/x.ko", &[("license", "GPL")]);
    let dep = format!("{}:\n../../../elsewhere/odd2.ko:\n", outside.display());
    put(&machine.root.path().join("elsewhere/odd2.ko"), module(&[("license", "GPL")]));
    put(&machine.dir().join("modules.dep"), dep);
    let set = machine.open().closure(&[Wanted::required("odd"), Wanted::required("odd2")]).unwrap();
    let paths: Vec<&str> = set.modules.iter().map(|module| module.guest_path.as_str()).collect();
    assert_eq!(
        paths,
        ["/usr/lib/modules/6.12.0-test/extra/odd.ko", "/usr/lib/modules/6.12.0-test/extra/odd2.ko"]
    );
}

#[test]
fn a_trees_modules_go_where_an_installation_would_put_them() {
    let machine = Machine::new();
    let tree = machine.root.path().join("linux");
    put(&tree.join("arch/x86/boot/bzImage"), boot_image(RELEASE, b""));
    put(&tree.join("fs/x/x.ko"), module(&[("depends", "y")]));
    put(&tree.join("lib/y.ko"), module(&[("license", "GPL")]));
    put(&tree.join("modules.order"), "fs/x/x.o\nlib/y.o\n");
    let kernel = find(tree.to_str(), &Host::this(), &machine.cache).unwrap();
    let set = Modules::open(&kernel, &machine.cache).unwrap();
    let set = set.closure(&[Wanted::required("x")]).unwrap();
    assert_eq!(set.modules[1].guest_path, "/usr/lib/modules/6.12.0-test/kernel/fs/x/x.ko");
    assert_eq!(text(&set, "modules.dep"), "kernel/fs/x/x.ko: kernel/lib/y.ko\nkernel/lib/y.ko:\n");
}

#[test]
fn a_file_that_the_index_lists_and_that_is_gone_is_named() {
    let machine = Machine::new();
    machine.module("kernel/x.ko", &[("license", "GPL")]);
    put(&machine.dir().join("modules.dep"), "kernel/gone.ko:\n");
    let error = machine.open().closure(&[Wanted::required("gone")]).unwrap_err();
    assert!(error.to_string().contains("kernel/gone.ko"), "{error}");
}
