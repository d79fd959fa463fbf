//! Uppers above layers.
