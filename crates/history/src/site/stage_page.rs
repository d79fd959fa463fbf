//! The page of one stage: its terminal to be played, what the kernel cried, its logs as text, its files.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use kiln_model::hostile::one_line;
use maud::{Markup, PreEscaped, html};

use super::assets::HAS_PLAYER;
use super::evidence::Evidence;
use super::page::{self, Depth, chip, command, duration, moment, reason};
use super::run_page::{console, file, files};
use crate::cast::{CastKind, CastReader, header_line, output_line};
use crate::folder::RunFolder;
use crate::replay::Replay;
use crate::standing::Standing;
use crate::summary::{RunSummary, StageSummary};
use crate::terminal_text::{self, TerminalFilter};

/// A recording larger than this is not put into the page; `kiln replay` plays it.
const LARGEST_IN_PAGE: u64 = 2 << 20;
/// Of a log, so much of its end is shown.
const LOG_BYTES: usize = 128 << 10;
const WIDEST_LINE: usize = 2000;

pub(super) fn page(
    folder: &RunFolder,
    run: &RunSummary,
    stage: &StageSummary,
    standing: &Standing,
    evidence: &Evidence,
) -> Vec<u8> {
    let recording = recording(folder, run, stage);
    let playable = recording.as_ref().is_some_and(|recording| recording.cast.is_some());
    let dmesg = tail(&folder.dmesg(&stage.name));
    let body = html! {
        p.crumbs {
            a href="index.html" { (one_line(&run.scenario, 80)) " " span.mono { (run.id) } }
        }
        div.title {
            h1 { (stage.name) }
            (chip(stage.word()))
            span.standing { (standing) }
        }
        @let reason = reason(stage);
        @if !reason.is_empty() { p.reason { (reason) } }
        dl.facts {
            div { dt { "Kernel" } dd { (page::kernel(run)) } }
            @if let Some(started) = stage.started { div { dt { "Began" } dd { (moment(started)) } } }
            @if stage.outcome.is_some() { div { dt { "Took" } dd { (duration(stage.took_ms)) } } }
            @if let Some(vm) = stage.vm {
                div { dt { "Machine " (vm) } dd { (console(evidence, vm)) } }
            }
        }
        (splats(stage))
        section aria-labelledby="terminal" {
            h2 id="terminal" { "Terminal" }
            @match &recording {
                Some(recording) => (terminal(recording, stage.failed())),
                None => p.quiet { "The stage printed nothing, or never started." },
            }
        }
        @if let Some(text) = &dmesg {
            section aria-labelledby="dmesg" {
                h2 id="dmesg" { "Kernel log" }
                (log("dmesg", text, stage.failed()))
                p { (file(evidence, &format!("stages/{}/dmesg.txt", stage.name))) }
            }
        }
        @if !stage.artifacts.is_empty() {
            section aria-labelledby="files" {
                h2 id="files" { "Files" }
                (files(evidence, stage.artifacts.iter().map(|artifact| artifact.path.as_str())))
            }
        }
        section aria-labelledby="again" {
            h2 id="again" { "Go on from here" }
            div.commands {
                (command(&format!("kiln replay {}/{}", run.id, stage.name)))
                @if !stage.disks.is_empty() {
                    (command(&format!("kiln shell {}/{}", run.id, stage.name)))
                }
                (command(&format!("kiln run --rerun {}", run.id)))
                (command(&format!("kiln show {}", run.id)))
            }
        }
    };
    let title = format!("{} {} · {}", stage.name, stage.word(), run.scenario);
    page::frame(Depth::Run, &title, playable, body)
}

fn splats(stage: &StageSummary) -> Markup {
    html! {
        @if !stage.splats.is_empty() {
            section aria-labelledby="splats" {
                h2 id="splats" { "The kernel said" }
                @for splat in &stage.splats {
                    h3.mono { (one_line(&splat.signature, 200)) }
                    pre.splat tabindex="0" { (terminal_text::page(&splat.excerpt, LOG_BYTES, WIDEST_LINE)) }
                }
            }
        }
    }
}

/// A stage's terminal: as text always, to be played where that is possible.
struct Recording {
    text: String,
    cast: Option<String>,
    replay: String,
}

fn recording(folder: &RunFolder, run: &RunSummary, stage: &StageSummary) -> Option<Recording> {
    let replay = Replay::open(folder, run.id.as_str(), &stage.name).ok()?;
    let text = terminal_text::page(&replay.plain_text().ok()?, LOG_BYTES, WIDEST_LINE);
    let path = folder.cast(&stage.name);
    let small = std::fs::metadata(&path).is_ok_and(|meta| meta.len() <= LARGEST_IN_PAGE);
    let cast = if HAS_PLAYER && small { for_the_player(&path) } else { None };
    Some(Recording { text, cast, replay: format!("kiln replay {}/{}", run.id, stage.name) })
}

/// The recording as the player gets it: without a torn last line, and of escape sequences only those that draw.
fn for_the_player(path: &Path) -> Option<String> {
    let mut cast = CastReader::open(BufReader::new(File::open(path).ok()?), path).ok()?;
    let header = cast.header();
    let started_ms = header.timestamp.saturating_mul(1000);
    let mut text = header_line(header.size, started_ms, &one_line(&header.title, 200));
    let mut filter = TerminalFilter::default();
    while let Some(event) = cast.next_event().ok()? {
        if let CastKind::Output(output) = event.kind {
            let at_ms = u64::try_from(event.at.as_millis()).unwrap_or(u64::MAX);
            text.push_str(&output_line(at_ms, &filter.pass(&output)));
        }
    }
    Some(text)
}

fn terminal(recording: &Recording, failed: bool) -> Markup {
    html! {
        @match &recording.cast {
            Some(cast) => {
                div.player id="player" {}
                script type="application/json" id="cast" { (json_in_html(cast)) }
                noscript { p.quiet { "Without scripts, play it with " code { (recording.replay) } "." } }
            }
            None => p.quiet { "Play it with " code { (recording.replay) } "." },
        }
        (log("Terminal as text", &recording.text, failed || recording.cast.is_none()))
    }
}

/// A JSON string that cannot end the element it stands in.
fn json_in_html(text: &str) -> PreEscaped<String> {
    PreEscaped(serde_json::Value::from(text).to_string().replace('<', "\\u003c"))
}

fn log(title: &str, text: &str, open: bool) -> Markup {
    html! {
        details open[open] {
            summary { (title) }
            pre.log tabindex="0" { (text) }
        }
    }
}

/// The end of a log, cleaned; none if there is no such file or it is empty.
fn tail(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    let most = u64::try_from(LOG_BYTES).unwrap_or(u64::MAX);
    file.seek(SeekFrom::Start(len.saturating_sub(most))).ok()?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).ok()?;
    let text = terminal_text::page(&String::from_utf8_lossy(&bytes), usize::MAX, WIDEST_LINE);
    match len.saturating_sub(most) {
        _ if text.trim().is_empty() => None,
        0 => Some(text),
        left_out => Some(format!("[{left_out} bytes before this are left out]\n{text}")),
    }
}
