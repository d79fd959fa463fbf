//! The plan: what a run will do, computed purely from a scenario, a kernel and the user's choices.
//!
//! The same input gives the same plan. `kiln plan` prints it; `kiln run` turns it into a [`JobSpec`] once the
//! image is there ([`Plan::job_spec`]).

use std::path::PathBuf;
use std::time::Duration;

use crate::event::KernelIdentity;
use crate::job::{self, JobKernel, JobSpec, KeepDisks, Machine};
use crate::restore::{PREPARE_STAGE, Restore, Warm};
use crate::root::{JobRoot, RootChoice};
use crate::scenario::{Disk, MachineCount, MachineWish, Scenario, Script, Stage, TimeLimit};
use crate::wildcard::matches;
use crate::{RunId, StageName, scenario};

/// What the user chose on top of the scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// Stages by name or [wildcard](crate::wildcard); empty means all.
    pub stages: Vec<String>,
    /// Variables for every stage; these win over the scenario's.
    pub environment: Vec<(String, String)>,
    /// Arguments appended to every stage's own.
    pub arguments: Vec<String>,
    /// A timeout for every stage, whatever the scenario says.
    pub timeout: Option<TimeLimit>,
    /// Wishes that win over the scenario's: environment variables and flags.
    pub machine: MachineWish,
    /// Wishes the scenario wins over: user and project configuration.
    pub machine_defaults: MachineWish,
    /// When the disks of machines are kept.
    pub keep_disks: KeepDisks,
}

/// What a run will do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The scenario's name.
    pub scenario: String,
    /// The kernel under test.
    pub kernel: KernelIdentity,
    /// The machine.
    pub machine: Machine,
    /// Kernel parameters beyond Kiln's own.
    pub kernel_parameters: Vec<String>,
    /// Whether parameters that change the kernel's behaviour may be used to boot faster.
    pub fast: bool,
    /// Where the root file system is asked to be.
    pub root: RootChoice,
    /// Where machines start.
    pub restore: Restore,
    /// Whether the first stage prepares every machine, also those that boot.
    pub prepared: bool,
    /// The disks of every machine.
    pub disks: Vec<Disk>,
    /// Environment of every stage, sorted by name.
    pub environment: Vec<(String, String)>,
    /// The chosen stages, in the scenario's order.
    pub stages: Vec<Stage>,
    /// The stages that were not chosen.
    pub left_out: Vec<StageName>,
    /// When the disks of machines are kept.
    pub keep_disks: KeepDisks,
    /// How many machines run at once, at most.
    pub machines: u8,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The scenario has no stages at all.
    #[error("scenario {scenario} has no stages: it is for `kiln shell {scenario}`")]
    NoStages {
        /// Its name.
        scenario: String,
    },
    /// A pattern chose nothing.
    #[error("no stage of {scenario} matches {pattern:?}{}; its stages: {}", meant(nearest.as_deref()), stages.join(", "))]
    NothingSelected {
        /// The scenario's name.
        scenario: String,
        /// The pattern, as the user wrote it.
        pattern: String,
        /// A stage with nearly that name.
        nearest: Option<String>,
        /// What there is to choose from.
        stages: Vec<String>,
    },
    /// A chosen variable that cannot be handed to a process.
    #[error("{why}")]
    Variable {
        /// The rule it breaks.
        why: String,
    },
}

fn meant(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(" (did you mean {name}?)"))
}

/// A stage whose script file nobody read; see [`Scenario::load_scripts`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the script of stage {stage} was not read")]
pub struct UnreadScript {
    /// Which stage.
    pub stage: StageName,
}

/// What a job needs and a plan cannot know: where things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobPlaces {
    /// The run.
    pub run: RunId,
    /// Its folder.
    pub folder: PathBuf,
    /// The kernel image to boot.
    pub boot: PathBuf,
    /// The initramfs to boot; none where the kernel mounts its root disk by itself.
    pub initramfs: Option<PathBuf>,
    /// Where the root file system is.
    pub root: JobRoot,
    /// Kernel modules to load before the first stage.
    pub modules: Vec<String>,
    /// The pool of the disks.
    pub pool: Option<PathBuf>,
    /// The disks, with the snapshots they start as and their sizes, in the plan's order.
    pub disks: Vec<job::Disk>,
    /// The folder of saved machines; without it all boot.
    pub warm: Option<PathBuf>,
}

/// Computes what a run will do.
pub fn plan(
    scenario: &Scenario,
    kernel: &KernelIdentity,
    choices: &Choices,
) -> Result<Plan, PlanError> {
    if scenario.stages.is_empty() {
        return Err(PlanError::NoStages { scenario: scenario.name.clone() });
    }
    for pattern in &choices.stages {
        if !scenario.stages.iter().any(|stage| matches(pattern, stage.name.as_str())) {
            return Err(PlanError::NothingSelected {
                scenario: scenario.name.clone(),
                pattern: pattern.chars().take(200).collect(),
                nearest: scenario::nearest_stage(pattern, &scenario.stages),
                stages: scenario.stages.iter().map(|stage| stage.name.to_string()).collect(),
            });
        }
    }
    for (name, value) in &choices.environment {
        scenario::check_variable(name, value).map_err(|why| PlanError::Variable { why })?;
    }
    let wish =
        choices.machine.clone().over(&scenario.machine.clone().over(&choices.machine_defaults));
    let prepares =
        scenario.stages.first().is_some_and(|stage| stage.name.as_str() == PREPARE_STAGE);
    let restore = wish.restore.unwrap_or_default();
    // A flag may have them boot; what their stages rely on is the scenario's to say.
    let asked = [Some(restore), scenario.machine.restore].contains(&Some(Restore::Prepared));
    let prepared = prepares && asked;
    let chosen = |stage: &Stage| {
        choices.stages.is_empty()
            || (prepared && stage.name.as_str() == PREPARE_STAGE)
            || choices.stages.iter().any(|pattern| matches(pattern, stage.name.as_str()))
    };
    let mut stages = Vec::new();
    let mut left_out = Vec::new();
    for stage in &scenario.stages {
        if !chosen(stage) {
            left_out.push(stage.name.clone());
            continue;
        }
        let mut stage = stage.clone();
        stage.arguments.extend(choices.arguments.iter().cloned());
        stage.timeout = choices.timeout.unwrap_or(stage.timeout);
        // What the user sets for every stage also wins over what one stage sets for itself.
        stage.environment = merged(&stage.environment, &[]);
        stage
            .environment
            .retain(|(name, _)| !choices.environment.iter().any(|(chosen, _)| chosen == name));
        stages.push(stage);
    }
    Ok(Plan {
        scenario: scenario.name.clone(),
        kernel: kernel.clone(),
        machine: wish.settle(),
        kernel_parameters: wish.kernel_parameters,
        fast: wish.fast.unwrap_or(false),
        root: wish.root.unwrap_or_default(),
        restore,
        prepared,
        disks: scenario.disks.clone(),
        environment: merged(&scenario.environment, &choices.environment),
        stages,
        left_out,
        keep_disks: choices.keep_disks,
        machines: wish.machines.unwrap_or(MachineCount::DEFAULT).get(),
    })
}

impl Plan {
    /// The longest the run can take: every stage to its timeout, with a fresh machine after each.
    pub fn longest(&self) -> Duration {
        let boot = Duration::from_millis(self.machine.boot_timeout_ms);
        self.stages.iter().fold(Duration::ZERO, |sum, stage| {
            sum.saturating_add(boot).saturating_add(stage.timeout.get())
        })
    }

    /// The stages as chains that may run beside each other: one begins where a stage wants a machine that
    /// nobody has used, and keeps its order.
    pub fn chains(&self) -> Vec<&[Stage]> {
        let mut begins: Vec<usize> = vec![0];
        begins.extend((1..self.stages.len()).filter(|at| self.stages[*at].fresh));
        begins.push(self.stages.len());
        begins.windows(2).map(|ends| &self.stages[ends[0]..ends[1]]).collect()
    }

    /// The plan as jobs that run at the same time, one for each machine at most.
    pub fn job_specs(&self, places: &JobPlaces) -> Result<Vec<JobSpec>, UnreadScript> {
        let chains = self.chains();
        let jobs = usize::from(self.machines).clamp(1, chains.len());
        let mut shares: Vec<Vec<Stage>> = vec![Vec::new(); jobs];
        for (number, chain) in chains.into_iter().enumerate() {
            shares[number % jobs].extend_from_slice(chain);
        }
        let step = u32::try_from(jobs).unwrap_or(u32::MAX);
        (1..).zip(&shares).map(|(first, stages)| self.job(places, stages, first, step)).collect()
    }

    /// The plan as one job, whatever it says about machines.
    pub fn job_spec(&self, places: &JobPlaces) -> Result<JobSpec, UnreadScript> {
        self.job(places, &self.stages, 1, 1)
    }

    fn job(
        &self,
        places: &JobPlaces,
        stages: &[Stage],
        first_machine: u32,
        machine_step: u32,
    ) -> Result<JobSpec, UnreadScript> {
        let places = places.clone();
        let prepare = self.stages.first().filter(|_| self.prepared);
        let prepare = prepare.map(job_stage).transpose()?;
        let folder = places.warm.filter(|_| self.restore != Restore::Never);
        let warm = (folder.is_some() || prepare.is_some()).then_some(Warm { folder, prepare });
        Ok(JobSpec {
            schema: job::SCHEMA,
            run: places.run,
            job: format!("job-{first_machine}"),
            folder: places.folder,
            kernel: JobKernel {
                identity: self.kernel.clone(),
                boot: places.boot,
                parameters: self.kernel_parameters.clone(),
                fast: self.fast,
            },
            initramfs: places.initramfs,
            root: places.root,
            machine: self.machine.clone(),
            first_machine,
            machine_step,
            pool: places.pool,
            disks: places.disks,
            environment: self.environment.clone(),
            modules: places.modules,
            stages: stages.iter().map(job_stage).collect::<Result<Vec<_>, _>>()?,
            keep_disks: self.keep_disks,
            warm,
        })
    }
}

fn job_stage(stage: &Stage) -> Result<job::Stage, UnreadScript> {
    let Script::Text(text) = &stage.script else {
        return Err(UnreadScript { stage: stage.name.clone() });
    };
    Ok(job::Stage {
        name: stage.name.clone(),
        suite: job::Suite::Script {
            text: text.clone(),
            arguments: stage.arguments.clone(),
            completion_file: stage.completion_file.clone(),
        },
        timeout_ms: stage.timeout.as_millis(),
        fresh: stage.fresh,
        environment: stage.environment.clone(),
        artifacts: stage.artifacts.clone(),
    })
}

/// `above` wins, and within each the later pair; sorted by name.
fn merged(below: &[(String, String)], above: &[(String, String)]) -> Vec<(String, String)> {
    let all: std::collections::BTreeMap<&str, &str> =
        below.iter().chain(above).map(|(name, value)| (name.as_str(), value.as_str())).collect();
    all.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests;
