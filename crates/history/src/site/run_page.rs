//! The page of one run: failures first, each with its evidence and the commands that go on from there.

use kiln_model::hostile::one_line;
use maud::{Markup, html};

use super::evidence::Evidence;
use super::page::{self, Depth, chip, command, duration, moment, reason, size, stage_link};
use crate::standing::Standing;
use crate::summary::{MachineSummary, RunState, RunSummary, StageSummary};
use crate::terminal_text;

/// Of a kernel report, so much is shown on the run's page; the stage's page has more.
const EXCERPT_BYTES: usize = 4 << 10;
const EXCERPT_LINES: usize = 16;
const WIDEST: usize = 400;

pub(super) fn page(
    run: &RunSummary,
    standings: &[Standing],
    previous: Option<&RunSummary>,
    evidence: &Evidence,
) -> Vec<u8> {
    let failures: Vec<(&StageSummary, &Standing)> =
        run.stages.iter().zip(standings).filter(|(stage, _)| stage.failed()).collect();
    let body = html! {
        (head(run, previous))
        (counts(run))
        @if !failures.is_empty() {
            section aria-labelledby="failures" {
                h2 id="failures" { "Failures" }
                @for (stage, standing) in &failures { (failure(run, stage, standing)) }
            }
        }
        (stages(run, standings))
        (notes(run))
        (machines(run, evidence))
        (how(run))
    };
    page::frame(Depth::Run, &format!("{} {} · {}", run.scenario, run.word(), run.id), false, body)
}

fn head(run: &RunSummary, previous: Option<&RunSummary>) -> Markup {
    html! {
        div.title {
            h1 { (one_line(&run.scenario, 80)) }
            (chip(run.word()))
        }
        dl.facts {
            div { dt { "Kernel" } dd { (page::kernel(run)) } }
            div { dt { "Began" } dd { (moment(run.started)) } }
            div { dt { "Took" } dd { (duration(run.took_ms)) } }
            div { dt { "Machine" } dd { (run.cpus) " CPU, " (size(run.memory)) } }
            div { dt { "Run" } dd.mono { (run.id) } }
            @if let Some(previous) = previous {
                div { dt { "Before" } dd {
                    a href={ "../" (previous.id) "/index.html" } { (moment(previous.started)) }
                    " " span.quiet { (previous.word()) }
                } }
            }
        }
        @if run.state == RunState::Interrupted {
            p.notice { "This run was interrupted: what it finished is here, the rest was never decided." }
        }
        @if run.damage.unreadable_lines > 0 {
            p.notice { (run.damage.unreadable_lines) " lines of its recording cannot be read." }
        }
    }
}

/// Outcomes counted, as words and as a bar.
fn counts(run: &RunSummary) -> Markup {
    let words = [
        "passed",
        "failed",
        "crashed",
        "timed-out",
        "broken",
        "skipped",
        "not-run",
        "unfinished",
        "not-started",
    ];
    let count = |word: &str| run.stages.iter().filter(|stage| stage.word() == word).count();
    let present: Vec<(&str, usize)> =
        words.iter().map(|&word| (word, count(word))).filter(|(_, n)| *n > 0).collect();
    html! {
        @if !present.is_empty() {
            div.counts {
                div.bar aria-hidden="true" {
                    @for (word, n) in &present { span class=(word) style={ "flex:" (n) } {} }
                }
                p { @for (word, n) in &present { span class={ "count " (word) } { b { (n) } " " (word) } } }
            }
        }
    }
}

fn failure(run: &RunSummary, stage: &StageSummary, standing: &Standing) -> Markup {
    html! {
        article.failure id={ "failure-" (stage.name) } tabindex="-1" {
            div.title {
                h3 { (stage_link(stage)) }
                (chip(stage.word()))
                span.standing { (standing) }
            }
            @let reason = reason(stage);
            @if !reason.is_empty() { p.reason { (reason) } }
            @if let Some(splat) = stage.splats.first() {
                pre.splat tabindex="0" { (excerpt(&splat.excerpt)) }
                @if stage.splats.len() > 1 {
                    p.quiet { "and " (stage.splats.len() - 1) " more on " (stage_link(stage)) }
                }
            }
            div.commands {
                (command(&format!("kiln replay {}/{}", run.id, stage.name)))
                (command(&format!("kiln run --rerun {}", run.id)))
            }
        }
    }
}

/// The first lines of a kernel report.
pub(super) fn excerpt(text: &str) -> String {
    let clean = terminal_text::plain(text);
    let mut shown = String::new();
    let mut lines = clean.lines();
    for line in lines.by_ref().take(EXCERPT_LINES) {
        shown.push_str(&one_line(line, WIDEST));
        shown.push('\n');
        if shown.len() > EXCERPT_BYTES {
            break;
        }
    }
    let left = lines.count();
    if left > 0 {
        shown.push_str(&format!("… {left} more lines\n"));
    }
    shown
}

fn stages(run: &RunSummary, standings: &[Standing]) -> Markup {
    let longest = run.stages.iter().map(|stage| stage.took_ms).max().unwrap_or(0).max(1);
    html! {
        section aria-labelledby="stages" {
            h2 id="stages" { "Stages" }
            @if run.stages.is_empty() { p.quiet { "This run has none." } }
            @else {
                div.scroll tabindex="0" role="region" aria-labelledby="stages" {
                    table {
                        thead { tr {
                            th scope="col" { "Stage" } th scope="col" { "Outcome" }
                            th.number scope="col" { "Took" } th.wide scope="col" { span.hidden { "Share" } }
                            th scope="col" { "History" }
                        } }
                        tbody {
                            @for (stage, standing) in run.stages.iter().zip(standings) {
                                tr {
                                    th scope="row" { (stage_link(stage)) }
                                    td { (chip(stage.word())) }
                                    td.number { @if stage.outcome.is_some() { (duration(stage.took_ms)) } }
                                    td.wide { (share(stage.took_ms, longest)) }
                                    td.history { (standing) @if !stage.failed() && !stage.splats.is_empty() {
                                        " · " (stage.splats.len()) " kernel report" @if stage.splats.len() > 1 { "s" }
                                    } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn share(ms: u64, longest: u64) -> Markup {
    let percent = (u128::from(ms) * 100 / u128::from(longest)).min(100);
    html! { div.share aria-hidden="true" { span style={ "width:" (percent) "%" } {} } }
}

fn notes(run: &RunSummary) -> Markup {
    html! {
        @if !run.notes.is_empty() || !run.splats.is_empty() {
            section aria-labelledby="notes" {
                h2 id="notes" { "Notes" }
                ul.notes { @for note in &run.notes { li { (one_line(&note.text, 500)) } } }
                @for splat in &run.splats { pre.splat tabindex="0" { (excerpt(&splat.excerpt)) } }
            }
        }
    }
}

fn machines(run: &RunSummary, evidence: &Evidence) -> Markup {
    html! {
        @if !run.machines.is_empty() {
            section aria-labelledby="machines" {
                h2 id="machines" { "Machines" }
                div.scroll tabindex="0" role="region" aria-labelledby="machines" {
                    table {
                        thead { tr {
                            th scope="col" { "Machine" } th scope="col" { "Runs on" }
                            th scope="col" { "Came up" } th scope="col" { "Ended" } th scope="col" { "Console" }
                        } }
                        tbody {
                            @for machine in &run.machines {
                                tr {
                                    th scope="row" { (machine.vm) }
                                    td { (machine.acceleration.word()) }
                                    td { (came_up(machine)) }
                                    td { (one_line(machine.ended.as_deref().unwrap_or(""), 200)) }
                                    td { (console(evidence, machine.vm)) }
                                }
                            }
                        }
                    }
                }
            }
        }
        @if !run.artifacts.is_empty() {
            section aria-labelledby="files" {
                h2 id="files" { "Files" }
                (files(evidence, run.artifacts.iter().map(|artifact| artifact.path.as_str())))
            }
        }
    }
}

/// How a machine came up, and how long that took.
fn came_up(machine: &MachineSummary) -> String {
    let how = if machine.restored { "restored" } else { "booted" };
    machine.boot_ms.map_or_else(String::new, |ms| format!("{how} in {}", duration(ms)))
}

/// A machine's console, if the job kept it.
pub(super) fn console(evidence: &Evidence, vm: u32) -> Markup {
    let name = format!("machines/{vm}/console.log");
    match evidence.of(&name) {
        Some(_) => file(evidence, &name),
        None => html! { span.quiet { "none" } },
    }
}

/// A list of files in the run's folder.
pub(super) fn files<'a>(evidence: &Evidence, names: impl Iterator<Item = &'a str>) -> Markup {
    html! { ul.files { @for name in names { li { (file(evidence, name)) } } } }
}

/// A file in the run's folder: linked where the site has it.
pub(super) fn file(evidence: &Evidence, name: &str) -> Markup {
    html! {
        @match evidence.of(name) {
            Some(shown) => {
                @let label = one_line(shown.name, 160);
                @match shown.link {
                    Some(link) => a.mono href=(link) { (label) },
                    None => { span.mono { (label) } span.quiet { " (kept in the run's folder)" } }
                }
                " " span.quiet { (size(shown.bytes)) @if shown.cut { ", its end" } }
            }
            None => { span.mono { (one_line(name, 160)) } span.quiet { " (not kept)" } },
        }
    }
}

fn how(run: &RunSummary) -> Markup {
    let line = run.command.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ");
    html! {
        section aria-labelledby="again" {
            h2 id="again" { "Again" }
            div.commands {
                @if !line.is_empty() { (command(&one_line(&line, 1000))) }
                (command(&format!("kiln show {}", run.id)))
            }
            p.quiet { "Scenario " span.mono { (one_line(&run.scenario_source, 200)) } ", recorded by Kiln " (one_line(&run.kiln, 40)) "." }
        }
    }
}

/// A word as a shell would have to be told it.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+%~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}
