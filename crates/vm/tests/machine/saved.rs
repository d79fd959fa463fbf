//! Machines that are saved and come back, each with what it alone has seen since.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use kiln_vm::{Vm, VmError, VmSpec};

use crate::guest::Guest;

/// Far more than any step takes: it only keeps a broken test from hanging for ever.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long a byte may take before it is sent once more: the first after a restore may get stuck in the port.
const AGAIN: Duration = Duration::from_secs(5);

/// Tells the guest of the `remember` action a byte; what it was told before.
fn tell(port: &mut UnixStream, byte: u8) -> u8 {
    port.set_read_timeout(Some(AGAIN)).expect("a timeout");
    let mut answer = [0];
    port.write_all(&[byte]).expect("a machine that listens");
    for _ in 0..PATIENCE.as_secs() / AGAIN.as_secs() {
        if port.read_exact(&mut answer).is_ok() {
            return answer[0];
        }
    }
    panic!("the guest does not answer");
}

struct Saved {
    memory: File,
    state: Vec<u8>,
}

/// Boots, tells the guest an `a`, saves.
fn save(spec: &VmSpec) -> (Vm, UnixStream, Saved) {
    let vm = Vm::start_savable(spec).expect("a machine that is saved");
    let mut port = vm.agent_stream().expect("a machine that is saved");
    port.set_read_timeout(Some(PATIENCE)).expect("a machine that is saved");
    port.write_all(b"a").expect("a machine that is saved");
    let mut first = [0];
    port.read_exact(&mut first).expect("a machine that is saved");
    assert_eq!(&first, b"-");
    let memory = tempfile::tempfile().expect("a machine that is saved");
    let state = vm.save(&memory).expect("a machine that is saved");
    (vm, port, Saved { memory, state })
}

fn restore(spec: &VmSpec, saved: &Saved, log: &Path) -> (Vm, UnixStream) {
    let spec = VmSpec { console_log: log.to_owned(), ..spec.clone() };
    let vm =
        Vm::restore(&spec, &saved.memory, saved.state.clone()).expect("a machine that comes back");
    let port = vm.agent_stream().expect("a machine that comes back");
    (vm, port)
}

fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes =
        vec![0; usize::try_from(file.metadata().expect("readable").len()).expect("readable")];
    file.read_exact_at(&mut bytes, 0).expect("readable");
    bytes
}

#[test]
fn restored_machines_go_on_from_one_instant_and_know_nothing_of_each_other() {
    let guest = Guest::new(&["remember"]);
    let mut spec = guest.spec();
    spec.kernel = guest.vmlinux();
    let (vm, mut port, saved) = save(&spec);
    let before = bytes_of(&saved.memory);
    vm.resume().unwrap();
    assert_eq!(tell(&mut port, b'b'), b'a', "the saved machine goes on");
    assert_eq!(tell(&mut port, b'c'), b'b');
    let (_one, mut first) = restore(&spec, &saved, &guest.folder().join("1"));
    let (_two, mut second) = restore(&spec, &saved, &guest.folder().join("2"));
    assert_eq!(tell(&mut first, b'1'), b'a', "the first goes on from where it was saved");
    assert_eq!(tell(&mut second, b'2'), b'a', "so does the second");
    assert_eq!(tell(&mut first, b'x'), b'1');
    assert_eq!(tell(&mut second, b'x'), b'2');
    assert_eq!(tell(&mut port, b'x'), b'c');
    assert!(before == bytes_of(&saved.memory), "the saved memory was changed");
}

#[test]
fn a_machine_can_be_saved_again_later() {
    let guest = Guest::new(&["remember"]);
    let mut spec = guest.spec();
    spec.kernel = guest.vmlinux();
    let (vm, mut port, _) = save(&spec);
    vm.resume().unwrap();
    assert_eq!(tell(&mut port, b'b'), b'a');
    let memory = tempfile::tempfile().unwrap();
    let later = Saved { state: vm.save(&memory).unwrap(), memory };
    drop(vm);
    let (_again, mut port) = restore(&spec, &later, &guest.folder().join("1"));
    assert_eq!(tell(&mut port, b'c'), b'b');
}

#[test]
fn what_is_no_saved_machine_is_refused_with_a_reason() {
    let guest = Guest::new(&["remember"]);
    let spec = guest.spec();
    let memory = tempfile::tempfile().unwrap();
    let refusal = |state: &[u8]| match Vm::restore(&spec, &memory, state.to_vec()) {
        Err(VmError::Snapshot { act: "restore", why }) => why,
        other => panic!("{other:?}"),
    };
    assert!(refusal(b"").contains("0 bytes instead of 268435456"));
    memory.set_len(256 << 20).unwrap();
    for state in [&b""[..], b"neither is this", &[0x51, 0x45, 0x56, 0x4d, 0, 0, 0, 3, 1]] {
        assert!(refusal(state).contains("QEMU"), "{}", refusal(state));
    }
    let vm = Vm::start(&spec).unwrap();
    let error = vm.save(&memory).unwrap_err().to_string();
    assert_eq!(error, "cannot save the machine: it was not started to be saved");
}
