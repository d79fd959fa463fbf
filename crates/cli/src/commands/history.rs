//! `kiln runs`, `show`, `replay`, `diff` and `history rebuild`: readers of what was recorded.

use std::path::PathBuf;
use std::time::Duration;

use kiln_history::{
    HistoryError, Index, Replay, ReplayOptions, RunDiff, RunFilter, RunFolder, RunSummary,
};
use kiln_model::{RunId, StageName};

use crate::arguments::{DiffArgs, HistoryCommand, ReplayArgs, RunsArgs, ShowArgs};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::hostile;
use crate::reporter::{rows, summary};
use crate::session::Session;
use crate::terminal::{self, Tone, paint};

/// Where the recordings are.
pub(crate) fn runs_folder(session: &Session) -> PathBuf {
    session.home.data().join("runs")
}

/// The index over the recordings, brought up to date. A broken index is never more than a warning.
pub(crate) fn index(session: &Session) -> Result<Index, Failure> {
    let path = session.home.data().join("index.db");
    let trouble = |error: &HistoryError| {
        terminal::say(&format!("warning: {}", hostile::line(&error.to_string())));
    };
    Index::open_or_in_memory(&path, &runs_folder(session), trouble).map_err(from_history)
}

/// A failure of the history in the terms of exit codes and hints.
pub(crate) fn from_history(error: HistoryError) -> Failure {
    let (exit, hint) = match &error {
        HistoryError::NoSuchRun { .. } | HistoryError::Ambiguous { .. } => {
            (Exit::Usage, Some("`kiln runs` lists them"))
        }
        HistoryError::NoRecording { .. } => {
            (Exit::Usage, Some("`kiln show last` lists a run's stages"))
        }
        HistoryError::Full { .. } => (Exit::InfrastructureBroke, Some("df -h; kiln image prune")),
        _ => (Exit::InfrastructureBroke, None),
    };
    let failure = Failure::from(error).with_exit(exit);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// A recorded run by what a person calls it.
pub(crate) fn find(session: &Session, given: &str) -> Result<(RunSummary, RunFolder), Failure> {
    let id = index(session)?.resolve(given).map_err(from_history)?;
    read(session, &id)
}

fn read(session: &Session, id: &RunId) -> Result<(RunSummary, RunFolder), Failure> {
    let folder = RunFolder::of(&runs_folder(session), id);
    let run = RunSummary::read(&folder).map_err(from_history)?;
    Ok((run, folder))
}

/// `kiln runs`
pub(crate) fn runs(session: &Session, args: &RunsArgs) -> Result<Exit, Failure> {
    let filter = RunFilter {
        scenario: args.scenario.clone(),
        word: args.verdict.clone(),
        limit: Some(args.limit),
        ..RunFilter::default()
    };
    let rows = index(session)?.runs(&filter).map_err(from_history)?;
    if session.json() {
        session.out_json(&rows)?;
        return Ok(Exit::Success);
    }
    if rows.is_empty() {
        terminal::say(match (&args.scenario, &args.verdict) {
            (None, None) => "no runs yet: kiln run simple-example",
            _ => "no run matches: `kiln runs` lists all of them",
        });
    }
    for row in rows {
        let tone = match row.word.as_str() {
            "passed" => Tone::Good,
            "failed" => Tone::Bad,
            _ => Tone::Odd,
        };
        let scenario = hostile::line(&row.scenario).into_owned();
        let kernel = hostile::line(&row.kernel).into_owned();
        terminal::out_line(&format!(
            "{}  {} {:>4}/{:<4} {:>8}  {:<24} {}",
            row.id,
            paint(tone, &format!("{:<11}", row.word)),
            row.passed,
            row.stages,
            rows::seconds(row.took_ms),
            hostile::cut(&scenario, 24),
            hostile::cut(&kernel, 60),
        ))?;
    }
    Ok(Exit::Success)
}

/// `kiln show`
pub(crate) fn show(session: &Session, args: &ShowArgs) -> Result<Exit, Failure> {
    let (run, folder) = find(session, &args.run)?;
    if session.json() {
        session.out_json(&run)?;
        return Ok(Exit::Success);
    }
    let head = format!(
        "run {}: {} on {}",
        run.id,
        hostile::line(&run.scenario),
        hostile::line(&run.kernel.release)
    );
    terminal::out_line(&paint(Tone::Bold, &head))?;
    for stage in &run.stages {
        let name = stage.name.as_str();
        terminal::out_line(&match (&stage.outcome, stage.started) {
            (None, None) => rows::not_started_row(name, &paint),
            (outcome, _) => rows::stage_row(name, outcome.as_ref(), stage.took_ms, &paint),
        })?;
    }
    for note in &run.notes {
        let text = hostile::line(&note.text).into_owned();
        terminal::out_line(&format!("note: {}", hostile::cut(&text, 300)))?;
    }
    for line in summary::lines(&run, &folder, terminal::columns(), &paint) {
        terminal::out_line(&line)?;
    }
    Ok(Exit::Success)
}

/// `kiln replay`
pub(crate) fn replay(session: &Session, args: &ReplayArgs) -> Result<Exit, Failure> {
    let Some((given, stage)) = args.stage.split_once('/') else {
        let run = args.stage.as_str();
        let stages = find(session, run).map(|(run, _)| {
            run.stages.iter().map(|stage| format!("{}/{}", run.id, stage.name)).collect::<Vec<_>>()
        });
        let first = stages.ok().and_then(|stages| stages.into_iter().next());
        let example = first.unwrap_or_else(|| "last/scrub".to_owned());
        return Err(Failure::new(Exit::Usage, "which stage of the run?")
            .hint(format!("kiln replay {example}")));
    };
    let stage: StageName = stage.parse().exits(Exit::Usage)?;
    let (run, folder) = find(session, given)?;
    let replay = Replay::open(&folder, run.id.as_str(), &stage).map_err(from_history)?;
    if session.json() {
        let text = replay.plain_text().map_err(from_history)?;
        session.out_json(&serde_json::json!({"run": run.id, "stage": stage, "text": text}))?;
        return Ok(Exit::Success);
    }
    use std::io::IsTerminal as _;
    if !std::io::stdout().is_terminal() {
        terminal::out(&replay.plain_text().map_err(from_history)?)?;
        return Ok(Exit::Success);
    }
    let options =
        ReplayOptions { speed: args.speed, idle_limit: Some(Duration::from_secs_f64(args.idle)) };
    let played = play(replay, options);
    terminal::out(kiln_history::terminal_text::TerminalFilter::RESTORE)?;
    played
}

/// Writes frames with their pauses until the end or Ctrl-C.
fn play(replay: Replay, options: ReplayOptions) -> Result<Exit, Failure> {
    let stop = crate::signals::Interrupted::watch()?;
    for frame in replay.frames(options) {
        let frame = frame.map_err(from_history)?;
        if stop.wait(frame.wait) {
            return Ok(Exit::Interrupted);
        }
        terminal::out(&frame.text)?;
        if terminal::reader_is_gone() {
            break;
        }
    }
    Ok(Exit::Success)
}

/// `kiln diff`
pub(crate) fn diff(session: &Session, args: &DiffArgs) -> Result<Exit, Failure> {
    let index = index(session)?;
    let resolve = |given: &str| index.resolve(given).map_err(from_history);
    let (before, _) = read(session, &resolve(&args.before)?)?;
    let (after, _) = read(session, &resolve(&args.after)?)?;
    let diff = RunDiff::of(&before, &after, |stage| {
        // Without its past, a change of duration is "too few to tell".
        index.durations(&after.scenario, stage, &after.id).unwrap_or_default()
    });
    // A stage that only the second run has fails anew as well.
    let added = diff.added.iter().filter_map(|stage| after.stage(stage));
    let worse = !diff.new_failures.is_empty() || added.into_iter().any(|stage| stage.failed());
    let exit = if args.exit_code && worse { Exit::TestsFailed } else { Exit::Success };
    if session.json() {
        session.out_json(&diff)?;
        return Ok(exit);
    }
    let heading = |run: &RunSummary| {
        let kernel = hostile::line(&run.kernel.release).into_owned();
        format!("{} ({}, {}, {})", run.id, hostile::line(&run.scenario), kernel, run.word())
    };
    terminal::out_line(&format!("from {}\nto   {}", heading(&before), heading(&after)))?;
    terminal::out(&diff.to_string())?;
    Ok(exit)
}

/// `kiln history`
pub(crate) fn history(session: &Session, command: &HistoryCommand) -> Result<Exit, Failure> {
    let HistoryCommand::Rebuild = command;
    let path = session.home.data().join("index.db");
    let done = index(session)?.rebuild().map_err(from_history)?;
    for (run, error) in &done.broken {
        terminal::say(&format!("warning: run {run}: {}", hostile::line(&error.to_string())));
    }
    if session.json() {
        session.out_json(&serde_json::json!({
            "index": path, "read": done.read, "broken": done.broken.len()
        }))?;
    } else {
        terminal::out_line(&format!("{}: {} runs", path.display(), done.read))?;
    }
    Ok(Exit::Success)
}
