//! What a pool promises, shown over disks that crash, fail and lie.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod adopted;
mod background;
mod bases;
mod crash;
mod damage;
mod faults;
mod fence;
mod golden;
mod growth;
mod promises;
mod regressions;
mod salvage;
mod world;
