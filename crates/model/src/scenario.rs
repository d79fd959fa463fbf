//! The scenario: what a user asks for, in TOML, checked (`docs/scenario.md`).
