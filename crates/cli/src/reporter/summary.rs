//! What a run adds up to, for a person: failures first, each with the kernel's own words and the commands that
//! look closer; then one line that counts.

use kiln_history::{Replay, RunFolder, RunState, RunSummary, StageSummary};
use kiln_model::outcome::Outcome;

use super::rows::{self, Paint};
use crate::hostile;
use crate::terminal::Tone;

/// Lines of a splat that are shown; the rest is in the recording.
const SPLAT_LINES: usize = 8;
/// Lines of a stage's terminal that are shown where the kernel said nothing.
const LAST_LINES: usize = 5;
/// Failures that are shown in full.
const MOST_FAILURES: usize = 10;

/// The lines of the summary, each at most `columns` wide except for commands, which must stay whole.
pub(crate) fn lines(
    run: &RunSummary,
    folder: &RunFolder,
    columns: usize,
    paint: Paint<'_>,
) -> Vec<String> {
    let mut lines = Vec::new();
    let matters = |stage: &&StageSummary| {
        stage.failed() || matches!(stage.outcome, Some(Outcome::Broken { .. }))
    };
    let mut bad: Vec<&StageSummary> = run.stages.iter().filter(matters).collect();
    // What counts against the kernel comes before what broke on our side; the order within is the plan's.
    bad.sort_by_key(|stage| !stage.failed());
    for stage in bad.iter().take(MOST_FAILURES) {
        lines.push(String::new());
        failure(&mut lines, run, folder, stage, columns, paint);
    }
    if bad.len() > MOST_FAILURES {
        lines.push(format!("… and {} more: kiln show {}", bad.len() - MOST_FAILURES, run.id));
    }
    for splat in run.splats.iter().take(3) {
        lines.push(String::new());
        let signature = hostile::line(&splat.signature).into_owned();
        lines.push(format!("outside of any stage: {}", hostile::cut(&signature, columns)));
        excerpt(&mut lines, &splat.excerpt, columns, paint);
    }
    lines.push(String::new());
    lines.push(counts(run, paint));
    lines.extend(machines(run).map(|text| paint(Tone::Dim, &text)));
    lines.push(format!("recorded in {}", folder.path().display()));
    lines
}

fn failure(
    lines: &mut Vec<String>,
    run: &RunSummary,
    folder: &RunFolder,
    stage: &StageSummary,
    columns: usize,
    paint: Paint<'_>,
) {
    let (name, id) = (&stage.name, &run.id);
    if let Some(outcome) = &stage.outcome {
        let text = outcome.to_string();
        let text = hostile::line(&text);
        let head = format!("{name}: {text}");
        lines.push(paint(rows::tone_of(outcome), &hostile::cut(&head, columns.max(60))));
    }
    for splat in stage.splats.iter().take(2) {
        excerpt(lines, &splat.excerpt, columns, paint);
    }
    if stage.splats.is_empty()
        && let Some(words) = last_words(folder, run, stage)
    {
        excerpt(lines, &words, columns, paint);
    }
    let mut command = |label: &str, text: String| {
        lines.push(format!("  {} {text}", paint(Tone::Dim, &format!("{label:<7}"))));
    };
    command("rerun", format!("kiln run --rerun {id} --stage {name}"));
    if folder.cast(name).is_file() {
        command("replay", format!("kiln replay {id}/{name}"));
    }
    command("shell", format!("kiln shell {id}/{name}"));
    if let Some(vm) = stage.vm
        && folder.console(vm).is_file()
    {
        command("console", folder.console(vm).display().to_string());
    }
    if folder.stage(name).is_dir() {
        command("files", folder.stage(name).display().to_string());
    }
}

/// The end of what a stage without a kernel report printed: usually the reason.
fn last_words(folder: &RunFolder, run: &RunSummary, stage: &StageSummary) -> Option<String> {
    if !folder.cast(&stage.name).is_file() {
        return None;
    }
    let text = Replay::open(folder, run.id.as_str(), &stage.name).ok()?.plain_text().ok()?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    Some(lines[lines.len().saturating_sub(LAST_LINES)..].join("\n"))
}

fn excerpt(lines: &mut Vec<String>, excerpt: &str, columns: usize, paint: Paint<'_>) {
    let bare = hostile::without_sequences(excerpt);
    let all: Vec<&str> = bare.lines().filter(|line| !line.trim().is_empty()).collect();
    for line in all.iter().take(SPLAT_LINES) {
        let line = hostile::line(line.trim_end());
        lines.push(format!("    {}", hostile::cut(&line, columns.saturating_sub(4))));
    }
    if all.len() > SPLAT_LINES {
        lines.push(paint(Tone::Dim, &format!("    … {} more lines", all.len() - SPLAT_LINES)));
    }
}

/// `failed: 2 of 5 stages passed, 1 crashed, 2 timed-out, in 34.1s`
pub(crate) fn counts(run: &RunSummary, paint: Paint<'_>) -> String {
    let word = paint(rows::tone_of_verdict(run.verdict), run.word());
    let (passed, all) = run.passed();
    let mut text = format!("{passed} of {all} stage{} passed", if all == 1 { "" } else { "s" });
    for word in ["failed", "crashed", "timed-out", "broken", "skipped", "not-run"] {
        let count = run.stages.iter().filter(|stage| stage.word() == word).count();
        if count > 0 {
            text.push_str(&format!(", {count} {word}"));
        }
    }
    let unfinished = run.stages.iter().filter(|stage| stage.outcome.is_none()).count();
    if unfinished > 0 && run.state != RunState::Running {
        text.push_str(&format!(", {unfinished} without an end"));
    }
    format!("{word}: {text}, in {}", rows::seconds(run.took_ms))
}

/// `1 machine booted in 2.3s, 3 restored in 0.1s to 0.2s`; nothing where none came up.
fn machines(run: &RunSummary) -> Option<String> {
    let mut parts = Vec::new();
    for (restored, how) in [(false, "booted"), (true, "restored")] {
        let times = run.machines.iter().filter(|machine| machine.restored == restored);
        let times: Vec<u64> = times.filter_map(|machine| machine.boot_ms).collect();
        let (Some(least), Some(most)) = (times.iter().min(), times.iter().max()) else { continue };
        let noun = match (parts.len(), times.len()) {
            (0, 1) => " machine",
            (0, _) => " machines",
            _ => "",
        };
        let (least, most) = (rows::seconds(*least), rows::seconds(*most));
        let took = if least == most { least } else { format!("{least} to {most}") };
        parts.push(format!("{}{noun} {how} in {took}", times.len()));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use kiln_history::{Damage, SummaryBuilder};
    use kiln_model::event::{Acceleration, Event, Happening, KernelIdentity, RunStarted};
    use kiln_model::outcome::{TimeoutCause, Verdict};
    use kiln_model::splat::{Splat, SplatKind};

    pub(crate) fn started() -> RunStarted {
        RunStarted {
            schema: kiln_model::event::SCHEMA,
            run: "20261121-142530-7f3a".parse().unwrap(),
            kiln: "0.1.0".into(),
            scenario: "five".into(),
            scenario_source: "/home/me/it's mine/five.toml".into(),
            kernel: KernelIdentity { release: "6.12.1".into(), digest: "00".into() },
            memory: 1 << 30,
            cpus: 1,
            stages: ["one", "two", "three"].map(|name| name.parse().unwrap()).into(),
            command: ["kiln", "run", "five.toml", "--kernel", "/home/me/linux"]
                .map(String::from)
                .into(),
        }
    }

    fn summary() -> RunSummary {
        let ended = |stage: &str, outcome| Happening::StageEnded {
            stage: stage.parse().unwrap(),
            outcome,
            took_ms: 1500,
        };
        let signature = "panic: sysrq triggered crash".to_owned();
        let splat = Splat {
            kind: SplatKind::Panic,
            signature: signature.clone(),
            excerpt: "Kernel panic - not syncing\x1b]0;owned\x07\nCPU: 0\u{202e}\n".into(),
        };
        let stage = Some("two".parse().unwrap());
        let [first, second] = [(1, 2300, false), (2, 140, true)].map(|(vm, boot_ms, restored)| {
            let (acceleration, pid) = (Acceleration::Tcg, 4711);
            let ready = Happening::VmReady { vm, boot_ms, boot_cpu_ms: boot_ms, restored };
            [Happening::VmStarted { vm, acceleration, pid }, ready]
        });
        let ended_so = [
            ended("one", Outcome::TimedOut { cause: TimeoutCause::Hang }),
            Happening::SplatSeen { vm: 1, stage, splat },
            ended("two", Outcome::Crashed { signature }),
            ended("three", Outcome::Passed),
            Happening::RunEnded { verdict: Verdict::Failed, took_ms: 34_100 },
        ];
        let began = [Happening::RunStarted(started())];
        let mut builder = SummaryBuilder::default();
        for happening in began.into_iter().chain(first).chain(second).chain(ended_so) {
            builder.take(Event { at: 1, event: happening });
        }
        builder.finish(&RunFolder::at("/runs/r"), false, Damage::default()).unwrap()
    }

    #[test]
    fn only_what_matters_is_repeated_and_each_failure_names_its_commands() {
        let lines = lines(&summary(), &RunFolder::at("/runs/r"), 80, &|_, text| text.to_owned());
        insta::assert_snapshot!(lines.join("\n"), @r"

        one: timed-out (hang)
          rerun   kiln run --rerun 20261121-142530-7f3a --stage one
          shell   kiln shell 20261121-142530-7f3a/one

        two: crashed (panic: sysrq triggered crash)
            Kernel panic - not syncing
            CPU: 0\u{202e}
          rerun   kiln run --rerun 20261121-142530-7f3a --stage two
          shell   kiln shell 20261121-142530-7f3a/two

        failed: 1 of 3 stages passed, 1 crashed, 1 timed-out, in 34.1s
        1 machine booted in 2.30s, 1 restored in 0.14s
        recorded in /runs/r
        ");
    }
}
