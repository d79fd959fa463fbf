use kiln_model::event::Event;

use super::*;
use crate::sample;

fn failed() -> Outcome {
    Outcome::Failed { reason: "exit status 1".into() }
}

fn write(runs: &Path, events: &[Event], id: &str) {
    let folder = runs.join(id);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("events.jsonl"), sample::lines(events)).unwrap();
}

fn record(runs: &Path, id: &str, digest: &str, outcomes: &[Outcome]) {
    write(runs, &sample::scenario_events(id, "smoke", digest, outcomes), id);
}

fn ids(index: &Index, filter: &RunFilter) -> Vec<String> {
    index.runs(filter).unwrap().into_iter().map(|run| run.id.to_string()).collect()
}

struct Place {
    _dir: tempfile::TempDir,
    runs: PathBuf,
    db: PathBuf,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let (runs, db) = (dir.path().join("runs"), dir.path().join("state/index.db"));
    record(&runs, "20260101-000000-0001", "a", &[Outcome::Passed, Outcome::Passed]);
    record(&runs, "20260102-000000-0002", "b", &[Outcome::Passed, failed()]);
    record(&runs, "20260102-000000-0a02", "c", &[Outcome::Passed, failed()]);
    Place { _dir: dir, runs, db }
}

#[test]
fn a_refresh_reads_only_what_changed_and_forgets_what_is_gone() {
    let place = place();
    let mut index = Index::open(&place.db, &place.runs).unwrap();
    assert_eq!(index.refresh().unwrap().read, 3);
    assert_eq!(index.refresh().unwrap().read, 0);
    fs::remove_dir_all(place.runs.join("20260101-000000-0001")).unwrap();
    record(&place.runs, "20260103-000000-0003", "d", &[Outcome::Passed]);
    fs::create_dir(place.runs.join("20260104-000000-0004")).unwrap();
    let done = index.refresh().unwrap();
    assert_eq!((done.read, done.forgotten, done.broken.len()), (1, 1, 1));
    drop(index);
    let mut index = Index::open(&place.db, &place.runs).unwrap();
    assert_eq!(index.rebuild().unwrap().read, 3);
    assert_eq!(ids(&index, &RunFilter::default()).len(), 3);
}

#[test]
fn a_run_that_goes_on_is_read_again_when_it_ended() {
    let place = place();
    let run: RunId = "20260105-000000-0005".parse().unwrap();
    let mut recorder = crate::Recorder::create(&place.runs, &run).unwrap();
    recorder.record(&sample::events(run.as_str(), &[])[0]).unwrap();
    let mut index = Index::open(&place.db, &place.runs).unwrap();
    index.refresh().unwrap();
    assert_eq!(index.runs(&RunFilter::default()).unwrap()[0].word, "running");
    drop(recorder);
    index.refresh().unwrap();
    assert_eq!(index.runs(&RunFilter::default()).unwrap()[0].word, "interrupted");
}

#[test]
fn runs_are_named_by_a_unique_beginning_or_by_age() {
    let place = place();
    let index = Index::in_memory(&place.runs).unwrap();
    let named = |given: &str| index.resolve(given).map(|id| id.to_string());
    assert_eq!(named("last").unwrap(), "20260102-000000-0a02");
    assert_eq!(named("last~1").unwrap(), "20260102-000000-0002");
    assert_eq!(named("20260101").unwrap(), "20260101-000000-0001");
    assert_eq!(named("20260102-000000-00").unwrap(), "20260102-000000-0002");
    assert!(matches!(named("2026010"), Err(HistoryError::Ambiguous { .. })));
    for nothing in ["last~3", "", "x", "%", "last~x", "2026010_"] {
        let error = named(nothing).unwrap_err();
        let expected = matches!(error, HistoryError::NoSuchRun { known: 3, .. })
            || (nothing.is_empty() && matches!(error, HistoryError::Ambiguous { .. }));
        assert!(expected, "{nothing:?}: {error}");
    }
}

#[test]
fn lists_are_filtered_by_what_people_ask_for() {
    let place = place();
    let index = Index::in_memory(&place.runs).unwrap();
    let failed = RunFilter { word: Some("failed".into()), limit: Some(1), ..RunFilter::default() };
    assert_eq!(ids(&index, &failed), ["20260102-000000-0a02"]);
    let kernel = RunFilter { kernel: Some("b".into()), ..RunFilter::default() };
    assert_eq!(ids(&index, &kernel), ["20260102-000000-0002"]);
    let release = RunFilter { kernel: Some("6.12.".into()), ..RunFilter::default() };
    assert_eq!(ids(&index, &release).len(), 3);
    let scenario = RunFilter { scenario: Some("other".into()), ..RunFilter::default() };
    assert!(ids(&index, &scenario).is_empty());
}

#[test]
fn where_a_stage_stands_is_told_from_runs_up_to_the_one_asked_about() {
    let place = place();
    let index = Index::in_memory(&place.runs).unwrap();
    let of = |id: &str, stage: &str| {
        let run = RunSummary::read(&RunFolder::at(place.runs.join(id))).unwrap();
        index.standing(&run, &stage.parse().unwrap()).unwrap()
    };
    let first: RunId = "20260101-000000-0001".parse().unwrap();
    let second: RunId = "20260102-000000-0002".parse().unwrap();
    assert_eq!(
        of("20260102-000000-0002", "stage-2"),
        Standing::NewFailure { passed_in: Some(first) }
    );
    assert_eq!(
        of("20260102-000000-0a02", "stage-2"),
        Standing::KnownFailure { since: second.clone(), runs: 2 }
    );
    assert_eq!(of("20260102-000000-0a02", "stage-1"), Standing::Passing { runs: 3 });
    let stage: StageName = "stage-1".parse().unwrap();
    assert_eq!(index.durations("smoke", &stage, &second).unwrap(), [1140]);
}

#[test]
fn a_broken_locked_or_later_database_costs_no_answer() {
    let place = place();
    fs::create_dir_all(place.db.parent().unwrap()).unwrap();
    let answers = |expected_trouble: usize, what: &str| {
        let mut troubles = Vec::new();
        let index = Index::open_or_in_memory(&place.db, &place.runs, |error| {
            troubles.push(error.to_string());
        })
        .unwrap();
        assert_eq!(ids(&index, &RunFilter::default()).len(), 3, "{what}");
        assert_eq!(troubles.len(), expected_trouble, "{what}: {troubles:?}");
    };
    fs::write(
        &place.db,
        "this is no database, and quite long enough to be taken for one".repeat(50),
    )
    .unwrap();
    answers(1, "garbage");
    answers(0, "garbage, the second time");
    {
        let db = Connection::open(&place.db).unwrap();
        db.execute_batch("DROP TABLE splats; DROP TABLE stages; DELETE FROM runs;").unwrap();
    }
    answers(1, "half of its tables");
    answers(0, "half of its tables, the second time");
    {
        let db = Connection::open(&place.db).unwrap();
        db.pragma_update(None, "user_version", 99).unwrap();
    }
    answers(1, "a later version");
    {
        let db = Connection::open(&place.db).unwrap();
        db.pragma_update(None, "user_version", 1).unwrap();
        db.execute_batch("BEGIN EXCLUSIVE").unwrap();
        answers(1, "locked");
    }
    fs::remove_file(&place.db).unwrap();
    fs::create_dir(&place.db).unwrap();
    answers(1, "a folder in its place");
}

#[test]
fn a_known_kernel_report_is_found_by_its_signature() {
    let place = place();
    let crash = Outcome::Crashed { signature: "panic: x".into() };
    record(&place.runs, "20260106-000000-0006", "e", std::slice::from_ref(&crash));
    record(&place.runs, "20260107-000000-0007", "f", &[crash]);
    let index = Index::in_memory(&place.runs).unwrap();
    let last = index.resolve("last").unwrap();
    let seen = index.seen_splat("panic: x", &last).unwrap().unwrap();
    assert_eq!((seen.runs, seen.first.as_str()), (2, "20260106-000000-0006"));
    assert_eq!(index.seen_splat("panic: y", &last).unwrap(), None);
}
