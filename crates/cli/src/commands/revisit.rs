//! Going back to a stage of a recorded run: the kernel and image it ran on, and its disks as they were kept.

use std::path::Path;

use kiln_history::{RunFolder, RunSummary};
use kiln_model::StageName;
use kiln_model::job::{self, JobSpec, KEPT_SNAPSHOT, KeepDisks};
use kiln_model::root::{JobRoot, RootChoice};
use kiln_model::scenario::nearest;
use kiln_runner::{Equipment, local};
use kiln_store::{Reply, Request, Store, StoreError, Why};

use super::{history, target};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::hostile;
use crate::session::Session;
use crate::terminal;

/// A stage of a run, as far as it can be had again.
pub(crate) struct Revisited {
    /// The job it was part of, without stages, its disks starting as they were kept.
    pub(crate) spec: JobSpec,
    /// The image, held while it is needed, if it had to be built again.
    pub(crate) _equipment: Option<Equipment>,
}

/// `RUN/STAGE`, if that is what the words name: a run is `last` or begins with digits, and no file is meant.
pub(crate) fn parse(text: &str) -> Option<(&str, &str)> {
    let (run, stage) = text.split_once('/')?;
    let is_run = run == "last"
        || (run.starts_with(|c: char| c.is_ascii_digit())
            && run.chars().all(|c| c.is_ascii_hexdigit() || c == '-'));
    let is_file = stage.ends_with(".toml") || Path::new(text).exists();
    (is_run && !is_file && !stage.contains('/')).then_some((run, stage))
}

/// Finds what a stage of a run ran on.
pub(crate) fn revisit(
    session: &mut Session,
    given: &str,
    stage: &str,
) -> Result<Revisited, Failure> {
    let (run, folder) = history::find(session, given)?;
    let stage: StageName = stage.parse().exits(Exit::Usage)?;
    if run.stage(&stage).is_none() {
        let names = run.stages.iter().map(|stage| stage.name.as_str());
        let meant = nearest(stage.as_str(), names.clone())
            .map_or_else(String::new, |name| format!(" (did you mean {name}?)"));
        let text = format!("run {} has no stage {stage}{meant}", run.id);
        let names: Vec<String> = names.map(|name| format!("{}/{name}", run.id)).collect();
        return Err(
            Failure::new(Exit::Usage, text).hint(format!("kiln shell {}", names.join(", or ")))
        );
    }
    let mut spec = job_of(&run, &folder, &stage)?;
    let equipment = image_again(session, &run, &spec)?;
    keep_environment(&mut spec, &stage);
    clone_kept_disks(&run, &mut spec, &stage)?;
    spec.stages.clear();
    spec.keep_disks = KeepDisks::Never;
    // Its disks start as they do nowhere else.
    spec.warm = None;
    spec.first_machine = 1;
    Ok(Revisited { spec, _equipment: equipment })
}

/// The spec of the job that ran a stage.
fn job_of(run: &RunSummary, folder: &RunFolder, stage: &StageName) -> Result<JobSpec, Failure> {
    for number in 1..=u32::from(u8::MAX) {
        let path = local::spec_path(folder.path(), number);
        if !path.is_file() {
            break;
        }
        let text = std::fs::read_to_string(&path)
            .tried(|| format!("cannot read {}", path.display()))
            .exits(Exit::Setup)?;
        let spec = JobSpec::parse(&text)
            .tried(|| format!("{} cannot be used", path.display()))
            .exits(Exit::Usage)
            .hint(format!("kiln run --rerun {} --stage {stage}", run.id))?;
        if spec.stages.iter().any(|of| of.name == *stage) {
            return Ok(spec);
        }
    }
    let text = format!("run {} did not keep the job of stage {stage}", run.id);
    Err(Failure::new(Exit::Usage, text)
        .hint(format!("kiln run --rerun {} --stage {stage}", run.id)))
}

/// Caches may be deleted at any time: an image that is gone is built again, if it still comes out the same.
fn image_again(
    session: &mut Session,
    run: &RunSummary,
    spec: &JobSpec,
) -> Result<Option<Equipment>, Failure> {
    let plan = match &spec.root {
        JobRoot::Plan { plan } => Some(plan),
        JobRoot::Initramfs | JobRoot::Disk => None,
    };
    let initramfs = spec.initramfs.as_ref();
    let there = [plan, initramfs].into_iter().flatten().all(|path| path.is_file());
    if there && spec.kernel.boot.is_file() {
        return Ok(None);
    }
    let changed = |what: &str| {
        let text = format!("{what} of run {} is not there any more", run.id);
        Failure::new(Exit::BuildFailed, text).hint(format!("kiln run --rerun {}", run.id))
    };
    let loaded = target::scenario(&run.scenario_source)?;
    let kernel = crate::rerun::kernel_of(&run.command);
    let kernel = target::chosen_kernel(session, kernel.as_deref())?;
    if kernel.identity() != run.kernel {
        return Err(changed("the kernel"));
    }
    let root = match spec.root {
        JobRoot::Initramfs => RootChoice::Initramfs,
        JobRoot::Plan { .. } => RootChoice::Disk,
        JobRoot::Disk => RootChoice::Clone,
    };
    let equipment = target::equipment(session, &loaded, &kernel, root)?;
    let same =
        equipment.initramfs() == initramfs && plan.is_none_or(|plan| equipment.image.path == *plan);
    if !same || !spec.kernel.boot.is_file() {
        return Err(changed("the image"));
    }
    Ok(Some(equipment))
}

fn keep_environment(spec: &mut JobSpec, stage: &StageName) {
    let of = spec.stages.iter().find(|of| of.name == *stage);
    let own = of.map(|of| of.environment.clone()).unwrap_or_default();
    spec.environment.retain(|(name, _)| !own.iter().any(|(other, _)| other == name));
    spec.environment.extend(own);
}

/// The disks start as they were kept after the stage; those that were not start as they did in the run.
fn clone_kept_disks(
    run: &RunSummary,
    spec: &mut JobSpec,
    stage: &StageName,
) -> Result<(), Failure> {
    let Some(pool) = spec.pool.clone().filter(|pool| !spec.disks.is_empty() && pool.exists())
    else {
        return Ok(());
    };
    let store = target::pool_access().open(&pool).exits(Exit::InfrastructureBroke)?;
    let mut missing = Vec::new();
    for disk in &mut spec.disks {
        let name = job::kept_disk(&run.id, stage, &disk.serial);
        match snapshot_size(&store, &name).exits(Exit::InfrastructureBroke)? {
            Some(size) => {
                disk.base = Some(format!("{name}@{KEPT_SNAPSHOT}"));
                disk.size = size;
            }
            None => missing.push(hostile::line(&disk.serial).into_owned()),
        }
    }
    if !missing.is_empty() {
        terminal::say(&format!(
            "warning: {} as it was after {stage} was not kept, or is removed; it starts as it did in the run",
            missing.join(", ")
        ));
    }
    Ok(())
}

fn snapshot_size(store: &Store, disk: &str) -> Result<Option<u64>, StoreError> {
    match store.ask(Request::Snapshots { disk: disk.to_owned() }) {
        Ok(Reply::Snapshots { snapshots }) => {
            Ok(snapshots.into_iter().find(|is| is.snapshot == KEPT_SNAPSHOT).map(|is| is.size))
        }
        Ok(_) => Ok(None),
        Err(StoreError::Refused(refusal)) if matches!(refusal.why, Why::NoDisk { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_of_a_run_is_told_from_a_path() {
        assert_eq!(parse("last/scrub"), Some(("last", "scrub")));
        assert_eq!(parse("20261121-14/a.b"), Some(("20261121-14", "a.b")));
        for path in ["scenarios/raid.toml", "2026/raid.toml", "simple-example", "../last/x", "last"]
        {
            assert_eq!(parse(path), None, "{path}");
        }
    }
}
