//! The live view on a terminal: a line per finished stage, below it a bar and what runs now, with its age and the
//! last line it printed.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use kiln_model::StageName;
use kiln_model::event::{Event, Happening};

use super::{Reporter, rows};
use crate::{hostile, terminal};

/// Draws on stderr.
#[derive(Debug)]
pub(crate) struct Progress {
    view: MultiProgress,
    bar: ProgressBar,
    now: ProgressBar,
    stages: u64,
    /// What runs now, in the order in which it began.
    running: Vec<StageName>,
}

impl Progress {
    /// An empty view; nothing is drawn before the first event.
    pub(crate) fn new() -> Progress {
        Progress::on(ProgressDrawTarget::stderr_with_hz(10))
    }

    fn on(target: ProgressDrawTarget) -> Progress {
        let view = MultiProgress::with_draw_target(target);
        let bar = view.add(ProgressBar::no_length());
        let now = view.add(ProgressBar::no_length());
        Progress { view, bar, now, stages: 0, running: Vec::new() }
    }

    /// Says which stages run; several machines run several.
    fn now_running(&mut self) {
        let names: Vec<&str> = self.running.iter().map(StageName::as_str).collect();
        let names = names.join(", ");
        match self.running.len() {
            0 => self.now("between stages"),
            1..=2 => self.now(&names),
            count => self.now(&format!("{count} stages: {}", hostile::cut(&names, 40))),
        }
    }

    /// Says what goes on now; the age starts anew.
    fn now(&mut self, what: &str) {
        self.now.set_prefix(what.to_owned());
        self.now.set_message("");
        self.now.reset_elapsed();
        self.now.tick();
    }
}

impl Reporter for Progress {
    fn take(&mut self, event: &Event) {
        for row in rows::of_event(event, &terminal::paint_err) {
            // The terminal went away: the run goes on without it.
            let _nobody_watches = self.view.println(row);
        }
        match &event.event {
            Happening::RunStarted(run) => {
                self.stages = u64::try_from(run.stages.len()).unwrap_or(u64::MAX);
                self.bar.set_length(self.stages);
                // Literals that are known to be templates; a broken one would leave the default look.
                let style = |template: &str| {
                    ProgressStyle::with_template(template)
                        .unwrap_or_else(|_| ProgressStyle::default_bar())
                        .progress_chars("━━ ")
                };
                self.bar.set_style(style("{bar:20} {pos}/{len} {elapsed}"));
                self.now.set_style(style("  {prefix} {elapsed} {wide_msg}"));
                self.bar.enable_steady_tick(Duration::from_millis(500));
                self.now.enable_steady_tick(Duration::from_millis(500));
                self.now("preparing the image");
            }
            Happening::VmStarted { vm, .. } => self.now(&format!("booting machine {vm}")),
            Happening::StageStarted { stage, .. } => {
                self.running.push(stage.clone());
                self.now_running();
            }
            Happening::Output { text, .. } => {
                if let Some(line) = hostile::last_line(text) {
                    // The template's `wide_msg` cuts to the width; this bounds what it has to look at.
                    self.now.set_message(hostile::cut(&line, 400).into_owned());
                }
            }
            Happening::StageEnded { stage, .. } => {
                self.bar.inc(1);
                self.running.retain(|running| running != stage);
                self.now_running();
            }
            Happening::RunEnded { .. } => self.close(),
            _ => {}
        }
    }

    fn say(&mut self, text: &str) {
        let _nobody_watches = self.view.println(text);
    }

    fn close(&mut self) {
        self.now.finish_and_clear();
        self.bar.finish_and_clear();
        let _nobody_watches = self.view.clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::InMemoryTerm;
    use kiln_model::event::OutputSource;
    use kiln_model::outcome::Outcome;

    fn event(event: Happening) -> Event {
        Event { at: 0, event }
    }

    #[test]
    fn the_view_shows_what_runs_and_its_last_line_and_leaves_only_finished_stages() {
        for columns in [40, 100] {
            let term = InMemoryTerm::new(10, columns);
            let mut view = Progress::on(ProgressDrawTarget::term_like(Box::new(term.clone())));
            let stage: kiln_model::StageName = "scrub".parse().unwrap();
            view.take(&event(Happening::RunStarted(crate::reporter::summary::tests::started())));
            view.take(&event(Happening::StageStarted { stage: stage.clone(), vm: 1 }));
            let text = "scrubbing\r\n\x1b[2J99%".to_owned() + &"x".repeat(5000);
            let source = OutputSource::Terminal;
            view.take(&event(Happening::Output { stage: Some(stage.clone()), source, text }));
            view.now.tick();
            let shown = term.contents();
            assert!(shown.contains("scrub") && shown.contains("99%x"), "{shown}");
            view.take(&event(Happening::StageEnded {
                stage,
                outcome: Outcome::Passed,
                took_ms: 5,
            }));
            view.close();
            let left = term.contents();
            assert!(left.contains("passed     0.00s  scrub"), "{left}");
            assert!(!left.contains("99%"), "{left}");
        }
    }
}
