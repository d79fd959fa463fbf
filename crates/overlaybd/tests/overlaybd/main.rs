//! Layers, stacks and uppers against images that other tools wrote, against plain byte arrays, and
//! against damage.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails by panicking, like the test")]
#![expect(clippy::print_stderr, reason = "an image that is not here is named")]

mod damage;
mod files;
mod golden;
mod model;
mod naive;
mod rules;
mod traces;
mod uppers;
mod written;
