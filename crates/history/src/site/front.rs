//! The pages over all runs: per scenario its stages over its last runs, and the list of runs.

use std::collections::BTreeMap;

use kiln_model::hostile::one_line;
use maud::{Markup, html};

use super::badge::badge;
use super::evidence::plain_part;
use super::page::{self, Depth, chip, duration, moment, sign, utc};
use super::{SiteFile, standing};
use crate::standing::Standing;
use crate::summary::{RunState, RunSummary};

/// So many runs of a scenario are shown side by side.
const COLUMNS: usize = 24;
/// So many runs are listed on the first page.
const NEWEST: usize = 30;

pub(super) fn pages(all: &[RunSummary]) -> Vec<SiteFile> {
    let mut scenarios: BTreeMap<&str, Vec<&RunSummary>> = BTreeMap::new();
    for run in all {
        scenarios.entry(&run.scenario).or_default().push(run);
    }
    let mut files: Vec<SiteFile> = scenarios
        .iter()
        .filter_map(|(name, runs)| {
            let newest = runs.last()?;
            Some(SiteFile { path: badge_path(name), bytes: badge(newest).into_bytes() })
        })
        .collect();
    files.push(SiteFile { path: "index.html".into(), bytes: overview(all, &scenarios) });
    files.push(SiteFile { path: "runs/index.html".into(), bytes: every_run(all) });
    files
}

fn badge_path(scenario: &str) -> String {
    format!("badges/{}.svg", plain_part(scenario))
}

fn overview(all: &[RunSummary], scenarios: &BTreeMap<&str, Vec<&RunSummary>>) -> Vec<u8> {
    let body = html! {
        h1.hidden { "Kiln: overview" }
        @if all.is_empty() {
            p.empty { "No runs yet. " code { "kiln run simple-example" } " makes one." }
        } @else {
            p.badges {
                @for (name, runs) in scenarios {
                    @if let Some(newest) = runs.last() {
                        a href={ "runs/" (newest.id) "/index.html" } {
                            img src=(badge_path(name)) height="20" alt={ (one_line(name, 80)) ": " (newest.word()) };
                        }
                    }
                }
            }
            @for (name, runs) in scenarios { (scenario(name, runs, all)) }
            section aria-labelledby="newest" {
                h2 id="newest" { "Newest runs" }
                (table(all.iter().rev().take(NEWEST), "runs/"))
                @if all.len() > NEWEST { p { a href="runs/index.html" { "All " (all.len()) " runs" } } }
            }
        }
    };
    page::frame(Depth::Root, "Kiln", false, body)
}

fn every_run(all: &[RunSummary]) -> Vec<u8> {
    let body = html! {
        h1 { "All runs" }
        @if all.is_empty() { p.quiet { "None yet." } } @else { (table(all.iter().rev(), "")) }
    };
    page::frame(Depth::Runs, "All runs · Kiln", false, body)
}

/// One scenario: stages down, runs across (newest first), one cell per outcome.
fn scenario(name: &str, runs: &[&RunSummary], all: &[RunSummary]) -> Markup {
    let Some(newest) = runs.last() else { return html! {} };
    let shown: Vec<&RunSummary> = runs.iter().rev().take(COLUMNS).copied().collect();
    let mut stages = Vec::new();
    for stage in shown.iter().flat_map(|run| &run.stages) {
        if !stages.contains(&&stage.name) {
            stages.push(&stage.name);
        }
    }
    let earlier = match all.iter().position(|run| run.id == newest.id) {
        Some(at) => &all[..at],
        None => &[],
    };
    let id = format!("scenario-{}", plain_part(name));
    html! {
        section.scenario aria-labelledby=(id) {
            div.title {
                h2 id=(id) { (one_line(name, 80)) }
                (chip(newest.word()))
                (trend(&shown))
            }
            div.scroll tabindex="0" role="region" aria-labelledby=(id) {
                table.matrix {
                    thead { tr {
                        th scope="col" { span.hidden { "Stage" } }
                        th scope="col" { span.hidden { "Now" } }
                        @for run in &shown {
                            th.run scope="col" {
                                a href={ "runs/" (run.id) "/index.html" } title={ (run.id) " on " (one_line(&run.kernel.release, 80)) } {
                                    (&utc(run.started).0[5..])
                                    span.hidden { ", run " (run.id) ", " (run.word()) }
                                }
                            }
                        }
                    } }
                    tbody {
                        @for stage in stages {
                            tr {
                                th scope="row" { (stage) }
                                td.now { (now(&standing(newest, earlier, stage))) }
                                @for run in &shown { td { (cell(run, stage)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Where a stage stands, said only when it is worth a word.
fn now(standing: &Standing) -> Markup {
    html! {
        @match standing {
            Standing::Unknown | Standing::Passing { .. } => {},
            other => span class={ "now-" (other.word().replace(' ', "-")) } title=(other) { (other.word()) },
        }
    }
}

fn cell(run: &RunSummary, stage: &kiln_model::StageName) -> Markup {
    html! {
        @match run.stage(stage) {
            Some(found) => {
                @let word = found.word();
                a class={ "cell " (word) } href={ "runs/" (run.id) "/" (stage) ".html" }
                    title={ (stage) ": " (word) ", " (duration(found.took_ms)) } {
                    span aria-hidden="true" { (sign(word)) }
                    span.hidden { (word) }
                }
            }
            None => span.cell.absent { span.hidden { "not part of this run" } },
        }
    }
}

/// How long the last runs took, oldest at the left.
fn trend(newest_first: &[&RunSummary]) -> Markup {
    let took: Vec<u64> = newest_first
        .iter()
        .rev()
        .filter(|run| run.state == RunState::Ended)
        .map(|run| run.took_ms)
        .collect();
    let most = took.iter().copied().max().unwrap_or(0).max(1);
    let Some(last) = took.last().filter(|_| took.len() > 1) else { return html! {} };
    let steps = took.len() - 1;
    let even = took.iter().all(|ms| ms == last);
    let points: Vec<String> = took
        .iter()
        .enumerate()
        .map(|(at, ms)| {
            let y = if even { 12 } else { 22 - u128::from(*ms) * 20 / u128::from(most) };
            format!("{},{y}", 2 + at * 116 / steps)
        })
        .collect();
    html! {
        span.trend {
            svg width="120" height="24" viewBox="0 0 120 24" role="img" aria-label={ "Durations of the last " (took.len()) " runs" } {
                polyline points=(points.join(" ")) {}
            }
            span.quiet { (duration(*last)) }
        }
    }
}

fn table<'a>(runs: impl Iterator<Item = &'a RunSummary>, to: &str) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Runs" {
            table {
                thead { tr {
                    th scope="col" { "Began" } th scope="col" { "Verdict" } th scope="col" { "Scenario" }
                    th.number scope="col" { "Passed" } th.number scope="col" { "Took" } th scope="col" { "Kernel" }
                } }
                tbody {
                    @for run in runs {
                        @let (passed, of) = run.passed();
                        tr {
                            th scope="row" { a href={ (to) (run.id) "/index.html" } { (moment(run.started)) } }
                            td { (chip(run.word())) }
                            td { (one_line(&run.scenario, 80)) }
                            td.number { (passed) span.quiet { " of " (of) } }
                            td.number { (duration(run.took_ms)) }
                            td { (page::kernel(run)) }
                        }
                    }
                }
            }
        }
    }
}
