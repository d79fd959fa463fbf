//! `kiln disk top`: what is done with disks, while it is done.
//!
//! The picture is drawn over the last one where the cursor is, with nothing switched on that somebody would have to
//! switch off: whichever way this ends, the terminal is as it was.

mod sample;
mod view;

use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Instant;

use kiln_store::{Start, Store};

use self::sample::{Reading, Sample};
use super::{metrics, pool};
use crate::arguments::DiskTopArgs;
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::raw_mode::window_size;
use crate::session::Session;
use crate::signals::Interrupted;
use crate::terminal::{self, paint};

/// `kiln disk top`
pub(super) fn top(session: &Session, path: &Path, args: &DiskTopArgs) -> Result<Exit, Failure> {
    let mut watched = Watched {
        path,
        names: &args.names,
        start: pool::start(session),
        store: Some(pool::owner(session, path)?),
    };
    let interrupted = Interrupted::watch()
        .tried(|| "cannot listen for signals".to_owned())
        .exits(Exit::InfrastructureBroke)?;
    let is_terminal =
        std::io::stdout().is_terminal() && std::env::var("TERM").is_ok_and(|term| term != "dumb");
    let once = args.once || !(is_terminal || session.json());
    let mut screen = Screen { lines: 0, size: (0, 0) };
    let mut before = watched.read()?;
    loop {
        if interrupted.wait(args.every) {
            return Ok(Exit::Success);
        }
        let after = watched.read()?;
        let sample = Sample::between(&before, &after);
        match (session.json(), is_terminal && !once) {
            (true, _) => terminal::out_line(&sample.json().to_string())?,
            (false, true) => screen.draw(&sample)?,
            (false, false) => {
                for line in view::lines(&sample, (usize::MAX, usize::MAX), &paint) {
                    terminal::out_line(&line)?;
                }
            }
        }
        if once || terminal::reader_is_gone() {
            return Ok(Exit::Success);
        }
        before = after;
    }
}

struct Watched<'a> {
    path: &'a Path,
    names: &'a [String],
    start: Start,
    store: Option<Store>,
}

impl Watched<'_> {
    /// Looks at the counters; at those of another owner if the one before has gone.
    fn read(&mut self) -> Result<Reading, Failure> {
        let told = metrics::ask_owner(&mut self.store, self.path, &self.start);
        let (pool, mut disks) = told.map_err(pool::refused)?;
        let at = Instant::now();
        if !self.names.is_empty() {
            disks.retain(|disk| self.names.contains(&disk.name));
        }
        Ok(Reading { at, pool, disks })
    }
}

/// What was drawn last.
struct Screen {
    lines: usize,
    size: (u16, u16),
}

impl Screen {
    fn draw(&mut self, sample: &Sample) -> Result<(), Failure> {
        let size = window_size();
        let mut drawn = String::new();
        if self.lines > 0 && self.size == size {
            drawn.push_str(&format!("\x1b[{}A\r", self.lines));
        } else if self.lines > 0 {
            // Another width has broken the lines in other places: begin again, on an empty screen.
            drawn.push_str("\x1b[2J\x1b[H");
        }
        // The last line is the cursor's.
        let room = (usize::from(size.0).saturating_sub(1).max(1), usize::from(size.1));
        let lines = view::lines(sample, room, &paint);
        (self.lines, self.size) = (lines.len(), size);
        for line in lines {
            drawn.push_str(&line);
            drawn.push_str("\x1b[K\n");
        }
        drawn.push_str("\x1b[J");
        terminal::out(&drawn)
    }
}
