//! `kiln` with real machines. These tests need QEMU, a kernel (`KILN_TEST_KERNEL`, or one that `make kernel` fetched) and
//! the guest executable (`make guest`, or `KILN_GUEST`); without one of them they fail and say which.

mod faults;
mod interruption;
mod outcomes;
mod room;
mod shell;
mod whole_path;
