//! What a job may say: a job is a process of its own, perhaps on another host, perhaps killed in mid-sentence, so
//! its events are checked before they count.

use std::collections::BTreeMap;

use kiln_model::StageName;
use kiln_model::event::{Event, Happening, NoteLevel};
use kiln_model::hostile::one_line;
use kiln_model::outcome::Outcome;

use crate::sink::{EventSink, note};

/// So many lines that are no events are shown; the rest is counted.
const SHOWN_STRAY_LINES: u32 = 5;

/// Reads one job's lines.
#[derive(Debug)]
pub(super) struct JobReader {
    /// Every stage in order, with its outcome once it has one.
    stages: Vec<(StageName, Option<Outcome>)>,
    positions: BTreeMap<StageName, usize>,
    stray_lines: u32,
}

impl JobReader {
    pub(super) fn new(stages: impl IntoIterator<Item = StageName>) -> JobReader {
        let stages: Vec<_> = stages.into_iter().map(|name| (name, None)).collect();
        let positions =
            stages.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
        JobReader { stages, positions, stray_lines: 0 }
    }

    /// Takes one line, and passes on the event it holds if a job may say that.
    pub(super) fn line(&mut self, line: &[u8], sink: &mut dyn EventSink) {
        let Ok(event) = serde_json::from_slice::<Event>(line) else {
            self.stray_lines += 1;
            if self.stray_lines <= SHOWN_STRAY_LINES {
                let text = one_line(String::from_utf8_lossy(line).trim_end(), 200);
                note(sink, NoteLevel::Warning, format!("the job printed what is no event: {text}"));
            }
            return;
        };
        let refused = match &event.event {
            // Only the run itself begins and ends.
            Happening::RunStarted(_) | Happening::RunEnded { .. } => Some("began or ended the run"),
            Happening::StageStarted { stage, .. } => self.refuse(stage),
            Happening::StageEnded { stage, outcome, .. } => {
                let refused = self.refuse(stage);
                if refused.is_none()
                    && let Some(&at) = self.positions.get(stage)
                {
                    self.stages[at].1 = Some(outcome.clone());
                }
                refused
            }
            _ => None,
        };
        match refused {
            Some(what) => {
                note(sink, NoteLevel::Warning, format!("the job {what}; that was ignored"))
            }
            None => sink.take(event),
        }
    }

    fn refuse(&self, stage: &StageName) -> Option<&'static str> {
        match self.positions.get(stage) {
            None => Some("spoke of a stage it does not have"),
            Some(&at) if self.stages[at].1.is_some() => Some("went back to a stage that had ended"),
            Some(_) => None,
        }
    }

    /// The events a job that is gone still owed.
    pub(super) fn finish(&mut self, how: &str, interrupted: bool) -> Vec<Happening> {
        let mut owed = Vec::new();
        if self.stray_lines > SHOWN_STRAY_LINES {
            let text = format!("the job printed {} lines that are no events", self.stray_lines);
            owed.push(Happening::Note { level: NoteLevel::Warning, text });
        }
        for (stage, ended) in &mut self.stages {
            if ended.is_some() {
                continue;
            }
            let outcome = if interrupted {
                Outcome::NotRun { reason: "interrupted".to_owned() }
            } else {
                Outcome::Broken { reason: how.to_owned() }
            };
            *ended = Some(outcome.clone());
            owed.push(Happening::StageEnded { stage: stage.clone(), outcome, took_ms: 0 });
        }
        owed
    }

    /// The outcomes so far.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.stages.iter().filter_map(|(_, outcome)| outcome.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use kiln_model::outcome::Verdict;
    use proptest::prelude::*;

    use super::*;

    fn reader() -> JobReader {
        JobReader::new(["a", "b"].map(|name| name.parse().unwrap()))
    }

    fn ended(stage: &str) -> String {
        format!(
            r#"{{"at":1,"event":{{"type":"stage-ended","stage":"{stage}","outcome":{{"kind":"passed"}},"took_ms":1}}}}"#
        )
    }

    fn read(reader: &mut JobReader, lines: &[&str]) -> Vec<Happening> {
        let mut told = Vec::new();
        let mut sink = |event: Event| told.push(event.event);
        for line in lines {
            reader.line(line.as_bytes(), &mut sink);
        }
        told
    }

    #[test]
    fn a_job_killed_in_mid_sentence_leaves_its_other_stages_broken() {
        let mut reader = reader();
        let told = read(&mut reader, &[&ended("a"), r#"{"at":1,"event":{"type":"stage-en"#]);
        assert!(matches!(told[0], Happening::StageEnded { .. }));
        assert!(matches!(told[1], Happening::Note { .. }));
        let owed = reader.finish("the job was killed", false);
        assert_eq!(owed.len(), 1);
        assert_eq!(Verdict::of(reader.outcomes()), Verdict::Broken);
    }

    #[test]
    fn a_job_that_was_told_to_stop_is_not_broken() {
        let mut reader = reader();
        reader.finish("the job was killed", true);
        assert_eq!(Verdict::of(reader.outcomes()), Verdict::Interrupted);
    }

    #[test]
    fn a_job_can_neither_end_the_run_nor_rewrite_a_stage_nor_invent_one() {
        let mut reader = reader();
        let again = ended("a").replace("passed", "broken").replace("}}", r#","reason":"x"}}"#);
        let told = read(
            &mut reader,
            &[
                r#"{"at":1,"event":{"type":"run-ended","verdict":"passed","took_ms":1}}"#,
                &ended("a"),
                &again,
                &ended("c"),
                r#"{"at":1,"event":{"type":"stage-started","stage":"a","vm":1}}"#,
            ],
        );
        let kept: Vec<_> =
            told.iter().filter(|event| !matches!(event, Happening::Note { .. })).collect();
        assert_eq!(kept.len(), 1, "{told:#?}");
        assert_eq!(Verdict::of(reader.outcomes()), Verdict::Passed);
    }

    #[test]
    fn a_flood_of_nonsense_is_counted_not_repeated() {
        let mut reader = reader();
        let told = read(&mut reader, &["\u{1b}[31mboo"; 1000]);
        assert_eq!(told.len(), 5);
        assert!(matches!(&told[0], Happening::Note { text, .. } if !text.contains('\u{1b}')));
        assert!(
            matches!(&reader.finish("", false)[0], Happening::Note { text, .. } if text.contains("1000"))
        );
    }

    proptest! {
        #[test]
        fn no_line_makes_the_reader_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            reader().line(&line, &mut |_: Event| {});
        }
    }
}
