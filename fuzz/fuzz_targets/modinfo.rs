//! A module's ELF file, and the section it describes itself in; then the index made of that.
#![no_main]

use std::collections::BTreeMap;

use kiln_image::kernel::{has_pvh_entry, module_info};
use kiln_model::module_index::modinfo::{ModInfo, builtin_fields};
use kiln_model::module_index::{IndexText, ModuleIndex, write};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = module_info(data);
    has_pvh_entry(data);
    builtin_fields(data).count();
    let modules = BTreeMap::from([
        ("kernel/a.ko".to_owned(), ModInfo::parse(data)),
        ("kernel/b.ko".to_owned(), ModInfo::default()),
    ]);
    let files = write::index(&modules);
    let text = IndexText {
        dep: &files.dep,
        alias: &files.alias,
        softdep: &files.softdep,
        weakdep: &files.weakdep,
        ..IndexText::default()
    };
    let index = ModuleIndex::parse(&text).expect("what was written can be read");
    assert_eq!(index.names().count(), 2, "a module's text became a line of its own");
});
