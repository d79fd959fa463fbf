//! Recordings as a run leaves them, the hostile kind included.

use std::fs;
use std::path::{Path, PathBuf};

use kiln_history::{Recorder, RunFolder};
use kiln_model::event::{Event, Happening, OutputSource};
use kiln_model::outcome::Outcome;
use kiln_model::{RunId, StageName};

use crate::sample;

/// What a guest would print to take over a page, a terminal, or a reader.
pub(crate) const HOSTILE: &str = "<script>window.pwned = 1; document.title = 'pwned'</script><img src=x onerror=\"window.pwned = 2\"></pre></details><svg onload=\"window.pwned=3\"> \u{202e}reversed\u{2066} <!-- ]]> &amp; \u{1b}]0;title\u{7}";

/// A place for runs and a site.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn runs(&self) -> PathBuf {
        self.dir.path().join("runs")
    }

    pub(crate) fn site(&self) -> PathBuf {
        self.dir.path().join("site")
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Records a run of `scenario` whose stages end so.
    pub(crate) fn record(
        &self,
        id: &str,
        scenario: &str,
        kernel: &str,
        outcomes: &[Outcome],
    ) -> RunFolder {
        self.record_events(&sample::scenario_events(id, scenario, kernel, outcomes))
    }

    /// Records these events.
    pub(crate) fn record_events(&self, events: &[Event]) -> RunFolder {
        let Happening::RunStarted(started) = &events[0].event else { panic!("no beginning") };
        let mut recorder = Recorder::create(&self.runs(), &started.run).unwrap();
        for event in events {
            recorder.record(event).unwrap();
        }
        recorder.folder().clone()
    }

    /// A run whose guest did its worst: in its terminal, its kernel log, its reasons and its files.
    pub(crate) fn record_hostile(&self, id: &str) -> RunFolder {
        let outcome = Outcome::Crashed { signature: format!("panic: {HOSTILE}") };
        let mut events =
            sample::scenario_events(id, "<b>raid5</b>", "aa", &[outcome, Outcome::Passed]);
        let stage: StageName = "stage-1".parse().unwrap();
        for event in &mut events {
            if let Happening::SplatSeen { splat, .. } = &mut event.event {
                splat.excerpt.push_str(HOSTILE);
            }
        }
        let started = events
            .iter()
            .position(|event| matches!(event.event, Happening::StageStarted { .. }))
            .unwrap();
        let at = events[started].at;
        let output = |text: String| Event {
            at: at + 500,
            event: Happening::Output {
                stage: Some(stage.clone()),
                source: OutputSource::Terminal,
                text,
            },
        };
        let saved = |path: &str| Event {
            at: at + 600,
            event: Happening::ArtifactSaved {
                stage: Some(stage.clone()),
                path: path.into(),
                bytes: 30,
            },
        };
        let more = [
            output(format!("{HOSTILE}\n")),
            output("the last line of the recording\n".into()),
            saved("stages/stage-1/artifacts/evil.html"),
            saved("stages/stage-1/artifacts/\"><script>window.pwned=4</script>"),
            saved("../../../../etc/passwd"),
        ];
        let ended = events
            .iter()
            .position(|event| matches!(event.event, Happening::StageEnded { .. }))
            .unwrap();
        events.splice(ended..ended, more);
        let folder = self.record_events(&events);
        let artifacts = folder.stage(&stage).join("artifacts");
        fs::create_dir_all(&artifacts).unwrap();
        fs::write(artifacts.join("evil.html"), "<script>window.pwned=5</script>").unwrap();
        fs::write(folder.dmesg(&stage), format!("[    0.1] {HOSTILE}\n")).unwrap();
        fs::create_dir_all(folder.console(1).parent().unwrap()).unwrap();
        fs::write(folder.console(1), format!("{HOSTILE}\n")).unwrap();
        folder
    }
}

pub(crate) fn failed() -> Outcome {
    Outcome::Failed { reason: "exit status 1".into() }
}

pub(crate) fn id(text: &str) -> RunId {
    text.parse().unwrap()
}
