//! Status badges: small SVG files to put into a README.

use kiln_model::hostile::one_line;
use kiln_model::outcome::Verdict;
use maud::html;

use crate::summary::{RunState, RunSummary};

/// The badge of a scenario whose newest run is this one.
pub fn badge(run: &RunSummary) -> String {
    let (passed, of) = run.passed();
    let (says, colour) = match (run.state, run.verdict) {
        (RunState::Running, _) => ("running".to_owned(), "#5b6b7a"),
        (RunState::Interrupted, _) | (_, Some(Verdict::Interrupted) | None) => {
            ("interrupted".to_owned(), "#5b6b7a")
        }
        (_, Some(Verdict::Passed)) => (format!("{passed} of {of} passed"), "#2c7a4b"),
        (_, Some(Verdict::Failed)) => {
            let failed = run.stages.iter().filter(|stage| stage.failed()).count();
            (format!("{failed} of {of} failed"), "#b3261e")
        }
        (_, Some(Verdict::Broken)) => ("broken".to_owned(), "#8a5a00"),
        (_, Some(Verdict::Empty)) => ("nothing ran".to_owned(), "#5b6b7a"),
    };
    draw(&one_line(&run.scenario, 40), &says, colour)
}

fn draw(name: &str, says: &str, colour: &str) -> String {
    let (left, right) = (width(name), width(says));
    let (whole, label) = (left + right, format!("{name}: {says}"));
    // `textLength` makes the text fit whatever font is there.
    let word = |x: u32, wide: u32, text: &str| {
        html! { text x=(x + 7) y="14" textLength=(wide - 14) lengthAdjust="spacingAndGlyphs" { (text) } }
    };
    html! {
        svg xmlns="http://www.w3.org/2000/svg" width=(whole) height="20" role="img" aria-label=(label) {
            title { (label) }
            clipPath id="r" { rect width=(whole) height="20" rx="4" {} }
            g clip-path="url(#r)" {
                rect width=(left) height="20" fill="#33302c" {}
                rect x=(left) width=(right) height="20" fill=(colour) {}
            }
            g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" {
                (word(0, left, name))
                (word(left, right, says))
            }
        }
    }
    .into_string()
}

/// Pixels for a text in the badge's font, with its margins.
fn width(text: &str) -> u32 {
    let characters = u32::try_from(text.chars().count()).unwrap_or(u32::MAX).min(80);
    characters * 13 / 2 + 14
}

#[cfg(test)]
mod tests {
    use kiln_model::outcome::Outcome;

    use crate::sample;

    #[test]
    fn a_badge_says_how_the_last_run_ended_and_stays_well_formed() {
        let failed = Outcome::Failed { reason: "x".into() };
        let events = sample::scenario_events(
            "20260101-000000-0001",
            "<b>&\"raid5",
            "aa",
            &[Outcome::Passed, failed],
        );
        insta::assert_snapshot!(super::badge(&crate::summary::of_events(&events)));
    }
}
