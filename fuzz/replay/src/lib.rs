//! The targets in `fuzz_targets`, compiled without a fuzzer, so that the inputs in `seeds` run wherever tests do: what
//! crashed once is kept there, and stays mended.
//!
//! Each target is the file that is fuzzed, word for word: this crate answers to the fuzzer's name. Left out are targets whose
//! input is more than bytes or text, those that leave files behind, and those of crates that take any checksum when they are
//! fuzzed, which a workspace must not do.

#![expect(clippy::duplicate_mod, reason = "some targets share a part")]

extern crate self as libfuzzer_sys;

macro_rules! targets {
    ($($name:ident = $path:literal),+ $(,)?) => {
        $(
            #[path = $path]
            #[expect(unused_attributes, reason = "as programs they have no main function")]
            mod $name;
        )+

        /// Every target that is compiled here, and its name.
        pub const TARGETS: &[(&str, fn(&[u8]))] = &[$((stringify!($name), $name::run)),+];
    };
}

targets! {
    asciicast = "../../fuzz_targets/asciicast.rs",
    bzimage = "../../fuzz_targets/bzimage.rs",
    deb = "../../fuzz_targets/deb.rs",
    elf_needs = "../../fuzz_targets/elf_needs.rs",
    ld_so_conf = "../../fuzz_targets/ld_so_conf.rs",
    manifest = "../../fuzz_targets/manifest.rs",
    modinfo = "../../fuzz_targets/modinfo.rs",
    module_index = "../../fuzz_targets/module_index.rs",
    nbd_handshake = "../../fuzz_targets/nbd_handshake.rs",
    nbd_requests = "../../fuzz_targets/nbd_requests.rs",
    newc = "../../fuzz_targets/newc.rs",
    overlaybd_config = "../../fuzz_targets/overlaybd_config.rs",
    overlaybd_index = "../../fuzz_targets/overlaybd_index.rs",
    overlaybd_layer = "../../fuzz_targets/overlaybd_layer.rs",
    overlaybd_tar = "../../fuzz_targets/overlaybd_tar.rs",
    overlaybd_trace = "../../fuzz_targets/overlaybd_trace.rs",
    overlaybd_zfile = "../../fuzz_targets/overlaybd_zfile.rs",
    qcow2 = "../../fuzz_targets/qcow2.rs",
    qmp = "../../fuzz_targets/qmp.rs",
    registry_answers = "../../fuzz_targets/registry_answers.rs",
    scenario = "../../fuzz_targets/scenario.rs",
    vhost_request = "../../fuzz_targets/vhost_request.rs",
}

/// Makes a target a function of bytes. It stands behind the targets, so that they have it by its path as from the fuzzer.
#[macro_export]
macro_rules! fuzz_target {
    (|$input:ident: &[u8]| $body:expr) => {
        pub(crate) fn run($input: &[u8]) {
            $body;
        }
    };
    (|$input:ident: &str| $body:expr) => {
        pub(crate) fn run(bytes: &[u8]) {
            let Ok($input) = std::str::from_utf8(bytes) else { return };
            $body;
        }
    };
}
