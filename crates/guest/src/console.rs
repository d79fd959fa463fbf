//! The guest's own voice: lines on the console, where the host records them.

use std::fmt;
use std::io::Write;

/// Writes one line to standard error, which is the console for PID 1. Nobody is left to tell when
/// that fails.
pub(crate) fn say_line(line: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "kiln-guest: {line}");
}

/// Says a line: `say!("cannot mount {target}: {error}")`.
macro_rules! say {
    ($($part:tt)*) => { $crate::console::say_line(format_args!($($part)*)) };
}
pub(crate) use say;
