//! Random writes against a byte array.
