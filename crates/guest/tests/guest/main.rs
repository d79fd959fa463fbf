//! The guest from outside: as an ordinary process, and as init of a machine. The latter needs QEMU, a kernel
//! (`KILN_TEST_KERNEL`, or one that `make kernel` fetched) and the static executable (`make guest`, or `KILN_GUEST`).
#![expect(clippy::unwrap_used, reason = "a helper of a test fails by panicking, like the test")]

mod agent;
mod boot;
mod conversation;
mod files;
mod process;
mod restored;
