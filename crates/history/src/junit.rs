//! A run as JUnit XML: one suite per scenario, one case per stage.
//!
//! Failed, timed-out and crashed stages are failures, broken ones errors, skipped and unrun ones skipped. Characters
//! XML cannot hold are taken out.

use std::time::Duration;

use kiln_model::outcome::Outcome;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite, XmlString};

use crate::folder::RunFolder;
use crate::summary::{RunSummary, StageSummary};
use crate::{HistoryError, Replay, terminal_text};

/// A case carries at most so many bytes of its terminal, the end of it.
const MOST_OUTPUT: usize = 64 << 10;
const WIDEST_LINE: usize = 2000;

/// The run as JUnit XML. Terminal text is read from the run's folder where there is one.
pub fn junit(run: &RunSummary, folder: Option<&RunFolder>) -> Result<String, HistoryError> {
    let mut suite = TestSuite::new(text(&run.scenario));
    suite.set_time(Duration::from_millis(run.took_ms));
    suite.add_property(("kernel", text(&run.kernel.release).as_str()));
    suite.add_property(("kernel-digest", text(&run.kernel.digest).as_str()));
    suite.add_property(("run", run.id.as_str()));
    for stage in &run.stages {
        suite.add_test_case(case(run, stage, folder));
    }
    let mut report = Report::new("kiln");
    report.set_time(Duration::from_millis(run.took_ms));
    report.add_test_suite(suite);
    report.to_string().map_err(|source| HistoryError::Junit { run: run.id.to_string(), source })
}

fn case(run: &RunSummary, stage: &StageSummary, folder: Option<&RunFolder>) -> TestCase {
    let mut status = match &stage.outcome {
        Some(Outcome::Passed) => TestCaseStatus::success(),
        Some(Outcome::Failed { .. } | Outcome::TimedOut { .. } | Outcome::Crashed { .. }) => {
            TestCaseStatus::non_success(NonSuccessKind::Failure)
        }
        Some(Outcome::Broken { .. }) => TestCaseStatus::non_success(NonSuccessKind::Error),
        Some(Outcome::Skipped { .. } | Outcome::NotRun { .. }) | None => TestCaseStatus::skipped(),
    };
    if !matches!(status, TestCaseStatus::Success { .. }) {
        let message = match &stage.outcome {
            Some(outcome) => outcome.to_string(),
            None => format!("{}: the run was {}", stage.word(), run.word()),
        };
        status.set_type(stage.word());
        status.set_message(text(&message));
    }
    if let Some(splat) = stage.splats.first() {
        status.set_description(text(&splat.excerpt));
    }
    let mut case = TestCase::new(stage.name.as_str(), status);
    case.set_classname(text(&run.scenario));
    case.set_time(Duration::from_millis(stage.took_ms));
    let shown = folder
        .and_then(|folder| Replay::open(folder, run.id.as_str(), &stage.name).ok())
        .and_then(|replay| replay.plain_text().ok());
    if let Some(shown) = shown.filter(|shown| !shown.is_empty()) {
        case.set_system_out(text(&terminal_text::page(&shown, MOST_OUTPUT, WIDEST_LINE)));
    }
    case
}

/// XML 1.0 has no way to write most control characters, U+FFFE and U+FFFF, not even escaped.
fn text(raw: &str) -> XmlString {
    let clean: String = terminal_text::plain(raw)
        .chars()
        .filter(|c| !matches!(c, '\u{fffe}' | '\u{ffff}'))
        .collect();
    XmlString::new(clean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn each_outcome_becomes_what_readers_of_junit_expect() {
        let outcomes = [
            Outcome::Passed,
            Outcome::Failed { reason: "exit status 3".into() },
            Outcome::Crashed { signature: "panic: <script>\u{1b}[31m\u{0}\u{ffff}]]>".into() },
            Outcome::Skipped { reason: "no disk".into() },
            Outcome::Broken { reason: "no qemu".into() },
        ];
        let run = crate::summary::of_events(&sample::events("20260101-000000-0001", &outcomes));
        let xml = junit(&run, None).unwrap();
        insta::assert_snapshot!(xml);
    }

    #[test]
    fn no_text_of_a_guest_can_break_the_xml() {
        let every: String =
            (0..0x3000u32).chain(0xd7f0..0x10020).filter_map(char::from_u32).collect();
        let outcome = Outcome::Failed { reason: format!("]]> <!-- & {every}") };
        let mut run =
            crate::summary::of_events(&sample::events("20260101-000000-0001", &[outcome]));
        run.scenario = every;
        let xml = junit(&run, None).unwrap();
        let valid = |c: char| matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
        assert!(xml.chars().all(valid));
        quick_junit::Report::deserialize_from_str(&xml).unwrap();
    }
}
