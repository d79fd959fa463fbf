//! Disks that runs kept in the pool: so many runs', and none of runs that were forgotten.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_model::RunId;
use kiln_model::job::KEPT;
use kiln_store::{Reply, Request, StoreError};

use super::{history, target};
use crate::session::Session;

/// Of so many runs, the latest ones, the disks stay.
const KEPT_RUNS: usize = 10;

/// Removes the disks of older runs, and of runs whose recording is gone.
pub(crate) fn forget_old(session: &Session) -> Result<(), StoreError> {
    let pool = target::pool(session);
    if !pool.exists() {
        return Ok(());
    }
    let store = target::pool_access().open(&pool)?;
    let Reply::Disks { disks } = store.ask(Request::List)? else { return Ok(()) };
    let runs = history::runs_folder(session);
    let names = too_old(disks.iter().map(|disk| disk.name.as_str()), &runs);
    if !names.is_empty() {
        store.ask(Request::Remove { names, snapshots: true })?;
    }
    Ok(())
}

fn too_old<'a>(disks: impl Iterator<Item = &'a str>, runs: &Path) -> Vec<String> {
    let mut by_run: BTreeMap<RunId, Vec<String>> = BTreeMap::new();
    for disk in disks {
        let run = disk.strip_prefix(KEPT).and_then(|rest| rest.split(':').next()?.parse().ok());
        if let Some(run) = run {
            by_run.entry(run).or_default().push(disk.to_owned());
        }
    }
    // Ids sort by time.
    let latest = by_run.len().saturating_sub(KEPT_RUNS);
    let old = by_run
        .into_iter()
        .enumerate()
        .filter(|(at, (run, _))| *at < latest || !runs.join(run.as_str()).is_dir());
    old.flat_map(|(_, (_, disks))| disks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_of_old_and_forgotten_runs_go_and_all_others_stay() {
        let runs = tempfile::tempdir().unwrap();
        let mut disks = vec!["mine".to_owned(), "base:x:00".into(), "run:mine".into()];
        for day in 10..22 {
            let run = format!("202611{day}-120000-0000");
            // The last but one was forgotten.
            if day != 20 {
                std::fs::create_dir(runs.path().join(&run)).unwrap();
            }
            disks.push(format!("run:{run}:write:a"));
        }
        let gone = too_old(disks.iter().map(String::as_str), runs.path());
        let days: Vec<&str> = gone.iter().map(|disk| &disk[10..12]).collect();
        assert_eq!(days, ["10", "11", "20"]);
    }
}
