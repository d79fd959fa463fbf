//! Broken rules, one at a time.
