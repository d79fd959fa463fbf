//! What a pool promises, shown over disks that crash, fail and lie.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod crash;
mod promises;
mod world;
