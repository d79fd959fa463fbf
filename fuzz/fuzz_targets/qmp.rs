//! A line from QEMU.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    let _ = kiln_vm::qmp::parse(line);
});
