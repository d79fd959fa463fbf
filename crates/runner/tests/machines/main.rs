//! Scenarios on real kernels. These tests need QEMU, a kernel (`KILN_TEST_KERNEL`, or one that `make kernel` fetched) and
//! the guest executable (`make guest`); without one of them they fail and say which.

mod faults;
mod shipped;
mod support;
