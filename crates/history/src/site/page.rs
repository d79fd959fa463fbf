//! What all pages share: the frame, and the small pieces that mean the same wherever they stand.

use kiln_model::hostile::one_line;
use kiln_model::outcome::Outcome;
use maud::{DOCTYPE, Markup, html};

use super::assets::HAS_PLAYER;
use crate::summary::{RunSummary, StageSummary};

/// Pages may load their own files and nothing else. The player compiles WebAssembly and sets style attributes on
/// what it draws; nothing may run scripts written into a page.
const POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; \
     style-src-attr 'unsafe-inline'; img-src 'self'; font-src 'self' data:; base-uri 'none'; form-action 'none'";

/// How far a page is below the site's root.
#[derive(Clone, Copy, Debug)]
pub(super) enum Depth {
    Root,
    Runs,
    Run,
}

impl Depth {
    pub(super) fn root(self) -> &'static str {
        match self {
            Depth::Root => "",
            Depth::Runs => "../",
            Depth::Run => "../../",
        }
    }
}

/// A whole page.
pub(super) fn frame(depth: Depth, title: &str, with_player: bool, body: Markup) -> Vec<u8> {
    let root = depth.root();
    let with_player = with_player && HAS_PLAYER;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                title { (one_line(title, 120)) }
                @if with_player { link rel="stylesheet" href={ (root) "assets/player.css" }; }
                link rel="stylesheet" href={ (root) "assets/kiln.css" };
                @if with_player { script src={ (root) "assets/player.js" } defer {} }
                script src={ (root) "assets/kiln.js" } defer {}
            }
            body {
                a.skip href="#main" { "Skip to content" }
                header.top {
                    a.brand href={ (root) "index.html" } { span.flame aria-hidden="true" {} "Kiln" }
                    nav aria-label="Site" {
                        a href={ (root) "index.html" } { "Overview" }
                        a href={ (root) "runs/index.html" } { "All runs" }
                    }
                }
                main id="main" { (body) }
                footer {
                    "Written by Kiln " (env!("CARGO_PKG_VERSION")) ". "
                    span.keys { kbd { "n" } " and " kbd { "p" } " move between failures." }
                }
            }
        }
    };
    page.into_string().into_bytes()
}

/// An outcome or verdict as a coloured word.
pub(super) fn chip(word: &str) -> Markup {
    html! { span class={ "chip " (word) } { span.sign aria-hidden="true" { (sign(word)) } (word) } }
}

/// One character per outcome: never colour alone.
pub(super) fn sign(word: &str) -> &'static str {
    match word {
        "passed" => "✓",
        "failed" => "✗",
        "crashed" => "C",
        "timed-out" => "T",
        "skipped" => "–",
        "broken" => "!",
        "running" => "…",
        _ => "·",
    }
}

/// A command to copy.
pub(super) fn command(line: &str) -> Markup {
    html! {
        div.command {
            code { (line) }
            button.copy type="button" data-copy=(line) aria-label={ "Copy: " (line) } { "Copy" }
        }
    }
}

/// A link to a stage's page, from a page of the same run.
pub(super) fn stage_link(stage: &StageSummary) -> Markup {
    html! { a href={ (stage.name) ".html" } { (stage.name) } }
}

/// Why a stage ended as it did, without repeating the word.
pub(super) fn reason(stage: &StageSummary) -> String {
    let text = match &stage.outcome {
        None => return String::new(),
        Some(Outcome::Passed) => return String::new(),
        Some(Outcome::TimedOut { cause }) => match cause.to_string().as_str() {
            "hang" => "the guest fell silent".to_owned(),
            _ => "it ran out of its time".to_owned(),
        },
        Some(Outcome::Crashed { signature }) => signature.clone(),
        Some(
            Outcome::Failed { reason }
            | Outcome::Skipped { reason }
            | Outcome::NotRun { reason }
            | Outcome::Broken { reason },
        ) => reason.clone(),
    };
    one_line(&text, 300)
}

/// `12 ms`, `1.4 s`, `2 min 05 s`, `1 h 02 min`.
pub(super) fn duration(ms: u64) -> String {
    match ms {
        0..=999 => format!("{ms} ms"),
        1000..=59_949 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        59_950..=3_599_999 => format!("{} min {:02} s", ms / 60_000, ms / 1000 % 60),
        _ => format!("{} h {:02} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}

/// `123 B`, `4.5 KiB`, `12.0 MiB`.
pub(super) fn size(bytes: u64) -> String {
    let (unit, word) = match bytes {
        0..=1023 => return format!("{bytes} B"),
        1024..=1_048_575 => (1 << 10, "KiB"),
        1_048_576..=1_073_741_823 => (1 << 20, "MiB"),
        _ => (1 << 30, "GiB"),
    };
    format!("{}.{} {word}", bytes / unit, bytes % unit * 10 / unit)
}

/// A moment, in UTC, readable by people and by programs.
pub(super) fn moment(ms: u64) -> Markup {
    let (date, time) = utc(ms);
    html! { time datetime={ (date) "T" (time) "Z" } { (date) " " (&time[..5]) span.quiet { " UTC" } } }
}

/// `2026-11-21`, `14:25:30`.
pub(super) fn utc(ms: u64) -> (String, String) {
    let seconds = ms / 1000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Counted in eras of 400 years (146097 days) that begin on a first of March, so that the
    // leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let time = format!("{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60);
    (format!("{year:04}-{month:02}-{day:02}"), time)
}

/// The kernel, its digest shortened.
pub(super) fn kernel(run: &RunSummary) -> Markup {
    let digest: String = run.kernel.digest.chars().take(12).collect();
    html! {
        span.mono { (one_line(&run.kernel.release, 80)) }
        @if !digest.is_empty() { " " span.quiet.mono { (one_line(&digest, 12)) } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_durations_read_as_people_write_them() {
        assert_eq!(utc(0), ("1970-01-01".into(), "00:00:00".into()));
        assert_eq!(utc(951_782_399_000).0, "2000-02-28");
        assert_eq!(utc(951_868_799_000), ("2000-02-29".into(), "23:59:59".into()));
        assert_eq!(utc(1_795_271_130_000), ("2026-11-21".into(), "14:25:30".into()));
        assert_eq!(duration(59_949), "59.9 s");
        assert_eq!(duration(125_000), "2 min 05 s");
        assert_eq!(size(1536), "1.5 KiB");
        let _ = utc(u64::MAX);
    }
}
