//! One virtual machine as one QEMU process: from the question what may execute it to its certain end.
//!
//! [`probe`] finds out whether KVM really runs code here, [`Emulator`] finds QEMU, [`VmSpec`] says what to boot,
//! [`Vm`] is the machine. A machine belongs to its owner: dropped, killed or orphaned, its processes are gone
//! ([`lifeline`]). What it prints is recorded ([`console`]) and searched for the kernel's reports ([`splat`]).

pub mod agent;
pub mod console;
pub mod lifeline;
pub mod probe;
pub mod qmp;
pub mod splat;
