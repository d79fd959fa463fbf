//! Plain lines on stderr, for logs and pipes: one per finished stage, nothing is ever redrawn.

use kiln_model::event::Event;

use super::{Reporter, rows};
use crate::terminal;

/// Writes lines to stderr.
#[derive(Debug)]
pub(crate) struct Lines;

impl Reporter for Lines {
    fn take(&mut self, event: &Event) {
        for row in rows::of_event(event, &terminal::paint_err) {
            terminal::say(&row);
        }
    }

    fn say(&mut self, text: &str) {
        terminal::say(text);
    }

    fn close(&mut self) {}
}
