//! The site as people get it: built from recordings, opened in a browser, published to a branch.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod browser;
mod build;
mod cdp;
mod fixture;
mod publish;
#[path = "../../src/sample.rs"]
#[expect(dead_code, reason = "the unit tests need more of it")]
mod sample;
