//! The site: a folder of plain files that tells every run, to be opened from `file://` or served by anything
//! (`docs/formats/site.md`).
//!
//! ```text
//! index.html              scenarios, their stages over their last runs, and the newest runs
//! runs/index.html         every run
//! runs/RUN/index.html     one run, failures first
//! runs/RUN/STAGE.html     one stage: recording, kernel reports, logs, files
//! runs/RUN/files/…        its evidence, as files that no browser executes
//! runs/RUN/run.json       what the pages over all runs are made from
//! badges/SCENARIO.svg     how its last run ended
//! assets/…                style, script, player
//! ```
//!
//! The pages over all runs are made from the `run.json` files alone, so a site may hold runs whose recordings are
//! long gone, or came from another machine. Everything a guest said is hostile text: it is escaped by the
//! templates, cleaned by [`terminal_text`](crate::terminal_text), and no page may load or run anything but `assets`.

mod assets;
mod badge;
mod evidence;
mod front;
mod page;
mod run_page;
mod stage_page;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kiln_model::{RunId, StageName};
use serde::{Deserialize, Serialize};

use crate::HistoryError;
use crate::folder::{RunFolder, run_ids};
use crate::standing::{Past, Standing};
use crate::summary::{RunState, RunSummary};

use assets::HAS_PLAYER;
pub use badge::badge;

/// Grows when pages change, so that an incremental build makes them again.
const PAGE_VERSION: u32 = 1;

/// A `run.json` larger than this is none of ours.
const LARGEST_RUN_JSON: u64 = 64 << 20;

/// What the site keeps of a run.
#[derive(Debug, Serialize, Deserialize)]
struct SiteRun {
    /// [`PAGE_VERSION`] of the pages beside it.
    page: u32,
    /// Whether they can play recordings.
    player: bool,
    /// The run.
    run: RunSummary,
}

/// One file of the site, named relative to its folder with `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteFile {
    /// Where it belongs.
    pub path: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// What a build did.
#[derive(Debug)]
pub struct Built {
    /// The page over all runs.
    pub index: PathBuf,
    /// Runs whose pages were written.
    pub written: Vec<RunId>,
    /// How many were there already, unchanged.
    pub unchanged: usize,
    /// Recordings that could not be read.
    pub broken: Vec<(RunId, HistoryError)>,
}

/// Whether this build can play recordings in a page, or only name `kiln replay`.
pub fn has_player() -> bool {
    HAS_PLAYER
}

/// Where the page of a run is.
pub fn run_page(out: &Path, run: &RunId) -> PathBuf {
    out.join("runs").join(run.as_str()).join("index.html")
}

/// Brings the site in `out` up to the recordings below `runs`: `only` those, or all. Runs that are in the site
/// already stay, whether their recordings are still there or not.
pub fn build(runs: &Path, only: Option<&[RunId]>, out: &Path) -> Result<Built, HistoryError> {
    let wanted = match only {
        Some(ids) => ids.to_vec(),
        None => run_ids(runs)?,
    };
    fs::create_dir_all(out).map_err(HistoryError::io("create", out))?;
    let mut told: HashMap<RunId, SiteRun> =
        read_told(out)?.into_iter().map(|told| (told.run.id.clone(), told)).collect();
    let mut built = Built {
        index: out.join("index.html"),
        written: Vec::new(),
        unchanged: 0,
        broken: Vec::new(),
    };
    let mut fresh: Vec<RunFolder> = Vec::new();
    for id in wanted {
        let folder = RunFolder::of(runs, &id);
        match RunSummary::read(&folder) {
            Ok(run) => {
                let same = told.get(&id).is_some_and(|told| {
                    told.page == PAGE_VERSION && told.player == HAS_PLAYER && told.run == run
                });
                if same && run.state == RunState::Ended {
                    built.unchanged += 1;
                } else {
                    built.written.push(id.clone());
                    fresh.push(folder);
                }
                told.insert(id, SiteRun { page: PAGE_VERSION, player: HAS_PLAYER, run });
            }
            Err(error) => built.broken.push((id, error)),
        }
    }
    let mut all: Vec<RunSummary> = told.into_values().map(|told| told.run).collect();
    all.sort_by(|a, b| a.id.cmp(&b.id));
    for (id, folder) in built.written.iter().zip(&fresh) {
        if let Ok(at) = all.binary_search_by(|run| run.id.cmp(id)) {
            write_run(folder, &all[..=at], out)?;
        }
    }
    for file in front_pages(&all) {
        write(out, &file)?;
    }
    Ok(built)
}

/// The pages over all runs (ordered by id), the badges and the assets.
pub fn front_pages(all: &[RunSummary]) -> Vec<SiteFile> {
    let mut files = front::pages(all);
    files.extend(assets::files());
    files
}

/// The run a `run.json` tells of.
pub(crate) fn parse_run_json(bytes: &[u8]) -> Option<RunSummary> {
    serde_json::from_slice::<SiteRun>(bytes).ok().map(|told| told.run)
}

/// The runs a site tells of, ordered by id.
pub fn told_runs(out: &Path) -> Result<Vec<RunSummary>, HistoryError> {
    Ok(read_told(out)?.into_iter().map(|told| told.run).collect())
}

fn read_told(out: &Path) -> Result<Vec<SiteRun>, HistoryError> {
    let runs = out.join("runs");
    let mut told = Vec::new();
    for id in run_ids(&runs)? {
        let path = runs.join(id.as_str()).join("run.json");
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            // A build that was cut short: the run is written last, and so again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(HistoryError::Io { act: "read", path, source }),
        };
        let mut text = Vec::new();
        file.take(LARGEST_RUN_JSON)
            .read_to_end(&mut text)
            .map_err(HistoryError::io("read", &path))?;
        if let Ok(run) = serde_json::from_slice::<SiteRun>(&text)
            && run.run.id == id
        {
            told.push(run);
        }
    }
    Ok(told)
}

/// Writes the pages and the evidence of the last of `history`. Its `run.json` comes last: while it is missing, the run
/// is not part of the site.
fn write_run(folder: &RunFolder, history: &[RunSummary], out: &Path) -> Result<(), HistoryError> {
    let Some((run, earlier)) = history.split_last() else { return Ok(()) };
    let below = format!("runs/{}", run.id);
    let evidence = evidence::collect(folder, run, &out.join(&below))?;
    let standings: Vec<Standing> =
        run.stages.iter().map(|stage| standing(run, earlier, &stage.name)).collect();
    for (stage, standing) in run.stages.iter().zip(&standings) {
        let page = stage_page::page(folder, run, stage, standing, &evidence);
        write(out, &SiteFile { path: format!("{below}/{}.html", stage.name), bytes: page })?;
    }
    let previous = earlier.iter().rev().find(|other| other.scenario == run.scenario);
    let page = run_page::page(run, &standings, previous, &evidence);
    write(out, &SiteFile { path: format!("{below}/index.html"), bytes: page })?;
    let told = SiteRun { page: PAGE_VERSION, player: HAS_PLAYER, run: run.clone() };
    let path = out.join(&below).join("run.json");
    let bytes = serde_json::to_vec(&told).map_err(|error| HistoryError::Io {
        act: "write",
        path,
        source: error.into(),
    })?;
    write(out, &SiteFile { path: format!("{below}/run.json"), bytes })
}

/// Where a stage stood after a run, by the runs before it.
fn standing(run: &RunSummary, earlier: &[RunSummary], stage: &StageName) -> Standing {
    let with_this = std::iter::once(run).chain(earlier.iter().rev());
    let past: Vec<Past> = with_this
        .filter(|other| other.scenario == run.scenario)
        .filter_map(|other| {
            let found = other.stage(stage)?;
            Some(Past {
                run: other.id.clone(),
                stage: stage.clone(),
                kernel: other.kernel.digest.clone(),
                outcome: found.outcome.clone()?,
                took_ms: found.took_ms,
            })
        })
        .take(4 * crate::standing::WINDOW)
        .collect();
    Standing::judge(&past)
}

/// Writes a file beside its place and moves it there: who looks at the site sees whole pages only.
fn write(out: &Path, file: &SiteFile) -> Result<(), HistoryError> {
    let path = out.join(&file.path);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(HistoryError::io("create", folder))?;
    }
    if fs::read(&path).is_ok_and(|old| old == file.bytes) {
        return Ok(());
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    fs::write(&beside, &file.bytes).and_then(|()| fs::rename(&beside, &path)).map_err(|source| {
        let _ = fs::remove_file(&beside);
        crate::append::failure("write", &path, source)
    })
}
