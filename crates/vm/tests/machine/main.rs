//! One QEMU process and what holds it: its parent's death, its control channel, its console, the verdict on KVM, and
//! machines that really boot.

mod boot;
mod guest;
mod lifeline;
mod probe;
mod qmp;
mod saved;
mod splats;
