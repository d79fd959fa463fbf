//! The terminal as a wire: every key goes through, until this is dropped.

use std::io;
use std::os::fd::AsFd as _;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Raw mode of the terminal behind stdin. Dropping it, also while panicking, restores what was before.
#[derive(Debug)]
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Switches it on.
    pub(crate) fn enter() -> io::Result<RawMode> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw)?;
        Ok(RawMode { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // `Drain` lets what the guest wrote last appear as it was meant. Fails only when the terminal is gone.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Drain, &self.before);
    }
}

/// Rows and columns of the terminal behind stdout; 24 by 80 where it does not say.
pub(crate) fn window_size() -> (u16, u16) {
    match rustix::termios::tcgetwinsize(io::stdout().as_fd()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        _ => (24, 80),
    }
}
