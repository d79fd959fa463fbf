//! `kiln doctor`: what this machine offers, what that means, and how to cure it.

mod checks;
mod serving;

use serde::Serialize;
use serde_json::json;

use crate::arguments::DoctorArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::hostile;
use crate::session::Session;
use crate::terminal::{self, Tone, paint};

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// As it should be.
    Ok,
    /// Kiln runs, but something is slower or not to be had.
    Limited,
    /// Kiln cannot run scenarios.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What: `qemu`, `kvm`.
    pub(crate) name: &'static str,
    /// How it is.
    pub(crate) state: State,
    /// What was found, with what follows from it.
    pub(crate) found: String,
    /// A command or a sentence that makes it better; always there unless the state is ok.
    pub(crate) cure: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check { name, state: State::Ok, found: found.into(), cure: None }
    }

    fn limited(name: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Check {
        Check { name, state: State::Limited, found: found.into(), cure: Some(cure.into()) }
    }

    fn missing(name: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Check {
        Check { name, state: State::Missing, found: found.into(), cure: Some(cure.into()) }
    }
}

/// `kiln doctor`
pub(crate) fn doctor(session: &Session, _args: &DoctorArgs) -> Result<Exit, Failure> {
    let checks = checks::all(session);
    let sick = checks.iter().any(|check| check.state == State::Missing);
    let exit = if sick { Exit::Setup } else { Exit::Success };
    if session.json() {
        session.out_json(&json!({"schema": 1, "can_run": !sick, "checks": checks}))?;
        return Ok(exit);
    }
    for check in &checks {
        terminal::out_line(&row(check, &paint))?;
    }
    let last = match checks.iter().filter(|check| check.state != State::Ok).count() {
        0 => paint(Tone::Good, "everything is there"),
        _ if sick => {
            paint(Tone::Bad, "Kiln cannot run scenarios here until what is missing is cured")
        }
        _ => paint(Tone::Odd, "Kiln can run scenarios here, with limits"),
    };
    terminal::out_line(&last)?;
    Ok(exit)
}

/// `limited  kvm      unusable: …; TCG will be used. Cure: …`
fn row(check: &Check, paint: &dyn Fn(Tone, &str) -> String) -> String {
    let (word, tone) = match check.state {
        State::Ok => ("ok", Tone::Good),
        State::Limited => ("limited", Tone::Odd),
        State::Missing => ("missing", Tone::Bad),
    };
    let found = hostile::line(&check.found).into_owned();
    let cure = check
        .cure
        .as_ref()
        .map(|cure| format!(". {} {}", paint(Tone::Bold, "Cure:"), hostile::line(cure)));
    let word = paint(tone, &format!("{word:<8}"));
    format!("{word} {:<8} {}{}", check.name, found.trim_end_matches('.'), cure.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_line_ends_with_its_cure() {
        let check = Check::missing("qemu", "not found.", "apt install qemu-system-x86");
        let row = row(&check, &|_, text| text.to_owned());
        assert_eq!(row, "missing  qemu     not found. Cure: apt install qemu-system-x86");
    }
}
