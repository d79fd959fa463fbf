use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::modinfo::ModInfo;
use super::*;

const DEP: &str = "\
kernel/fs/btrfs/btrfs.ko.xz: kernel/lib/raid6/raid6_pq.ko.xz kernel/crypto/xor.ko.xz kernel/lib/libcrc32c.ko.xz
kernel/lib/raid6/raid6_pq.ko.xz:
kernel/crypto/xor.ko.xz:
kernel/lib/libcrc32c.ko.xz:
kernel/crypto/crc32c-intel.ko.xz:
kernel/crypto/blake2b_generic.ko.xz:
kernel/net/late.ko:
";
const ALIAS: &str = "\
# Aliases extracted from modules themselves.
alias fs_btrfs btrfs
alias crypto_crc32c crc32c_intel
alias crypto_blake2b_256 blake2b_generic
alias pci:v00001AF4d*sv*sd*bc*sc*i* late
alias pci:v00001AF4d00001000sv*sd*bc*sc*i* btrfs
alias broken
";
const SOFTDEP: &str = "\
softdep btrfs pre: crypto-crc32c crypto-blake2b-256 absent post: late
softdep absent pre: x
softdep
";

fn index() -> ModuleIndex<'static> {
    ModuleIndex::parse(&IndexText {
        dep: DEP,
        alias: ALIAS,
        softdep: SOFTDEP,
        weakdep: "weakdep btrfs late gone\n",
        builtin: "kernel/drivers/virtio/virtio-pci.ko\n",
        builtin_modinfo: b"virtio_pci.alias=virtio-thing*\0virtio_pci.license=GPL\0",
    })
    .unwrap()
}

fn load_order(index: &ModuleIndex<'static>, request: &str) -> Vec<&'static str> {
    let Resolution::Modules(paths) = index.resolve(request) else { panic!("{request}") };
    let (mut seen, mut order) = (HashSet::new(), Vec::new());
    for path in paths {
        index.plan(path, &mut seen, &mut order).unwrap();
    }
    order.into_iter().map(base_name).collect()
}

#[test]
fn a_module_is_loaded_after_all_it_needs_and_before_what_follows_it() {
    assert_eq!(
        load_order(&index(), "btrfs"),
        [
            "crc32c-intel.ko.xz",
            "blake2b_generic.ko.xz",
            "libcrc32c.ko.xz",
            "xor.ko.xz",
            "raid6_pq.ko.xz",
            "btrfs.ko.xz",
            "late.ko"
        ]
    );
}

#[test]
fn an_alias_means_every_module_that_claims_it() {
    let Resolution::Modules(paths) = index().resolve("pci:v00001AF4d00001000sv0sd0bc0sc0i0") else {
        panic!("not found");
    };
    assert_eq!(paths, ["kernel/net/late.ko", "kernel/fs/btrfs/btrfs.ko.xz"]);
}

#[test]
fn dashes_and_underscores_are_one() {
    let index = index();
    assert_eq!(index.path("crc32c_intel"), Some("kernel/crypto/crc32c-intel.ko.xz"));
    assert_eq!(index.path("crc32c-intel"), index.path("crc32c_intel"));
    assert_eq!(index.resolve("fs-btrfs"), index.resolve("btrfs"));
    assert_eq!(index.resolve("virtio-pci"), Resolution::BuiltIn);
    assert_eq!(index.resolve("virtio_thing7"), Resolution::BuiltIn);
    assert_eq!(index.resolve("nothing"), Resolution::Unknown);
    assert_eq!(index.weak_needs("btrfs"), ["late", "gone"]);
}

#[test]
fn a_line_without_a_colon_is_named() {
    let text = IndexText { dep: "a.ko:\n\nnonsense\n", ..IndexText::default() };
    assert_eq!(
        ModuleIndex::parse(&text).unwrap_err().to_string(),
        "modules.dep line 3: no colon: \"nonsense\""
    );
}

#[test]
fn a_dependency_without_a_line_is_named() {
    let text = IndexText { dep: "a.ko: b.ko\n", ..IndexText::default() };
    let index = ModuleIndex::parse(&text).unwrap();
    let error = index.plan("a.ko", &mut HashSet::new(), &mut Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "modules.dep: a needs b.ko, which has no line of its own");
}

#[test]
fn a_cycle_of_dependencies_ends() {
    let dep = "a.ko: b.ko\nb.ko: a.ko\n";
    let softdep = "softdep a pre: b post: a\nsoftdep b pre: a\n";
    let index = ModuleIndex::parse(&IndexText { dep, softdep, ..IndexText::default() }).unwrap();
    let (mut seen, mut order) = (HashSet::new(), Vec::new());
    index.plan("a.ko", &mut seen, &mut order).unwrap();
    assert_eq!(order, ["b.ko", "a.ko"]);
}

#[test]
fn a_chain_too_deep_for_the_stack_is_refused() {
    let dep: String = (0..1000).map(|n| format!("m{n}.ko: m{}.ko\n", (n + 1) % 1000)).collect();
    let index = ModuleIndex::parse(&IndexText { dep: &dep, ..IndexText::default() }).unwrap();
    let error = index.plan("m0.ko", &mut HashSet::new(), &mut Vec::new()).unwrap_err();
    assert!(matches!(error, IndexError::TooDeep { .. }), "{error}");
}

fn info(depends: &[&str]) -> ModInfo {
    ModInfo { depends: depends.iter().map(|&name| name.into()).collect(), ..ModInfo::default() }
}

#[test]
fn a_written_index_reads_back() {
    let modules = BTreeMap::from([
        ("kernel/a.ko".to_owned(), info(&["b_x", "c", "builtin"])),
        (
            "kernel/b-x.ko.xz".to_owned(),
            ModInfo {
                aliases: vec!["fs-b".into()],
                softdeps: vec!["pre: c".into(), "post: a".into()],
                weakdeps: vec!["d".into()],
                ..info(&["c"])
            },
        ),
        ("kernel/c.ko".to_owned(), info(&[])),
        ("kernel/d.ko".to_owned(), info(&["d"])),
    ]);
    let files = write::index(&modules);
    assert_eq!(
        files.dep,
        "kernel/a.ko: kernel/b-x.ko.xz kernel/c.ko\n\
         kernel/b-x.ko.xz: kernel/c.ko\n\
         kernel/c.ko:\n\
         kernel/d.ko:\n"
    );
    assert_eq!(files.alias, "alias fs_b b_x\n");
    assert_eq!(files.softdep, "softdep b_x pre: c\nsoftdep b_x post: a\n");
    assert_eq!(files.weakdep, "weakdep b_x d\n");
    let index = ModuleIndex::parse(&IndexText {
        dep: &files.dep,
        alias: &files.alias,
        softdep: &files.softdep,
        weakdep: &files.weakdep,
        ..IndexText::default()
    })
    .unwrap();
    assert_eq!(index.soft_needs("b-x"), (&["c"][..], &["a"][..]));
    assert_eq!(index.hard_needs("a"), ["kernel/b-x.ko.xz", "kernel/c.ko"]);
}

proptest! {
    /// The order rule, on any graph without cycles: nothing is loaded before what it needs.
    #[test]
    fn no_module_is_loaded_before_what_it_needs(edges in prop::collection::vec((0_u8..20, 0_u8..20), 0..60)) {
        let mut modules: BTreeMap<String, ModInfo> =
            (0..20).map(|n| (format!("m{n}.ko"), ModInfo::default())).collect();
        let edges: Vec<_> = edges.into_iter().filter(|(from, to)| from > to).collect();
        for (from, to) in &edges {
            modules.get_mut(&format!("m{from}.ko")).unwrap().depends.push(format!("m{to}"));
        }
        let files = write::index(&modules);
        let index = ModuleIndex::parse(&IndexText { dep: &files.dep, ..IndexText::default() }).unwrap();
        for module in modules.keys() {
            let (mut seen, mut order) = (HashSet::new(), Vec::new());
            index.plan(module, &mut seen, &mut order).unwrap();
            prop_assert_eq!(order.last().copied(), Some(module.as_str()));
            let place = |n: u8| order.iter().position(|path| *path == format!("m{n}.ko"));
            for (from, to) in &edges {
                if let Some(at) = place(*from) {
                    prop_assert!(place(*to).is_some_and(|needed| needed < at), "{} {} {:?}", from, to, order);
                }
            }
        }
    }

    #[test]
    fn no_text_panics(dep in "\\PC{0,60}", alias in "\\PC{0,60}", softdep in "\\PC{0,60}") {
        let text = IndexText { dep: &dep, alias: &alias, softdep: &softdep, ..IndexText::default() };
        if let Ok(index) = ModuleIndex::parse(&text) {
            index.resolve(&alias);
        }
    }
}
