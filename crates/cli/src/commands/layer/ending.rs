//! The end of something that is served: somebody wants it, or nobody needs what is served any more.

use std::sync::mpsc::{self, Receiver, Sender};

use super::remote::Opening;
use crate::failure::Failure;
use crate::signals;

/// Waited for by whoever serves.
pub(super) struct Ending {
    told: Receiver<()>,
    tell: Sender<()>,
}

impl Ending {
    /// Hears Ctrl-C and other signals from now on. They end the opening of an image, too.
    pub(super) fn listen(opening: &Opening) -> Result<Ending, Failure> {
        let (tell, told) = mpsc::channel();
        let (signalled, opening) = (tell.clone(), opening.clone());
        signals::when_told_to_end(move || {
            opening.stop();
            // Fails when we are ending already.
            let _ = signalled.send(());
        })?;
        Ok(Ending { told, tell })
    }

    /// Ends it, too.
    pub(super) fn teller(&self) -> impl Fn() + Send + 'static {
        let tell = self.tell.clone();
        move || {
            // Fails when we are ending already.
            let _ = tell.send(());
        }
    }

    /// Waits for the end.
    pub(super) fn wait(self) {
        // The other end goes with the process alone.
        let _ = self.told.recv();
    }
}
