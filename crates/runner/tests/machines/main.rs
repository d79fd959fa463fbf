//! Scenarios on real kernels. These tests need QEMU, a kernel (`KILN_TEST_KERNEL`, or one that `make kernel` fetched) and
//! the guest executable (`make guest`); without one of them they fail and say which.
#![expect(clippy::unwrap_used, reason = "a test whose machine room cannot be set up has failed")]

mod faults;
mod shipped;
mod support;
