//! One job: the stages of a plan, one after the other, on as many machines as that takes.
//!
//! A machine is made when a stage needs one and kept while it can be trusted: a stage that asks for a fresh machine
//! gets one, and so does the stage after one that crashed, hung, ran out of time or broke its machine. A stage whose
//! machine does not come up ends with the reason; after [`BOOT_ATTEMPTS`] of them in a row the rest is not run,
//! because a kernel that does not boot will not boot for the next stage either.
//!
//! Everything that happens is told to an [`EventSink`]; files go into the run's folder (`docs/formats/recording.md`).

pub(crate) mod disks;
mod flood;
mod greeting;
mod listening;
pub(crate) mod machine;
pub(crate) mod qemu;
mod root;
pub(crate) mod running;
mod stage;

use std::time::{Duration, Instant};

use kiln_block::ByteLen;
use kiln_model::event::{Happening, NoteLevel};
use kiln_model::job::{JobSpec, Stage};
use kiln_model::outcome::Outcome;

use crate::sink::{EventSink, note, tell};
use crate::stop::{StopToken, Urgency};
use crate::watch::{Gone, Sign};
pub use disks::PoolAccess;
use machine::{Machine, Machines, News};
use stage::{Console, StageRun};

/// So many machines in a row may fail to boot.
pub const BOOT_ATTEMPTS: u32 = 2;

/// How long is listened to what a machine has said already; one that talks faster than it is heard would never be done.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// Executes a job to its end. Every stage of the spec ends with exactly one `stage-ended`, whatever happens.
pub fn execute(spec: &JobSpec, access: &PoolAccess, sink: &mut dyn EventSink, stop: &StopToken) {
    let pid = std::process::id();
    tell(sink, Happening::JobStarted { job: spec.job.clone(), pid });
    let mut machines = qemu::QemuMachines::new(spec, access);
    let epoch = Instant::now();
    let clock = || epoch.elapsed();
    Execution::new(spec, sink, stop, &clock).all(&mut machines);
}

struct Execution<'a> {
    spec: &'a JobSpec,
    sink: &'a mut dyn EventSink,
    stop: &'a StopToken,
    /// Tells the time since the job began.
    clock: &'a dyn Fn() -> Duration,
    next_machine: u32,
    failed_boots: u32,
}

/// A machine that came up, and whether a stage has used it.
struct Live {
    machine: Box<dyn Machine>,
    number: u32,
    used: bool,
    /// Whether the stage that prepares machines has passed on it.
    prepared: bool,
    console: Console,
    /// What was told of the host's part in a stage that passed.
    doubted: Option<String>,
}

/// What a stage leaves behind.
struct Aftermath {
    outcome: Outcome,
    machine_usable: bool,
}

impl<'a> Execution<'a> {
    fn new(
        spec: &'a JobSpec,
        sink: &'a mut dyn EventSink,
        stop: &'a StopToken,
        clock: &'a dyn Fn() -> Duration,
    ) -> Execution<'a> {
        Execution { spec, sink, stop, clock, next_machine: spec.first_machine, failed_boots: 0 }
    }

    fn all(mut self, machines: &mut dyn Machines) {
        let spec = self.spec;
        let mut live: Option<Live> = None;
        for stage in &spec.stages {
            if let Some(reason) = self.reason_not_to_run() {
                self.end_stage(stage, Outcome::NotRun { reason }, 0);
                continue;
            }
            let used = live.as_ref().is_some_and(|live| live.used);
            let sound = live.as_mut().is_none_or(|live| self.is_sound(live));
            if !sound || (stage.fresh && used) {
                self.farewell(live.take(), sound);
            }
            if live.is_none() {
                match self.boot(machines) {
                    Ok(machine) => live = Some(machine),
                    Err((vm, outcome)) => {
                        tell(self.sink, Happening::StageStarted { stage: stage.name.clone(), vm });
                        self.end_stage(stage, outcome, 0);
                        continue;
                    }
                }
            }
            let Some(on) = live.as_mut() else { continue };
            let began = self.now();
            tell(self.sink, Happening::StageStarted { stage: stage.name.clone(), vm: on.number });
            let aftermath = self.run_prepared(stage, on);
            let took = self.now().saturating_sub(began);
            self.end_stage(stage, aftermath.outcome, millis(took));
            if !aftermath.machine_usable {
                self.farewell(live.take(), false);
            }
        }
        self.farewell(live.take(), true);
    }

    fn reason_not_to_run(&self) -> Option<String> {
        if self.stop.urgency() > Urgency::GoOn {
            return Some("interrupted".to_owned());
        }
        (self.failed_boots >= BOOT_ATTEMPTS)
            .then(|| format!("{BOOT_ATTEMPTS} machines in a row did not boot"))
    }

    fn boot(&mut self, machines: &mut dyn Machines) -> Result<Live, (u32, Outcome)> {
        let number = self.next_machine;
        self.next_machine = number.saturating_add(self.spec.machine_step);
        let started = machines.start(number);
        let booted = match started {
            Ok(machine) => {
                let (acceleration, pid) = machine.identity();
                tell(self.sink, Happening::VmStarted { vm: number, acceleration, pid });
                let console = Console::new(number);
                let mut live =
                    Live { machine, number, used: false, prepared: false, console, doubted: None };
                match self.await_ready(&mut live) {
                    Ok(()) => Ok(live),
                    Err(outcome) => {
                        self.farewell(Some(live), false);
                        Err(outcome)
                    }
                }
            }
            Err(reason) => Err(Outcome::Broken { reason }),
        };
        match booted {
            Ok(live) => {
                self.failed_boots = 0;
                Ok(live)
            }
            Err(outcome) => {
                self.failed_boots += u32::from(!matches!(outcome, Outcome::NotRun { .. }));
                Err((number, outcome))
            }
        }
    }

    /// Whether a machine that waits for its next stage can still be trusted. One that crashed between two
    /// stages must not be blamed on the second. Nor is one trusted that cannot be heard out: a crash may be further back
    /// in what it says.
    fn is_sound(&mut self, live: &mut Live) -> bool {
        let mut sound = true;
        let until = self.now() + LAST_LOOK;
        while let Some(News::Sign(sign)) = live.machine.next(Duration::ZERO) {
            let lost = match &sign {
                Sign::Splat(splat) if splat.kind.is_fatal() => Some(splat.signature.clone()),
                Sign::Gone(Gone::ByGuest(how) | Gone::ByHost(how)) => Some(how.clone()),
                Sign::AgentLost(why) => Some(why.clone()),
                _ => None,
            };
            let now = self.now();
            self.tell_sign(live, None, now, sign);
            if let Some(how) = lost {
                self.warn(format!("machine {} was lost between two stages: {how}", live.number));
                sound = false;
            }
            if now >= until {
                self.warn(format!("machine {} does not stop talking; it is replaced", live.number));
                return false;
            }
        }
        sound
    }

    fn run_stage(&mut self, stage: &Stage, live: &mut Live) -> Aftermath {
        live.used = true;
        StageRun::new(self, stage, live).run()
    }

    /// Runs a stage on a machine that is prepared first, where that is wanted and was not done before.
    fn run_prepared(&mut self, stage: &Stage, live: &mut Live) -> Aftermath {
        let spec = self.spec;
        let Some(prepare) = spec.warm.as_ref().and_then(|warm| warm.prepare.as_ref()) else {
            return self.run_stage(stage, live);
        };
        if *stage == *prepare {
            if live.prepared && !live.used {
                let number = live.number;
                let text = format!("machine {number} was restored from after {}", stage.name);
                note(self.sink, NoteLevel::Info, text);
                return Aftermath { outcome: Outcome::Passed, machine_usable: true };
            }
            let aftermath = self.run_stage(stage, live);
            self.save_prepared(live, &aftermath);
            return aftermath;
        }
        if !live.prepared && !live.used {
            let mut aftermath = self.quietly(prepare, live);
            self.save_prepared(live, &aftermath);
            if aftermath.outcome != Outcome::Passed {
                let how = aftermath.outcome.to_string();
                let reason = format!("the machine could not be prepared: {how}");
                aftermath.outcome = Outcome::Broken { reason };
                aftermath.machine_usable = false;
                return aftermath;
            }
        }
        self.run_stage(stage, live)
    }

    /// Runs a stage that nobody asked for on this machine: what it prints and leaves is not told.
    fn quietly(&mut self, stage: &Stage, live: &mut Live) -> Aftermath {
        let stage = Stage { artifacts: Vec::new(), ..stage.clone() };
        let sink = &mut *self.sink;
        let mut loud = |event: kiln_model::event::Event| {
            if matches!(event.event, Happening::Note { .. } | Happening::SplatSeen { .. }) {
                sink.take(event);
            }
        };
        let mut aside = Execution {
            spec: self.spec,
            sink: &mut loud,
            stop: self.stop,
            clock: self.clock,
            next_machine: self.next_machine,
            failed_boots: 0,
        };
        aside.run_stage(&stage, live)
    }

    fn save_prepared(&mut self, live: &mut Live, aftermath: &Aftermath) {
        if aftermath.outcome != Outcome::Passed || !aftermath.machine_usable {
            return;
        }
        live.prepared = true;
        // No test has.
        live.used = false;
        if let Err(why) = live.machine.save_prepared() {
            let number = live.number;
            self.warn(format!("machine {number} is not saved for later ones: {why}"));
        }
    }

    fn farewell(&mut self, live: Option<Live>, politely: bool) {
        let Some(mut live) = live else { return };
        live.console.finish(self.sink, None);
        let politely = politely && self.stop.urgency() < Urgency::Kill;
        if politely && let Some((own, size)) = live.machine.own_bytes() {
            let (own, size) = (ByteLen::new(own), ByteLen::new(size));
            let text = format!(
                "machine {} wrote {own} of its own to clones that look like {size}",
                live.number
            );
            note(self.sink, NoteLevel::Info, text);
        }
        let how = live.machine.end(politely);
        tell(self.sink, Happening::VmEnded { vm: live.number, how });
    }

    fn end_stage(&mut self, stage: &Stage, outcome: Outcome, took_ms: u64) {
        tell(self.sink, Happening::StageEnded { stage: stage.name.clone(), outcome, took_ms });
    }

    fn warn(&mut self, text: impl Into<String>) {
        note(self.sink, NoteLevel::Warning, text);
    }

    /// Time since the job began.
    fn now(&self) -> Duration {
        (self.clock)()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
