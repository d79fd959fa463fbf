//! What is read out of a distribution's kernel: its boot image and its modules.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use kiln_image::kernel::{Kernel, KernelCache, KernelSource, ModuleDir, has_pvh_entry};
use kiln_image::modules::{Driver, ModuleError, Modules, Wanted};
use kiln_model::module_index::{IndexText, ModuleIndex, Resolution};

use crate::distribution_kernel;

/// One kernel and one cache for all tests of this file, so that the kernel's index is made once.
struct Shared {
    cache: KernelCache,
    kernel: Kernel,
}

static SHARED: LazyLock<Shared> = LazyLock::new(|| Shared {
    // Where cargo wants tests to keep files.
    cache: KernelCache::new(Path::new(env!("CARGO_TARGET_TMPDIR")).join("real-kernel")),
    kernel: distribution_kernel(),
});

fn required(names: &[&str]) -> Vec<Wanted> {
    names.iter().map(|&name| Wanted::required(name)).collect()
}

#[test]
fn the_boot_image_unpacks_to_a_kernel_with_a_pvh_entry() {
    let Shared { cache, kernel } = &*SHARED;
    let boot = kernel.boot_file(cache).unwrap();
    let bytes = fs::read(boot.path()).unwrap();
    assert!(has_pvh_entry(&bytes), "{boot:?}");
    let banner = format!("Linux version {}", kernel.release);
    assert!(bytes.windows(banner.len()).any(|window| window == banner.as_bytes()), "{banner}");
    assert_eq!(kernel.boot_file(cache).unwrap(), boot);
}

#[test]
fn btrfs_comes_with_all_it_needs_as_plain_elf_files() {
    let Shared { cache, kernel } = &*SHARED;
    let modules = Modules::open(kernel, cache).unwrap();
    let set = modules.closure(&required(&["btrfs", "virtio_blk"])).unwrap();
    let names: Vec<&str> = set.modules.iter().map(|module| module.name.as_str()).collect();
    let place = |name: &str| names.iter().position(|other| *other == name);
    assert!(place("raid6_pq") < place("btrfs"), "{names:?}");
    assert!(place("raid6_pq").is_some() && place("xor").is_some(), "{names:?}");
    for module in &set.modules {
        assert!(fs::read(&module.plain).unwrap().starts_with(b"\x7fELF"), "{module:?}");
        assert!(module.guest_path.ends_with(".ko"), "{module:?}");
    }
}

#[test]
fn the_index_for_the_guest_loads_the_same_modules_by_name_and_alias() {
    let Shared { cache, kernel } = &*SHARED;
    let set = Modules::open(kernel, cache).unwrap().closure(&required(&["btrfs"])).unwrap();
    let text = |name: &str| {
        let file = set.index.iter().find(|file| file.guest_path.ends_with(name)).unwrap();
        String::from_utf8(file.bytes.clone()).unwrap()
    };
    let (dep, alias, softdep) =
        (text("/modules.dep"), text("/modules.alias"), text("/modules.softdep"));
    let text = IndexText { dep: &dep, alias: &alias, softdep: &softdep, ..IndexText::default() };
    let index = ModuleIndex::parse(&text).unwrap();
    let Resolution::Modules(paths) = index.resolve("fs-btrfs") else { panic!("{alias}") };
    let (mut seen, mut order) = (HashSet::new(), Vec::new());
    index.plan(paths[0], &mut seen, &mut order).unwrap();
    let prefix = format!("/usr/lib/modules/{}/", kernel.release);
    let included: HashSet<String> =
        set.modules.iter().map(|module| module.guest_path.replace(&prefix, "")).collect();
    assert!(order.iter().all(|path| included.contains(*path)), "{order:?}");
    assert_eq!(order.len(), included.len());
}

#[test]
fn drivers_are_told_apart_and_unknown_ones_have_neighbours() {
    let Shared { cache, kernel } = &*SHARED;
    let modules = Modules::open(kernel, cache).unwrap();
    assert_eq!(modules.driver("btrfs").unwrap(), Driver::Module);
    assert_eq!(modules.driver("virtio-pci").unwrap(), Driver::BuiltIn);
    assert_eq!(modules.driver("no_such_driver").unwrap(), Driver::Absent);
    let error = modules.closure(&required(&["btrsf"])).unwrap_err();
    assert!(matches!(error, ModuleError::Unknown { .. }));
    assert!(error.to_string().ends_with("did you mean btrfs?"), "{error}");
}

/// Asks the distribution's depmod, where there is one, what it makes of the same modules.
#[test]
fn our_index_is_the_one_depmod_makes() {
    let Shared { cache, kernel } = &*SHARED;
    let Some(depmod) = ["/sbin/depmod", "/usr/sbin/depmod", "/usr/bin/depmod"]
        .into_iter()
        .map(Path::new)
        .find(|path| path.exists())
    else {
        // Nothing to compare with: the oracle is a convenience, the rule is tested elsewhere.
        return;
    };
    let root = kernel.modules.as_deref().expect("the kernel has modules");
    let base = tempfile::tempdir().unwrap();
    let copy = base.path().join("lib/modules").join(&kernel.release);
    fs::create_dir_all(&copy).unwrap();
    std::os::unix::fs::symlink(root.join("kernel"), copy.join("kernel")).unwrap();
    for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        fs::copy(root.join(list), copy.join(list)).unwrap();
    }
    let status = std::process::Command::new(depmod)
        .arg("-b")
        .arg(base.path())
        .arg(&kernel.release)
        .stdin(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let theirs = ModuleDir::open(&copy, KernelSource::Boot, cache).unwrap();
    let ours = ModuleDir::open(root, kernel.source, cache).unwrap();
    let (theirs, ours) = (theirs.index().unwrap(), ours.index().unwrap());
    let names = |index: &ModuleIndex<'_>| index.names().map(str::to_owned).collect::<HashSet<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for name in ours.names() {
        let needs = |index: &ModuleIndex<'_>| {
            index.hard_needs(name).iter().map(|&path| path.to_owned()).collect::<HashSet<_>>()
        };
        assert_eq!(needs(&ours), needs(&theirs), "{name}");
        assert_eq!(ours.soft_needs(name), theirs.soft_needs(name), "{name}");
    }
    assert_eq!(ours.aliases().len(), theirs.aliases().len());
}
