//! From QEMU's start to a guest that is ready for its first stage: the agent's hello, modules, disks, a name of its own;
//! and on the way, where that is wanted, the moment at which the machine is saved for others.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kiln_model::event::NoteLevel;
use kiln_model::job::JobSpec;
use kiln_model::protocol::Exec;
use kiln_model::root::JobRoot;
use kiln_vm::Vm;
use kiln_vm::agent::{Agent, AgentError};

use super::listening::Report;
use super::machine::News;
use super::running::TERMINAL;
use crate::chain::chain;
use crate::warm::{About, Saving};

/// How long a small request may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the machine's disks and its source of entropy need.
const DISK_DRIVER: &str = "virtio_blk";
const ENTROPY_DRIVER: &str = "virtio_rng";
/// How long a guest is left alone before it is saved: what was freed is given back, threads that ended are buried.
const SETTLING: Duration = Duration::from_millis(150);
/// Makes the kernel print all of its log on the console.
const LOUDEST: u8 = b'8';

/// What is done to a guest before its first stage.
struct Preparation {
    modules: Vec<String>,
    disks: u64,
}

impl Preparation {
    fn of(spec: &JobSpec) -> Preparation {
        // Built in or a module, the driver of the disks comes first.
        let driver = (!spec.disks.is_empty()).then(|| DISK_DRIVER.to_owned());
        let modules = driver.into_iter().chain(spec.modules.iter().cloned()).collect();
        let served = u64::from(matches!(spec.root, JobRoot::Plan { .. }));
        // Those that have none need not be looked for.
        let disks = spec.disks.len() as u64;
        Preparation { modules, disks: if disks == 0 { 0 } else { disks + served } }
    }

    fn prepare(&self, agent: &Agent, deadline: Instant) -> Result<(), AgentError> {
        // Where there is none, the kernel's random numbers come slower.
        let _ = agent.load_modules(&[ENTROPY_DRIVER.to_owned()], deadline);
        if !self.modules.is_empty() {
            agent.load_modules(&self.modules, deadline)?;
        }
        if self.disks == 0 {
            return Ok(());
        }
        // Some kernels look for the disks of a driver after its loading has returned.
        while agent.rescan_disks(deadline)? < self.disks && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// What is done with a machine that boots, in a thread of its own.
pub(super) struct Greeting {
    preparation: Preparation,
    number: u32,
    /// Whether the kernel reported anything so far.
    cried: Arc<AtomicBool>,
    saving: Option<Saving>,
    job: JobSpec,
    reports: SyncSender<Report>,
}

impl Greeting {
    pub(super) fn new(
        job: &JobSpec,
        number: u32,
        cried: Arc<AtomicBool>,
        saving: Option<Saving>,
        reports: SyncSender<Report>,
    ) -> Greeting {
        let (preparation, job) = (Preparation::of(job), job.clone());
        Greeting { preparation, number, cried, saving, job, reports }
    }

    /// Waits for the agent, then prepares the guest and says that it is ready.
    pub(super) fn begin(self, vm: &Arc<Vm>, deadline: Instant) -> Result<(), String> {
        let stream = vm.agent_stream().ok_or("the machine has no channel to its agent")?;
        // Weak: a thread that still waits must not keep the machine from ending.
        let vm = Arc::downgrade(vm);
        thread::spawn(move || {
            let fail = |reports: &SyncSender<Report>, error: AgentError| {
                // The machine's own end, or the deadline, is about to explain the others better.
                if matches!(error, AgentError::Guest { .. } | AgentError::Version { .. }) {
                    let _ = reports.send(Report::News(News::Failed(chain(&error))));
                }
            };
            let mut agent = match Agent::greet(stream, deadline) {
                Ok(agent) => agent,
                Err(error) => return fail(&self.reports, error),
            };
            let Some(strong) = vm.upgrade() else { return };
            let (boot_ms, boot_cpu_ms) = ages(&strong);
            // A kernel without sysrq stays as quiet as it is.
            let _ = strong.sysrq(LOUDEST);
            drop(strong);
            let deadline = deadline.max(Instant::now() + PATIENCE);
            let done = self.preparation.prepare(&agent, deadline);
            let reports = self.reports.clone();
            let (number, saving) = (self.number, self.saving);
            let saved = done.and_then(|()| match (saving, vm.upgrade()) {
                (Some(saving), Some(vm)) if !self.cried.load(Ordering::Acquire) => {
                    rehearse(&agent, deadline);
                    // Nothing has been written to its disks: they are what every machine starts with.
                    let saved = save(
                        &vm,
                        &mut agent,
                        saving,
                        About::of(&self.job),
                        &mut |_| Ok(None),
                        deadline,
                    );
                    saved.map(Result::err)
                }
                (Some(_), Some(_)) => Ok(Some(
                    "it reported something while it booted, which restored ones would not"
                        .to_owned(),
                )),
                _ => Ok(None),
            });
            let done = saved.and_then(|not_saved| {
                if let Some(why) = not_saved {
                    let text = format!("machine {number} is not saved for later ones: {why}");
                    let _ = reports.send(Report::News(News::Told(NoteLevel::Info, text)));
                }
                renew(&agent, &self.job, number, deadline)
            });
            match done {
                Ok(()) => {
                    let (restored, prepared) = (false, false);
                    let ready = Report::Ready { agent, boot_ms, boot_cpu_ms, restored, prepared };
                    let _ = reports.send(ready);
                }
                Err(error) => fail(&reports, error),
            }
        });
        Ok(())
    }
}

/// Runs a program that does nothing on a terminal, as a stage's script is run. What every program needs is in memory then, and
/// what a kernel does only the first time is done, for all that start from here.
fn rehearse(agent: &Agent, deadline: Instant) {
    let exec = Exec {
        argv: [&b"/bin/sh"[..], b"-c", b":"].map(<[u8]>::to_vec).to_vec(),
        pty: Some(TERMINAL),
        kill_leftovers: true,
        ..Exec::default()
    };
    // A guest without a shell has other programs, and one that does not answer is found out by what follows.
    if let Ok(mut session) = agent.exec(exec, deadline) {
        let _ = session.wait(deadline, |_, _| {});
    }
}

/// Saves a machine and lets it go on; says what else was removed for it, or why it could not be saved. `keep_disks` is
/// called while the machine stands still, with what the names of kept disks begin with, and says which pool they are in.
/// Fails only with the guest.
pub(super) fn save(
    vm: &Vm,
    agent: &mut Agent,
    saving: Saving,
    mut about: About,
    keep_disks: &mut dyn FnMut(&str) -> Result<Option<PathBuf>, String>,
    deadline: Instant,
) -> Result<Result<Vec<About>, String>, AgentError> {
    // Else it would be written by each of them.
    agent.sync(deadline)?;
    agent.rest(deadline)?;
    // What the kernel still does of all this, it would do again on each of them. Nothing tells when it is done.
    thread::sleep(SETTLING);
    let kept = saving.memory(about.memory).map_err(|error| chain(&error));
    let saved = kept.and_then(|memory| {
        let state = vm.save(&memory).map_err(|error| chain(&error));
        let prefix = saving.disks();
        let state = state.and_then(|state| {
            about.disks = keep_disks(&prefix)?.map(|pool| (pool, prefix));
            Ok(state)
        });
        // Also one that could not be saved stands still.
        let resumed = vm.resume().map_err(|error| chain(&error));
        let state = state.and_then(|state| resumed.map(|()| state))?;
        saving.publish(&memory, state, about).map_err(|error| chain(&error))
    });
    agent.greet_again(deadline)?;
    Ok(saved)
}

/// Makes a guest a machine of its own.
pub(super) fn renew(
    agent: &Agent,
    job: &JobSpec,
    number: u32,
    deadline: Instant,
) -> Result<(), AgentError> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // A root that stays is the same machine every time.
    let stays = job.disks.iter().any(|disk| disk.persistent.is_some());
    agent.renew(since_epoch, &format!("kiln-{number}"), !stays, deadline)
}

/// Wall and CPU time since a machine was started, in milliseconds.
pub(super) fn ages(vm: &Vm) -> (u64, u64) {
    (millis(vm.started().elapsed()), vm.cpu_time().map_or(0, millis))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
