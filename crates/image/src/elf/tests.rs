use super::*;
use crate::testing::SyntheticElf;
use proptest::prelude::*;

#[test]
fn a_program_names_its_loader_libraries_and_search_paths() {
    let bytes = SyntheticElf::program("/lib64/ld.so")
        .needs(&["libone.so.1", "libtwo.so"])
        .runpath("$ORIGIN/../lib:/opt/lib:")
        .bytes();
    let needs = needs(&bytes).unwrap();
    assert_eq!(needs.interpreter.as_deref(), Some(&b"/lib64/ld.so"[..]));
    assert_eq!(needs.libraries, [b"libone.so.1".to_vec(), b"libtwo.so".to_vec()]);
    assert_eq!(needs.runpath, [b"$ORIGIN/../lib".to_vec(), b"/opt/lib".to_vec()]);
    assert!(needs.rpath.is_empty());
}

#[test]
fn the_running_executable_reads_the_same_from_a_file_and_from_memory() {
    let path = std::env::current_exe().unwrap();
    let from_file = needs_of_file(&std::fs::File::open(&path).unwrap()).unwrap();
    assert!(!from_file.libraries.is_empty());
    assert_eq!(from_file, needs(&std::fs::read(&path).unwrap()).unwrap());
}

#[test]
fn a_name_outside_the_file_is_damage_not_a_panic() {
    let mut bytes = SyntheticElf::program("/ld").needs(&["libx.so"]).bytes();
    bytes.truncate(bytes.len() - 3);
    assert!(needs(&bytes).is_err());
}

proptest! {
    #[test]
    fn no_damage_panics(at in 0usize..600, value: u8, cut in 0usize..600) {
        let mut bytes = SyntheticElf::program("/ld").needs(&["liba.so", "libb.so"]).runpath("/x").bytes();
        let len = bytes.len();
        bytes[at % len] = value;
        bytes.truncate(len - cut % len);
        let _ = needs(&bytes);
    }
}
