//! Lines of fixed columns: outcome, seconds, name, reason. They can be grepped, and no guest can forge one.

use kiln_model::event::{Event, Happening, NoteLevel};
use kiln_model::outcome::{Outcome, Verdict};

use crate::hostile;
use crate::terminal::Tone;

/// Longest reason or note in a row, in columns; the whole of it is in the recording.
const LONGEST: usize = 300;

/// How a word is set apart: a function, so that tests and pipes get it plain.
pub(crate) type Paint<'a> = &'a dyn Fn(Tone, &str) -> String;

/// The lines an event is worth above a bar or in a log; most are worth none.
pub(crate) fn of_event(event: &Event, paint: Paint<'_>) -> Vec<String> {
    match &event.event {
        Happening::RunStarted(run) => {
            let head = format!(
                "run {}: {} on {}, {} stage{}",
                run.run,
                hostile::line(&run.scenario),
                hostile::line(&run.kernel.release),
                run.stages.len(),
                if run.stages.len() == 1 { "" } else { "s" },
            );
            vec![paint(Tone::Bold, &head)]
        }
        Happening::ImageReady { cached: false, bytes, took_ms, .. } => {
            let text = format!("image built in {}, {}", seconds(*took_ms), mebibytes(*bytes));
            vec![paint(Tone::Dim, &text)]
        }
        Happening::Note { level, text } => {
            let (word, tone) = match level {
                NoteLevel::Info => ("note", Tone::Dim),
                NoteLevel::Warning => ("warning", Tone::Odd),
            };
            let text = hostile::line(text.trim_end());
            vec![format!("{}: {}", paint(tone, word), hostile::cut(&text, LONGEST))]
        }
        Happening::SplatSeen { stage, splat, .. } if !splat.kind.is_fatal() => {
            let during = stage.as_ref().map(|stage| format!(" during {stage}")).unwrap_or_default();
            let signature = hostile::line(&splat.signature);
            let text = format!("the kernel reported {}{during}", hostile::cut(&signature, LONGEST));
            vec![format!("{}: {text}", paint(Tone::Odd, "warning"))]
        }
        Happening::StageEnded { stage, outcome, took_ms } => {
            vec![stage_row(stage.as_str(), Some(outcome), *took_ms, paint)]
        }
        _ => Vec::new(),
    }
}

/// `   passed     3.21s  mkfs`
pub(crate) fn stage_row(
    name: &str,
    outcome: Option<&Outcome>,
    took_ms: u64,
    paint: Paint<'_>,
) -> String {
    let (word, tone) = match outcome {
        Some(outcome) => (outcome.word(), tone_of(outcome)),
        None => ("unfinished", Tone::Odd),
    };
    let reason = outcome.and_then(reason).map(|reason| {
        let reason = hostile::line(&reason).into_owned();
        format!("  {}", paint(Tone::Dim, &hostile::cut(&reason, LONGEST)))
    });
    let word = paint(tone, &format!("{word:>10}"));
    format!("{word} {:>9}  {name}{}", seconds(took_ms), reason.unwrap_or_default())
}

/// `not-started            mkfs`
pub(crate) fn not_started_row(name: &str, paint: Paint<'_>) -> String {
    format!("{} {:>8}  {name}", paint(Tone::Odd, "not-started"), "")
}

/// What comes in brackets after an outcome's word.
fn reason(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Passed => None,
        Outcome::TimedOut { cause } => Some(cause.to_string()),
        Outcome::Crashed { signature: reason }
        | Outcome::Failed { reason }
        | Outcome::Skipped { reason }
        | Outcome::NotRun { reason }
        | Outcome::Broken { reason } => Some(reason.clone()),
    }
}

/// The tone of an outcome's word.
pub(crate) fn tone_of(outcome: &Outcome) -> Tone {
    match outcome {
        Outcome::Passed => Tone::Good,
        Outcome::Failed { .. } | Outcome::TimedOut { .. } | Outcome::Crashed { .. } => Tone::Bad,
        Outcome::Skipped { .. } => Tone::Dim,
        Outcome::NotRun { .. } | Outcome::Broken { .. } => Tone::Odd,
    }
}

/// The tone of a verdict's word.
pub(crate) fn tone_of_verdict(verdict: Option<Verdict>) -> Tone {
    match verdict {
        Some(Verdict::Passed) => Tone::Good,
        Some(Verdict::Failed) => Tone::Bad,
        Some(Verdict::Broken | Verdict::Interrupted | Verdict::Empty) | None => Tone::Odd,
    }
}

/// `0.42s`, `34.1s`, `12m05s`, `3h20m`.
pub(crate) fn seconds(millis: u64) -> String {
    match millis {
        0..10_000 => format!("{}.{:02}s", millis / 1000, millis % 1000 / 10),
        10_000..60_000 => format!("{}.{}s", millis / 1000, millis % 1000 / 100),
        60_000..3_600_000 => format!("{}m{:02}s", millis / 60_000, millis % 60_000 / 1000),
        _ => format!("{}h{:02}m", millis / 3_600_000, millis % 3_600_000 / 60_000),
    }
}

/// `12.3 MiB`.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(_: Tone, text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn a_row_has_fixed_columns_and_cannot_be_forged_by_a_reason() {
        let reason = "exit 1\n    passed     0.01s  other\x1b[1A".to_owned();
        let row = stage_row("scrub", Some(&Outcome::Failed { reason }), 12_345, &plain);
        assert_eq!(
            row,
            "    failed     12.3s  scrub  exit 1\\n    passed     0.01s  other\\x1b[1A"
        );
        assert_eq!(stage_row("a", Some(&Outcome::Passed), 42, &plain), "    passed     0.04s  a");
        assert_eq!(not_started_row("a", &plain), "not-started           a");
    }

    #[test]
    fn times_and_sizes_are_read_at_a_glance() {
        let shown: Vec<_> = [0, 420, 34_190, 725_000, 12_000_000].map(seconds).into();
        assert_eq!(shown, ["0.00s", "0.42s", "34.1s", "12m05s", "3h20m"]);
        assert_eq!(mebibytes(12_900_000), "12.3 MiB");
        assert_eq!(mebibytes(u64::MAX), "17592186044415.9 MiB");
    }
}
