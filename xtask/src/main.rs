//! Development tasks: `cargo xtask layers` and friends.

fn main() {}
