//! Where events go.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_model::event::{Event, Happening, NoteLevel};

/// Takes events in order. A sink never fails: one that cannot keep what it is given must remember that itself, so
/// that trouble in telling does not become trouble in running.
pub trait EventSink {
    /// One thing happened.
    fn take(&mut self, event: Event);
}

impl<F: FnMut(Event)> EventSink for F {
    fn take(&mut self, event: Event) {
        self(event);
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Stamps what happened with the time and passes it on.
pub(crate) fn tell(sink: &mut dyn EventSink, event: Happening) {
    sink.take(Event { at: now_ms(), event });
}

/// Says something a person should know.
pub(crate) fn note(sink: &mut dyn EventSink, level: NoteLevel, text: impl Into<String>) {
    tell(sink, Happening::Note { level, text: text.into() });
}

/// Writes each event as one line of JSON, at once: what a job process prints.
#[derive(Debug)]
pub struct JsonLines<W> {
    to: W,
    failed: Option<io::Error>,
}

impl<W: Write> JsonLines<W> {
    /// Lines into `to`.
    pub fn new(to: W) -> JsonLines<W> {
        JsonLines { to, failed: None }
    }

    /// The first write that failed; nothing was written after it.
    pub fn failure(&self) -> Option<&io::Error> {
        self.failed.as_ref()
    }
}

impl<W: Write> EventSink for JsonLines<W> {
    fn take(&mut self, event: Event) {
        if self.failed.is_some() {
            return;
        }
        let written =
            serde_json::to_string(&event).map_err(io::Error::other).and_then(|mut line| {
                line.push('\n');
                self.to.write_all(line.as_bytes())?;
                self.to.flush()
            });
        self.failed = written.err();
    }
}
