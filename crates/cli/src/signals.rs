//! Signals: Ctrl-C once drains, twice kills; SIGTERM and SIGHUP kill.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;

use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};

/// A signal that matters to a run or a shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Ctrl-C.
    Interrupt,
    /// Whoever started us wants us gone.
    Terminate,
    /// The terminal has another size.
    Resized,
}

/// Calls `hear` for every signal, on a thread of its own, until the process ends.
pub(crate) fn listen(mut hear: impl FnMut(Heard) + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGWINCH])?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            hear(match signal {
                SIGINT => Heard::Interrupt,
                SIGWINCH => Heard::Resized,
                _ => Heard::Terminate,
            });
        }
    })?;
    Ok(())
}

/// Calls `end` whenever somebody wants us to end, by Ctrl-C or another signal, on a thread of its own.
pub(crate) fn when_told_to_end(mut end: impl FnMut() + Send + 'static) -> Result<(), Failure> {
    listen(move |signal| {
        if signal != Heard::Resized {
            end();
        }
    })
    .tried(|| "cannot listen for signals".to_owned())
    .exits(Exit::InfrastructureBroke)
}

/// Pauses that end early when the user has seen enough.
#[derive(Debug)]
pub(crate) struct Interrupted(Receiver<()>);

impl Interrupted {
    /// Watches for Ctrl-C and for being terminated.
    pub(crate) fn watch() -> io::Result<Interrupted> {
        let (tell, heard) = mpsc::channel();
        listen(move |signal| {
            if signal != Heard::Resized {
                // Fails when nobody pauses any more.
                let _ = tell.send(());
            }
        })?;
        Ok(Interrupted(heard))
    }

    /// Waits this long, or until interrupted: then true.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        match self.0.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(end.saturating_duration_since(Instant::now()));
                false
            }
        }
    }
}
