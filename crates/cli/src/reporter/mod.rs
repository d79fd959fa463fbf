//! Ways of telling a run while it goes on. All read the same events; none can influence the run.

mod json;
mod lines;
mod progress;
pub(crate) mod rows;
pub(crate) mod summary;

use kiln_model::event::Event;

use crate::arguments::Format;
use crate::terminal;

pub(crate) use json::JsonLines;
pub(crate) use lines::Lines;
pub(crate) use progress::Progress;

/// Tells a run as it goes on.
pub(crate) trait Reporter {
    /// Takes the next event.
    fn take(&mut self, event: &Event);
    /// Says something of Kiln's own, beside the events.
    fn say(&mut self, text: &str);
    /// Nothing more will come; whatever is drawn must be gone or final when this returns.
    fn close(&mut self);
}

/// The reporter for this format and whoever watches.
pub(crate) fn reporter(format: Format) -> Box<dyn Reporter + Send> {
    match format {
        Format::Json => Box::new(JsonLines::default()),
        Format::Text if terminal::is_live() => Box::new(Progress::new()),
        Format::Text => Box::new(Lines),
    }
}
