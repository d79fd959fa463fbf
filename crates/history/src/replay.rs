//! A stage's terminal, shown again: what to write, and how long to wait before.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::PathBuf;
use std::time::Duration;

use kiln_model::StageName;

use crate::HistoryError;
use crate::cast::{CastHeader, CastKind, CastReader};
use crate::folder::RunFolder;
use crate::terminal_text::{TerminalFilter, plain};

/// How to play.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReplayOptions {
    /// 2 plays twice as fast; not positive or not a number plays without waiting.
    pub speed: f64,
    /// Longer silences are cut to this.
    pub idle_limit: Option<Duration>,
}

impl Default for ReplayOptions {
    fn default() -> ReplayOptions {
        ReplayOptions { speed: 1.0, idle_limit: Some(Duration::from_secs(2)) }
    }
}

/// An open recording. Its [`frames`](Replay::frames) are safe to write to a terminal; afterwards
/// [`TerminalFilter::RESTORE`] puts the terminal back.
#[derive(Debug)]
pub struct Replay {
    path: PathBuf,
    cast: CastReader<BufReader<File>>,
}

/// One step of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Wait so long first.
    pub wait: Duration,
    /// Then write this.
    pub text: String,
}

impl Replay {
    /// Opens the recording of a stage; `run` is for the error.
    pub fn open(folder: &RunFolder, run: &str, stage: &StageName) -> Result<Replay, HistoryError> {
        let path = folder.cast(stage);
        match File::open(&path) {
            Ok(file) => {
                let cast = CastReader::open(BufReader::new(file), &path)?;
                Ok(Replay { path, cast })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(HistoryError::NoRecording { run: run.into(), stage: stage.to_string() })
            }
            Err(source) => Err(HistoryError::Io { act: "read", path, source }),
        }
    }

    /// Its first line.
    pub fn header(&self) -> &CastHeader {
        self.cast.header()
    }

    /// What to write and when.
    pub fn frames(
        mut self,
        options: ReplayOptions,
    ) -> impl Iterator<Item = Result<Frame, HistoryError>> {
        let mut filter = TerminalFilter::default();
        let mut shown = Duration::ZERO;
        std::iter::from_fn(move || {
            loop {
                let event = match self.cast.next_event() {
                    Ok(event) => event?,
                    Err(source) => {
                        let path = self.path.clone();
                        return Some(Err(HistoryError::Io { act: "read", path, source }));
                    }
                };
                let CastKind::Output(text) = event.kind else { continue };
                let text = filter.pass(&text).into_owned();
                if text.is_empty() {
                    continue;
                }
                let silence = event.at.saturating_sub(shown);
                shown = event.at;
                let silence = options.idle_limit.map_or(silence, |limit| silence.min(limit));
                return Some(Ok(Frame { wait: scale(silence, options.speed), text }));
            }
        })
    }

    /// All of it as plain text, without waiting.
    pub fn plain_text(mut self) -> Result<String, HistoryError> {
        let mut all = String::new();
        while let Some(event) =
            self.cast.next_event().map_err(HistoryError::io("read", &self.path))?
        {
            if let CastKind::Output(text) = event.kind {
                all.push_str(&text);
            }
        }
        Ok(plain(&all))
    }
}

fn scale(wait: Duration, speed: f64) -> Duration {
    if speed > 0.0 && speed.is_finite() {
        Duration::try_from_secs_f64(wait.as_secs_f64() / speed).unwrap_or(Duration::MAX)
    } else {
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(text: &str, options: ReplayOptions) -> Vec<(u128, String)> {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::at(dir.path());
        let stage: StageName = "s".parse().unwrap();
        std::fs::create_dir_all(folder.stage(&stage)).unwrap();
        std::fs::write(folder.cast(&stage), text).unwrap();
        Replay::open(&folder, "r", &stage)
            .unwrap()
            .frames(options)
            .map(|frame| frame.map(|frame| (frame.wait.as_millis(), frame.text)).unwrap())
            .collect()
    }

    const CAST: &str = "{\"version\":2,\"width\":80,\"height\":24}\n[1.0,\"o\",\"a\"]\n[1.5,\"o\",\"\\u001b]0;t\"]\n[2.0,\"o\",\"itle\\u0007b\"]\n[62.0,\"o\",\"c\"]\n";

    #[test]
    fn silences_are_kept_cut_and_scaled_and_hidden_sequences_cost_no_time() {
        let options = ReplayOptions { speed: 2.0, idle_limit: Some(Duration::from_secs(10)) };
        let expected = [(500, "a".to_owned()), (500, "b".to_owned()), (5000, "c".to_owned())];
        assert_eq!(replay(CAST, options), expected);
        let at_once = ReplayOptions { speed: 0.0, idle_limit: None };
        assert!(replay(CAST, at_once).iter().all(|(wait, _)| *wait == 0));
    }

    #[test]
    fn a_stage_without_recording_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error =
            Replay::open(&RunFolder::at(dir.path()), "r", &"s".parse().unwrap()).unwrap_err();
        assert!(matches!(error, HistoryError::NoRecording { .. }), "{error}");
    }
}
