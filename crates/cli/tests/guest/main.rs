//! `kiln` with real machines. These tests need QEMU, a kernel (`KILN_TEST_KERNEL`, or one that `make kernel` fetched) and
//! the guest executable (`make guest`, or `KILN_GUEST`); without one of them they fail and say which.
#![expect(clippy::unwrap_used, reason = "a test whose terminal cannot be set up has failed")]

mod appliance;
mod bases;
mod disks;
mod faults;
mod frontends;
mod interruption;
mod layers;
mod outcomes;
mod room;
mod root;
mod shell;
mod warm;
mod whole_path;
