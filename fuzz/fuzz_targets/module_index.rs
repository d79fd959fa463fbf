//! A module directory's index files, one after another, split at NUL bytes.
#![no_main]

use std::collections::HashSet;

use kiln_model::module_index::{IndexText, ModuleIndex, Resolution};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut files = text.splitn(6, '\0');
    let mut next = || files.next().unwrap_or_default();
    let text = IndexText {
        dep: next(),
        alias: next(),
        softdep: next(),
        weakdep: next(),
        builtin: next(),
        builtin_modinfo: next().as_bytes(),
    };
    let Ok(index) = ModuleIndex::parse(&text) else { return };
    let names: Vec<&str> = index.names().collect();
    for name in names.into_iter().take(16) {
        let Resolution::Modules(paths) = index.resolve(name) else {
            panic!("a listed module is not found: {name:?}");
        };
        let (mut seen, mut order) = (HashSet::new(), Vec::new());
        for path in paths {
            let _ = index.plan(path, &mut seen, &mut order);
        }
        assert!(order.len() <= seen.len());
    }
    for (pattern, _) in index.aliases().iter().take(16) {
        index.resolve(pattern);
    }
});
