//! `kiln run`: from a scenario to a verdict.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_history::{Damage, HistoryError, Recorder, RunFolder, RunSummary, SummaryBuilder};
use kiln_model::event::{Event, Happening, RunStarted, SCHEMA};
use kiln_model::outcome::Verdict;
use kiln_model::plan::Plan;
use kiln_runner::local::{self, JobProgram};
use kiln_runner::{Bases, Equipment, EventSink, Loaded, StopToken, Urgency, settle_acceleration};

use super::history::{find, from_history, index, runs_folder};
use super::{kept, target};
use crate::arguments::{Format, RunArgs};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::reporter::{Reporter, reporter, summary};
use crate::session::Session;
use crate::signals::{self, Heard};
use crate::{hostile, rerun, run_id, terminal};

/// What `kiln run` does when no scenario is named.
pub(super) const DEFAULT_SCENARIO: &str = "simple-example";

/// `kiln run`
pub(crate) fn run(session: Session, args: RunArgs) -> Result<Exit, Failure> {
    let bisect = args.bisect;
    let exit = prepare_and_run(session, args);
    if !bisect {
        return exit;
    }
    exit.map(Exit::for_bisect).map_err(|failure| {
        let exit = failure.exit.for_bisect();
        failure.with_exit(exit)
    })
}

fn prepare_and_run(mut session: Session, mut args: RunArgs) -> Result<Exit, Failure> {
    if let Some(given) = args.rerun.take() {
        args = again(&session, &given, args)?;
    }
    target::machine_flags(&mut session, &args.machine)?;
    session.flag("run.keep_disks", args.keep_disks.as_deref())?;
    let name =
        target::lasting_name(args.target.scenario.as_deref().unwrap_or(DEFAULT_SCENARIO), &session);
    let loaded = target::scenario(&name)?;
    let kernel = target::chosen_kernel(&mut session, args.target.kernel.as_deref())?;
    let mut choices = target::choices(&session);
    choices.stages.clone_from(&args.target.stages);
    choices.environment.clone_from(&args.environment);
    choices.arguments.clone_from(&args.arguments);
    choices.timeout = args.timeout.as_deref().map(target::time_limit).transpose()?;
    let plan = target::planned(&loaded.scenario, &kernel.identity(), &choices)?;
    target::check_machine(&session, &plan.machine)?;

    let stop = StopToken::new();
    let view = Arc::new(Mutex::new(reporter(session.format)));
    listen(&stop, &view)?;
    let equipment = target::equipment(&session, &loaded, &kernel, plan.root)?;
    if stop.urgency() > Urgency::GoOn {
        return Ok(Exit::Interrupted);
    }
    let command = rerun::command_line(&loaded.source, session.config.text("run.kernel"), &args);
    let Loaded { source, folder, .. } = loaded;
    let run = Prepared { session: &session, plan, equipment, source, folder, command };
    let (verdict, told) = run.execute(&stop, &view)?;
    finish(&session, &args, verdict, told)
}

/// The arguments of a run that is to be repeated.
fn again(session: &Session, given: &str, typed: RunArgs) -> Result<RunArgs, Failure> {
    let (run, _) = find(session, given)?;
    let args = rerun::again(&run, typed).ok_or_else(|| {
        Failure::new(Exit::Usage, format!("run {} does not say how it was started", run.id))
            .hint(format!("kiln show {}", run.id))
    })?;
    if args.target.stages.is_empty() {
        return Err(Failure::new(
            Exit::NothingSelected,
            format!("every stage of run {} passed: there is nothing to run again", run.id),
        )
        .hint(format!("kiln run --rerun {} --stage '*'", run.id)));
    }
    Ok(args)
}

/// A reporter that the signals' thread may speak through.
type View = Arc<Mutex<Box<dyn Reporter + Send>>>;

fn locked(view: &View) -> MutexGuard<'_, Box<dyn Reporter + Send>> {
    // A reporter that panicked has nothing left to protect.
    view.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ctrl-C once drains, twice kills; whoever terminates us means it.
fn listen(stop: &StopToken, view: &View) -> Result<(), Failure> {
    let (stop, view) = (stop.clone(), Arc::clone(view));
    signals::listen(move |heard| match heard {
        Heard::Interrupt => {
            stop.ask();
            locked(&view).say(match stop.urgency() {
                Urgency::Kill => "interrupted again: stopping at once",
                _ => "interrupted: the running stage may finish; Ctrl-C again stops at once",
            });
        }
        Heard::Terminate => stop.kill(),
        Heard::Resized => {}
    })?;
    Ok(())
}

/// Everything a run needs.
struct Prepared<'a> {
    session: &'a Session,
    plan: Plan,
    equipment: Equipment,
    source: String,
    folder: Option<PathBuf>,
    command: Vec<String>,
}

/// What was told of a run, and where it is recorded.
struct Told {
    folder: RunFolder,
    summary: Result<RunSummary, HistoryError>,
    trouble: Option<HistoryError>,
}

impl Prepared<'_> {
    fn execute(self, stop: &StopToken, view: &View) -> Result<(Verdict, Told), Failure> {
        let id = run_id::fresh().ok_or_else(|| {
            Failure::new(Exit::Setup, "the clock of this machine is before 1970").hint("date -s …")
        })?;
        let mut plan = self.plan;
        let translated = settle_acceleration(&mut plan.machine, Some(self.session.home.cache()))
            .exits(Exit::Setup)?;
        let pool = target::pool(self.session);
        let bases = Bases {
            plan: &plan,
            source: &self.source,
            folder: self.folder.as_deref(),
            equipment: &self.equipment,
            pool: &pool,
            access: &target::pool_access(),
            persist: None,
        };
        let disks = bases.settle(&mut |text| locked(view).say(&hostile::line(&text)), stop);
        let disks = disks.map_err(target::not_based)?;
        let recorder = Recorder::create(&runs_folder(self.session), &id).map_err(from_history)?;
        let folder = recorder.folder().clone();
        let mut places =
            self.equipment.places(id.clone(), folder.path().to_owned(), Some(pool), disks);
        places.warm = Some(target::warm(self.session));
        let specs = plan.job_specs(&places)?;
        let started = RunStarted {
            schema: SCHEMA,
            run: id,
            kiln: env!("CARGO_PKG_VERSION").to_owned(),
            scenario: plan.scenario.clone(),
            scenario_source: self.source,
            kernel: plan.kernel.clone(),
            memory: plan.machine.memory,
            cpus: plan.machine.cpus,
            stages: plan.stages.iter().map(|stage| stage.name.clone()).collect(),
            command: self.command,
        };
        let mut opening = vec![Happening::RunStarted(started)];
        opening.extend(self.equipment.happenings());
        opening.extend(translated);
        let mut sink =
            Telling { recorder, view, builder: SummaryBuilder::default(), trouble: None, stop };
        let program = JobProgram::this()?;
        let verdict = local::run(&specs, opening, &program, &mut sink, stop);
        locked(view).close();
        if !plan.disks.is_empty()
            && let Err(error) = kept::forget_old(self.session)
        {
            // The run itself is well.
            terminal::say(&format!(
                "warning: cannot remove what older runs kept: {}",
                hostile::line(&error.to_string())
            ));
        }
        let summary = sink.builder.finish(&folder, false, Damage::default());
        Ok((verdict, Told { folder, summary, trouble: sink.trouble }))
    }
}

/// Records, shows and adds up, in this order: what was shown is never lost.
struct Telling<'a> {
    recorder: Recorder,
    view: &'a View,
    builder: SummaryBuilder,
    trouble: Option<HistoryError>,
    stop: &'a StopToken,
}

impl EventSink for Telling<'_> {
    fn take(&mut self, event: Event) {
        if let Err(error) = self.recorder.record(&event)
            && self.trouble.is_none()
        {
            // A run that cannot be remembered is not worth its time: the stage may end, no other begins.
            if self.stop.urgency() == Urgency::GoOn {
                self.stop.ask();
            }
            let text = format!(
                "warning: {}: no other stage is started",
                hostile::line(&error.to_string())
            );
            locked(self.view).say(&text);
            self.trouble = Some(error);
        }
        locked(self.view).take(&event);
        if !matches!(event.event, Happening::Output { .. }) {
            self.builder.take(event);
        }
    }
}

/// The summary, the files that were asked for, and the exit code.
fn finish(
    session: &Session,
    args: &RunArgs,
    verdict: Verdict,
    told: Told,
) -> Result<Exit, Failure> {
    let mut exit = Exit::of_verdict(verdict);
    let broke = |exit: Exit| match exit {
        Exit::TestsFailed => exit,
        _ => Exit::InfrastructureBroke,
    };
    let run = told.summary.map_err(from_history)?;
    if let Some(path) = &args.junit
        && let Err(failure) = write_junit(&run, &told.folder, path)
    {
        terminal::tell(&failure);
        exit = broke(exit);
    }
    if session.format == Format::Text {
        for line in summary::lines(&run, &told.folder, terminal::columns(), &terminal::paint_err) {
            terminal::say(&line);
        }
    }
    if let Some(error) = told.trouble {
        terminal::tell(&from_history(error));
        exit = broke(exit);
    } else if let Err(failure) = index(session) {
        // Only the index: the recording is there, and readers make the index again.
        terminal::tell(&failure);
    }
    Ok(exit)
}

fn write_junit(run: &RunSummary, folder: &RunFolder, path: &Path) -> Result<(), Failure> {
    let text = kiln_history::junit(run, Some(folder)).map_err(from_history)?;
    std::fs::write(path, text)
        .tried(|| format!("cannot write {}", path.display()))
        .exits(Exit::InfrastructureBroke)
}
