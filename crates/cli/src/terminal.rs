//! The only place that writes to stdout and stderr. stdout is data, stderr is conversation, colour is decoration.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::arguments::ColorChoice;
use crate::failure::Failure;
use crate::hostile;

/// How words may be set apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As everything else.
    Plain,
    /// Names and headings.
    Bold,
    /// Less important.
    Dim,
    /// It went well.
    Good,
    /// It went wrong.
    Bad,
    /// Worth a look.
    Odd,
}

/// The narrowest terminal drawn for; narrower ones are drawn as if they had this many columns.
const NARROWEST: usize = 40;
const WIDTH_WITHOUT_TERMINAL: usize = 100;

static COLOR: OnceLock<(bool, bool)> = OnceLock::new();
static READER_GONE: AtomicBool = AtomicBool::new(false);

/// Decides once whether stdout and stderr get colours.
pub(crate) fn choose_color(choice: ColorChoice) {
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let decide = |is_terminal: bool| match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => color_by_environment(environment, is_terminal),
    };
    let _already_chosen =
        COLOR.set((decide(io::stdout().is_terminal()), decide(io::stderr().is_terminal())));
}

fn color_by_environment(environment: impl Fn(&str) -> Option<String>, is_terminal: bool) -> bool {
    if environment("NO_COLOR").is_some() {
        return false;
    }
    if environment("CLICOLOR_FORCE").is_some_and(|value| value != "0") {
        return true;
    }
    is_terminal
        && environment("CLICOLOR").is_none_or(|value| value != "0")
        && environment("TERM").is_some_and(|value| value != "dumb")
}

/// Whether a person watches stderr on a terminal that can redraw lines.
pub(crate) fn is_live() -> bool {
    io::stderr().is_terminal() && std::env::var("TERM").is_ok_and(|term| term != "dumb")
}

/// Columns of the terminal behind stderr (or stdout), at least 40.
pub(crate) fn columns() -> usize {
    let asked = std::env::var("COLUMNS").ok().and_then(|text| text.parse::<usize>().ok());
    let size = rustix::termios::tcgetwinsize(io::stderr())
        .or_else(|_| rustix::termios::tcgetwinsize(io::stdout()))
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|columns| *columns > 0);
    asked.or(size).unwrap_or(WIDTH_WITHOUT_TERMINAL).max(NARROWEST)
}

/// Colours a word for stdout.
pub(crate) fn paint(tone: Tone, text: &str) -> String {
    painted(COLOR.get().is_some_and(|(stdout, _)| *stdout), tone, text)
}

/// Colours a word for stderr.
pub(crate) fn paint_err(tone: Tone, text: &str) -> String {
    painted(COLOR.get().is_some_and(|(_, stderr)| *stderr), tone, text)
}

fn painted(color: bool, tone: Tone, text: &str) -> String {
    let code = match tone {
        Tone::Plain => return text.to_owned(),
        _ if !color => return text.to_owned(),
        Tone::Bold => "1",
        Tone::Dim => "2",
        Tone::Good => "32",
        Tone::Bad => "31;1",
        Tone::Odd => "33",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Writes text to stdout. A reader that went away is no failure: the rest is dropped.
pub(crate) fn out(text: &str) -> Result<(), Failure> {
    out_bytes(text.as_bytes())
}

/// Writes bytes to stdout as they are: only for what a person's own shell in a guest says.
pub(crate) fn out_bytes(bytes: &[u8]) -> Result<(), Failure> {
    if READER_GONE.load(Ordering::Relaxed) {
        return Ok(());
    }
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            READER_GONE.store(true, Ordering::Relaxed);
            Ok(())
        }
        Err(error) => {
            Err(Failure::from(anyhow::Error::new(error).context("cannot write to stdout"))
                .with_exit(crate::exit::Exit::InfrastructureBroke))
        }
        Ok(()) => Ok(()),
    }
}

/// Writes one line of data to stdout.
pub(crate) fn out_line(text: &str) -> Result<(), Failure> {
    out(&format!("{text}\n"))
}

/// Says something on stderr. Whoever closed stderr does not want to hear it.
pub(crate) fn say(text: &str) {
    let mut stderr = io::stderr().lock();
    let _nobody_listens = stderr.write_all(format!("{text}\n").as_bytes());
}

/// Whether the reader of stdout has gone.
pub(crate) fn reader_is_gone() -> bool {
    READER_GONE.load(Ordering::Relaxed)
}

/// Tells a failure: the chain of causes, then the hints.
pub(crate) fn tell(failure: &Failure) {
    use crate::failure::Part;
    for (part, text) in failure.lines() {
        let tone = match part {
            Part::Error => Tone::Bad,
            Part::Cause => Tone::Plain,
            Part::Hint => Tone::Bold,
        };
        // A cause may span lines (a quoted line of TOML with a caret below); each is escaped by itself.
        let mut lines = text.lines().map(|line| hostile::line(line).into_owned());
        let first = lines.next().unwrap_or_default();
        say(&format!("{}: {first}", paint_err(tone, part.word())));
        for line in lines {
            say(&format!("    {line}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn color(variables: &[(&str, &str)], is_terminal: bool) -> bool {
        let find = |name: &str| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        };
        color_by_environment(find, is_terminal)
    }

    #[test]
    fn colour_needs_a_terminal_that_can_show_it_and_nobody_who_objects() {
        assert!(color(&[("TERM", "xterm")], true));
        assert!(!color(&[("TERM", "xterm")], false));
        assert!(!color(&[("TERM", "dumb")], true));
        assert!(!color(&[("TERM", "xterm"), ("NO_COLOR", "1")], true));
        assert!(!color(&[("TERM", "xterm"), ("CLICOLOR", "0")], true));
        assert!(color(&[("CLICOLOR_FORCE", "1")], false));
        assert!(!color(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false));
    }
}
