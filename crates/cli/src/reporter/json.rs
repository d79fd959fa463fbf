//! One event per line on stdout, for programs: the recording's own schema, which the first event names.

use kiln_model::event::Event;

use super::Reporter;
use crate::terminal;

/// Writes each event to stdout as it comes.
#[derive(Debug, Default)]
pub(crate) struct JsonLines {
    broken: bool,
}

impl Reporter for JsonLines {
    fn take(&mut self, event: &Event) {
        // A reader that stopped reading does not stop the run.
        if self.broken || terminal::reader_is_gone() {
            return;
        }
        match serde_json::to_string(event)
            .map_err(Into::into)
            .and_then(|line| terminal::out_line(&line))
        {
            Ok(()) => {}
            Err(failure) => {
                self.broken = true;
                terminal::tell(&failure);
            }
        }
    }

    fn say(&mut self, text: &str) {
        terminal::say(text);
    }

    fn close(&mut self) {}
}
