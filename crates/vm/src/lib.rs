//! One virtual machine as one QEMU process: from the question what may execute it to its certain end.
//!
//! [`probe`] finds out whether KVM really runs code here, [`Emulator`] finds QEMU, [`VmSpec`] says what to boot,
//! [`Vm`] is the machine. One that is ready can be saved, and any number of machines start as it was then
//! ([`Vm::save`], [`Vm::restore`]). A machine belongs to its owner: dropped, killed or orphaned, its processes are gone
//! ([`lifeline`]). What it prints is recorded ([`console`]) and searched for the kernel's reports ([`splat`]).

pub mod agent;
pub mod console;
mod emulator;
mod error;
mod events;
pub mod lifeline;
mod listener;
mod machine;
mod memory;
pub mod probe;
pub mod qmp;
mod saved;
mod spec;
pub mod splat;

pub use emulator::Emulator;
pub use error::VmError;
pub use events::{Ended, How, Next, VmEvent, VmEvents};
pub use machine::{Interrogation, Vm, VmState};
pub use saved::MAX_DEVICE_STATE;
pub use spec::{
    AGENT_PORT, CHANGING_PARAMETERS, CONSOLE_LIMIT, DiskSpec, Durability, MAX_SOCKET_PATH,
    PARAMETERS, TCG_PARAMETERS, VmSpec,
};
