//! The real machine: QEMU with Kiln's guest in it.
//!
//! Three threads report to the one that executes the job, through one bounded channel: one passes on what happens to
//! QEMU and on its console, one waits for the agent's hello and prepares the guest, one reads the terminal of
//! the stage that runs. When the machine ends, its streams end, and with them the threads.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs;
use std::io::{self, Cursor};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use kiln_block::ByteLen;
use kiln_model::StageName;
use kiln_model::event::Acceleration;
use kiln_model::job::{self, JobSpec, Stage, Suite};
use kiln_model::protocol::{Exec, Pty};
use kiln_model::restore::Warm;
use kiln_model::root::{JobRoot, ROOT_SERIAL};
use kiln_store::StoreError;
use kiln_vm::agent::{Agent, PullLimits, SessionHandle, SignalTarget};
use kiln_vm::{CHANGING_PARAMETERS, DiskSpec, Emulator, Vm, VmSpec, probe};

use super::disks::{DiskSource, Disks, Kept, PoolAccess, explained};
use super::greeting::{Greeting, ages, renew, save};
use super::listening::{Report, listen_to_machine, read_terminal, told};
use super::machine::{ARTIFACT_BYTES, ARTIFACT_ENTRIES, Machine, Machines, News, Pulled, Saved};
use super::root::{Root, ServedRoot};
use crate::chain::chain;
use crate::warm::{About, Found, Look, Saving, WarmStore};
use crate::watch::{Gone, Sign};

/// How many reports may wait for the job.
const WAITING: usize = 1024;
/// Most of a console's recording that is kept.
const CONSOLE_LIMIT: ByteLen = ByteLen::mib(64);
/// How long a small request may take on a slow machine: pushing a script, looking at a file.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long artifacts may take.
const PULL_PATIENCE: Duration = Duration::from_secs(300);
/// How long a guest may take to switch itself off.
const FAREWELL: Duration = Duration::from_secs(30);
/// How long a guest may take to write everything to its disks.
const SYNCING: Duration = Duration::from_secs(10);
/// How long a hanging guest is questioned.
const QUESTIONING: Duration = Duration::from_secs(8);
/// The terminal of every stage; recordings are made for this size.
const TERMINAL: Pty = Pty { rows: 24, cols: 80 };
/// How long is waited for another process that saves the same machine.
const OTHERS: Duration = Duration::from_secs(60);
/// How long a restored guest may take to answer; it does so in a tenth of a second.
const COMING_BACK: Duration = Duration::from_secs(20);

/// Makes QEMU machines for a job.
pub(crate) struct QemuMachines<'a> {
    spec: &'a JobSpec,
    access: PoolAccess,
    source: Option<DiskSource>,
    root: Option<Root>,
    acceleration: Option<Acceleration>,
    /// Whether machines are still saved and restored.
    warm: bool,
}

impl<'a> QemuMachines<'a> {
    pub(crate) fn new(spec: &'a JobSpec, access: &PoolAccess) -> QemuMachines<'a> {
        QemuMachines {
            spec,
            access: access.clone(),
            source: None,
            root: None,
            acceleration: None,
            warm: true,
        }
    }

    /// The disks of the next machine; none where the job has none.
    fn disks(
        &mut self,
        number: u32,
        kept: Option<&str>,
        reports: &SyncSender<Report>,
    ) -> Result<Option<Disks>, String> {
        let mut spec = Cow::Borrowed(self.spec);
        if let Some(prefix) = kept {
            for disk in &mut spec.to_mut().disks {
                disk.base = Some(format!("{prefix}{}@{KEPT_WARM}", disk.serial));
            }
        }
        let Some(source) = self.source()? else { return Ok(None) };
        let reports = reports.clone();
        let on_loss = move |reason| {
            // Fails when nobody listens any more: the machine is being ended.
            let _ = reports.send(Report::News(News::Sign(Sign::Gone(Gone::ByHost(reason)))));
        };
        source.disks(&spec, number, on_loss).map(Some)
    }

    fn source(&mut self) -> Result<Option<&mut DiskSource>, String> {
        if self.source.is_none() {
            self.source = DiskSource::open(self.spec, &self.access)?;
        }
        Ok(self.source.as_mut())
    }

    /// The root disk of the next machine, where this process serves it.
    fn root(&mut self) -> Result<Option<ServedRoot>, String> {
        let JobRoot::Plan { plan } = &self.spec.root else { return Ok(None) };
        let root = match self.root.take() {
            Some(root) => root,
            None => Root::open(plan)?,
        };
        self.root.insert(root).serve().map(Some)
    }

    fn acceleration(&mut self) -> Result<Acceleration, String> {
        if let Some(known) = self.acceleration {
            return Ok(known);
        }
        let (chosen, _) = probe::choose(self.spec.machine.acceleration, || probe::kvm(None))
            .map_err(|error| error.to_string())?;
        self.acceleration = Some(chosen);
        Ok(chosen)
    }

    /// Starts the next machine: from a saved one where that is wanted and there is one, else by booting.
    pub(crate) fn boot(&mut self, number: u32) -> Result<QemuMachine, String> {
        let mut notes = Vec::new();
        let (mut saving, mut preparing) = (None, None);
        // A root that is written to while its machine boots is another one by then.
        let can = self.warm && self.spec.root != JobRoot::Disk;
        let warm = self.spec.warm.as_ref().filter(|_| can);
        if let Some((warm, folder)) = warm.and_then(|warm| Some((warm, warm.folder.as_ref()?))) {
            let store = WarmStore::at(folder);
            let looked = self.look(&store, warm, &mut preparing, &mut |text| notes.push(text));
            match looked {
                Ok((key, Look::Found(found))) => {
                    match self.restored(number, found, &mut preparing, &mut notes) {
                        Ok(machine) => return Ok(machine),
                        Err(why) => {
                            notes.push(format!(
                                "machine {number} boots instead of being restored: {why}"
                            ));
                            // Whatever is wrong with it, the next one is not to stumble over it. Without it all boot.
                            let _ = store.forget(&key);
                            self.warm = false;
                        }
                    }
                }
                Ok((_, Look::Save(right))) => saving = Some(right),
                Ok((_, Look::Boot)) => {}
                Err(why) => {
                    notes.push(format!("machines boot instead of being restored: {why}"));
                    self.warm = false;
                }
            }
        }
        let parts = self.parts(number)?;
        let vm = match saving.is_some() || preparing.is_some() {
            true => Vm::start_savable(&parts.spec),
            false => Vm::start(&parts.spec),
        };
        let vm = Arc::new(vm.map_err(|error| chain(&error))?);
        let boot_timeout = Duration::from_millis(self.spec.machine.boot_timeout_ms);
        let deadline = vm.started() + boot_timeout;
        let cried = listen_to_machine(&vm, parts.reports.clone());
        let reports = parts.reports.clone();
        let greeting = Greeting::new(self.spec, number, cried, saving, reports);
        greeting.begin(&vm, deadline)?;
        Ok(parts.machine(self.spec, vm, told(notes), preparing))
    }

    /// Looks for a saved machine like the next one, a prepared one first: where none is, the right to save that is
    /// `preparing`.
    fn look(
        &mut self,
        store: &WarmStore,
        warm: &Warm,
        preparing: &mut Option<Saving>,
        say: &mut dyn FnMut(String),
    ) -> Result<(String, Look), String> {
        let spec = self.spec;
        let emulator = self.emulator()?;
        let acceleration = self.acceleration()?;
        let root = matches!(spec.root, JobRoot::Plan { .. });
        let sockets = vec![PathBuf::new(); spec.disks.len() + usize::from(root)];
        let vm = self.vm_spec(emulator, acceleration, Path::new(""), sockets);
        let bases = match self.source()? {
            Some(source) => source.identities(spec)?,
            None => Vec::new(),
        };
        let failed = |error: io::Error| chain(&error);
        let key = WarmStore::key(spec, &vm, &bases).map_err(failed)?;
        let patience = Duration::from_millis(spec.machine.boot_timeout_ms).min(OTHERS);
        if let Some(prepare) = &warm.prepare {
            let key = WarmStore::prepared_key(&key, spec, prepare);
            let patience = patience + Duration::from_millis(prepare.timeout_ms);
            match store.look(&key, patience, say).map_err(failed)? {
                Look::Found(found) => return Ok((key, Look::Found(found))),
                Look::Save(right) => *preparing = Some(right),
                Look::Boot => {}
            }
        }
        let look = store.look(&key, patience, say).map_err(failed)?;
        Ok((key, look))
    }

    /// Starts the next machine from a saved one, and makes it one of its own.
    fn restored(
        &mut self,
        number: u32,
        found: Found,
        preparing: &mut Option<Saving>,
        notes: &mut Vec<String>,
    ) -> Result<QemuMachine, String> {
        let prepared = found.about.after.is_some();
        let kept = found.about.disks.as_ref().map(|(_, prefix)| prefix.as_str());
        let parts = self.parts_with(number, kept)?;
        let vm = match preparing.is_some() {
            true => Vm::restore_savable(&parts.spec, &found.memory, found.state),
            false => Vm::restore(&parts.spec, &found.memory, found.state),
        };
        let vm = Arc::new(vm.map_err(|error| chain(&error))?);
        let stream = vm.agent_stream().ok_or("the machine has no channel to its agent")?;
        let deadline = Instant::now() + COMING_BACK;
        let agent = Agent::greet(stream, deadline).map_err(|error| chain(&error))?;
        let (boot_ms, boot_cpu_ms) = ages(&vm);
        renew(&agent, self.spec, number, deadline).map_err(|error| chain(&error))?;
        listen_to_machine(&vm, parts.reports.clone());
        let mut early = told(std::mem::take(notes));
        let restored = true;
        early.push_back(Report::Ready { agent, boot_ms, boot_cpu_ms, restored, prepared });
        Ok(parts.machine(self.spec, vm, early, preparing.take()))
    }

    fn emulator(&self) -> Result<Emulator, String> {
        Emulator::find(self.spec.machine.qemu.as_deref()).map_err(|error| chain(&error))
    }

    /// What a machine is made of before there is a QEMU.
    fn parts(&mut self, number: u32) -> Result<Parts, String> {
        self.parts_with(number, None)
    }

    /// The same, its disks as they were kept with a saved machine.
    fn parts_with(&mut self, number: u32, kept: Option<&str>) -> Result<Parts, String> {
        let acceleration = self.acceleration()?;
        let emulator = self.emulator()?;
        let folder = self.spec.folder.join("machines").join(number.to_string());
        fs::create_dir_all(&folder)
            .map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        let (reports, inbox) = mpsc::sync_channel(WAITING);
        let disks = self.disks(number, kept, &reports)?;
        let root = self.root()?;
        // The root comes last, so that the names of the others do not depend on it.
        let sockets = disks.iter().flat_map(Disks::sockets).map(Path::to_owned);
        let sockets = sockets.chain(root.as_ref().map(ServedRoot::socket)).collect();
        let spec = self.vm_spec(emulator, acceleration, &folder, sockets);
        Ok(Parts { spec, folder, disks, root, reports, inbox })
    }

    fn vm_spec(
        &self,
        emulator: Emulator,
        acceleration: Acceleration,
        folder: &Path,
        sockets: Vec<PathBuf>,
    ) -> VmSpec {
        let spec = self.spec;
        let served = sockets.into_iter().map(|socket| DiskSpec::Served { socket });
        let changing: &[&str] = if spec.kernel.fast { CHANGING_PARAMETERS } else { &[] };
        let words = changing.iter().map(|word| (*word).to_owned());
        let words = words.chain(spec.kernel.parameters.iter().cloned());
        // Where the root is is ours to say: nothing else would boot.
        let way = match &spec.root {
            JobRoot::Initramfs => None,
            JobRoot::Plan { .. } => Some(format!("kiln.root={ROOT_SERIAL}")),
            JobRoot::Disk => Some(format!("kiln.root={ROOT_SERIAL},rw")),
        };
        VmSpec {
            emulator,
            acceleration,
            kernel: spec.kernel.boot.clone(),
            initramfs: Some(spec.initramfs.clone()),
            parameters: words.chain(way).collect(),
            init_arguments: Vec::new(),
            memory: ByteLen::new(spec.machine.memory),
            cpus: spec.machine.cpus,
            disks: served.collect(),
            console_log: folder.join("console.log"),
            console_limit: CONSOLE_LIMIT,
        }
    }
}

/// A machine without its QEMU.
struct Parts {
    spec: VmSpec,
    folder: PathBuf,
    disks: Option<Disks>,
    root: Option<ServedRoot>,
    reports: SyncSender<Report>,
    inbox: Receiver<Report>,
}

impl Parts {
    fn machine(
        self,
        job: &JobSpec,
        vm: Arc<Vm>,
        early: VecDeque<Report>,
        preparing: Option<Saving>,
    ) -> QemuMachine {
        QemuMachine {
            vm,
            acceleration: self.spec.acceleration,
            folder: self.folder,
            disks: self.disks,
            root: self.root,
            job: job.clone(),
            reports: self.reports,
            inbox: self.inbox,
            early,
            preparing,
            agent: None,
            stage: None,
            last_beat: Instant::now(),
            agent_lost: false,
        }
    }
}

/// The snapshot of disks that were kept with a saved machine.
const KEPT_WARM: &str = "saved";

/// Keeps the disks of a machine that stands still, in the place of others that were kept under these names.
fn keep_warm(disks: Option<&Disks>, prefix: &str) -> Result<Option<PathBuf>, String> {
    let Some(disks) = disks else { return Ok(None) };
    disks.remove(disks.pool(), prefix);
    let name = |serial: &str| (format!("{prefix}{serial}"), KEPT_WARM.to_owned());
    disks.keep(&name).map_err(|error| explained(&error))?;
    Ok(Some(disks.pool().to_owned()))
}

impl Machines for QemuMachines<'_> {
    fn start(&mut self, number: u32) -> Result<Box<dyn Machine>, String> {
        Ok(Box::new(self.boot(number)?))
    }
}

/// One QEMU and its guest.
pub(crate) struct QemuMachine {
    // The agent goes first, so that its threads see their stream end before the machine's end is awaited.
    agent: Option<Arc<Agent>>,
    stage: Option<SessionHandle>,
    vm: Arc<Vm>,
    acceleration: Acceleration,
    folder: PathBuf,
    /// Behind the machine, so that they are there for as long as it is.
    disks: Option<Disks>,
    root: Option<ServedRoot>,
    job: JobSpec,
    reports: SyncSender<Report>,
    inbox: Receiver<Report>,
    /// The right to save it once it is prepared.
    preparing: Option<Saving>,
    /// What is heard before anything else.
    early: VecDeque<Report>,
    last_beat: Instant,
    agent_lost: bool,
}

impl QemuMachine {
    /// The agent, once the machine said it is ready.
    pub(crate) fn agent(&self) -> Result<&Arc<Agent>, String> {
        self.agent.as_ref().ok_or_else(|| "the agent is not there yet".to_owned())
    }

    fn beat(&mut self) -> Option<News> {
        let agent = self.agent.as_ref()?;
        let beat = Instant::now().checked_sub(agent.heartbeat_age())?;
        // Ages are taken at different instants, so the same beat wobbles a little.
        if beat > self.last_beat + Duration::from_millis(20) {
            self.last_beat = beat;
            return Some(News::Sign(Sign::Heartbeat));
        }
        if !agent.is_connected() && !self.agent_lost {
            self.agent_lost = true;
            return Some(News::Sign(Sign::AgentLost("its channel closed".to_owned())));
        }
        None
    }
}

impl Machine for QemuMachine {
    fn identity(&self) -> (Acceleration, u32) {
        (self.acceleration, self.vm.pid())
    }

    fn next(&mut self, patience: Duration) -> Option<News> {
        if let Some(news) = self.beat() {
            return Some(news);
        }
        let report = match self.early.pop_front() {
            Some(report) => Ok(report),
            None => self.inbox.recv_timeout(patience),
        };
        match report {
            Ok(Report::News(news)) => Some(news),
            Ok(Report::Ready { agent, boot_ms, boot_cpu_ms, restored, prepared }) => {
                self.agent = Some(Arc::new(agent));
                self.last_beat = Instant::now();
                Some(News::Ready { boot_ms, boot_cpu_ms, restored, prepared })
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
        }
    }

    fn launch(&mut self, stage: &Stage, environment: &[(String, String)]) -> Result<(), String> {
        let agent = Arc::clone(self.agent()?);
        let Suite::Script { text, arguments, .. } = &stage.suite;
        let script = format!("/run/kiln/{}", stage.name);
        agent
            .push(
                Path::new(&script),
                0o755,
                &mut Cursor::new(text.as_bytes()),
                Instant::now() + PATIENCE,
            )
            .map_err(|error| format!("cannot send the script: {}", chain(&error)))?;
        let interpreter = if text.starts_with("#!") { None } else { Some("/bin/sh".to_owned()) };
        let words = interpreter.into_iter().chain([script]).chain(arguments.iter().cloned());
        let name = ("KILN_STAGE".to_owned(), stage.name.to_string());
        let variables = std::iter::once(name).chain(environment.iter().cloned());
        let exec = Exec {
            argv: words.map(String::into_bytes).collect(),
            env: variables.map(|(name, value)| (name.into_bytes(), value.into_bytes())).collect(),
            cwd: Vec::new(),
            pty: Some(TERMINAL),
            kill_leftovers: true,
        };
        let session = match agent.exec(exec, Instant::now() + PATIENCE) {
            Ok(session) => session,
            Err(error) => return Err(self.why_not_started(text, &chain(&error))),
        };
        self.stage = Some(session.handle());
        let reports = self.reports.clone();
        thread::spawn(move || read_terminal(session, &reports));
        Ok(())
    }

    fn cancel(&mut self) {
        if let Some(stage) = self.stage.take() {
            let soon = Instant::now() + Duration::from_secs(2);
            // A guest that does not hear it is killed with all that is in it a moment later.
            let _ = stage.signal(9, SignalTarget::Everything, soon);
        }
    }

    fn exists(&mut self, path: &str) -> Result<bool, String> {
        let found = self.agent()?.stat(Path::new(path), Instant::now() + PATIENCE);
        found.map(|stat| stat.is_some()).map_err(|error| chain(&error))
    }

    fn pull(&mut self, patterns: &[String], into: &Path) -> Result<Pulled, String> {
        fs::create_dir_all(into)
            .map_err(|error| format!("cannot make {}: {error}", into.display()))?;
        let limits = PullLimits { entries: ARTIFACT_ENTRIES, bytes: ARTIFACT_BYTES };
        let report = self.agent()?.pull(patterns, into, limits, Instant::now() + PULL_PATIENCE);
        // Only an empty folder can be removed this way.
        let _ = fs::remove_dir(into);
        let report = report.map_err(|error| chain(&error))?;
        let saved = report
            .files
            .into_iter()
            .map(|file| Saved { path: into.join(file.path), bytes: file.bytes });
        Ok(Pulled {
            saved: saved.collect(),
            truncated: report.truncated,
            troubles: report.troubles,
        })
    }

    fn diagnose(&mut self) -> Option<String> {
        // The console is read meanwhile, and the channel holds what this thread cannot take now.
        Some(self.vm.interrogate(QUESTIONING).registers)
    }

    fn host_trouble(&mut self) -> Option<String> {
        let root = self.root.as_ref().and_then(ServedRoot::trouble);
        root.or_else(|| self.disks.as_ref()?.trouble())
    }

    fn own_bytes(&mut self) -> Option<(u64, u64)> {
        let based = self.job.disks.iter().any(|disk| disk.base.is_some());
        self.disks.as_ref().filter(|_| based)?.own_bytes()
    }

    fn keep_disks(&mut self, stage: &StageName) -> Result<Vec<Kept>, String> {
        let name = |serial: &str| {
            let name = job::kept_disk(&self.job.run, stage, serial);
            (name, job::KEPT_SNAPSHOT.to_owned())
        };
        self.keep_as(&name).map_err(|error| explained(&error))
    }

    fn save_prepared(&mut self) -> Result<(), String> {
        let Some(saving) = self.preparing.take() else { return Ok(()) };
        let name = self.job.warm.as_ref().and_then(|warm| warm.prepare.as_ref());
        let name = name.map(|stage| stage.name.to_string());
        // Nobody else speaks with the guest between two stages.
        let agent = self.agent.as_mut().and_then(Arc::get_mut);
        let agent = agent.ok_or("somebody speaks with its guest")?;
        let about = About { after: name, ..About::of(&self.job) };
        let disks = self.disks.as_ref();
        let deadline = Instant::now() + PATIENCE;
        let saved =
            save(&self.vm, agent, saving, about, &mut |prefix| keep_warm(disks, prefix), deadline);
        self.last_beat = Instant::now();
        match saved {
            Ok(Ok(gone)) => {
                if let Some(disks) = disks {
                    gone.iter().filter_map(|about| about.disks.as_ref()).for_each(
                        |(pool, prefix)| {
                            disks.remove(pool, prefix);
                        },
                    );
                }
                Ok(())
            }
            Ok(Err(why)) => Err(why),
            Err(error) => Err(chain(&error)),
        }
    }

    fn end(self: Box<Self>, politely: bool) -> String {
        if politely && let Some(agent) = &self.agent {
            let off = agent.power_off(Instant::now() + FAREWELL);
            if off.is_ok() && self.drain_until_gone(Instant::now() + FAREWELL) {
                return self.last_words();
            }
        }
        self.vm.kill();
        self.drain_until_gone(Instant::now() + FAREWELL);
        self.last_words()
    }
}

impl QemuMachine {
    /// Keeps the disks as they are, under names made of their serials. The machine goes on.
    pub(crate) fn keep_as(
        &self,
        name: &dyn Fn(&str) -> (String, String),
    ) -> Result<Vec<Kept>, StoreError> {
        let Some(disks) = &self.disks else { return Ok(Vec::new()) };
        if let Some(agent) = self.agent.as_ref().filter(|_| !self.agent_lost) {
            // What it has not written yet is a part of what it left; a guest that hangs cannot, and loses it.
            let _ = agent.sync(Instant::now() + SYNCING);
        }
        // Between two of its writes, so that the disks agree with each other. One that is gone writes nothing.
        let control = self.vm.control();
        let stopped = control.execute("stop", serde_json::Value::Null, QUESTIONING).is_ok();
        let kept = disks.keep(name);
        if stopped {
            // One that does not go on is found silent by the next stage.
            let _ = control.execute("cont", serde_json::Value::Null, QUESTIONING);
        }
        kept
    }

    /// A script whose interpreter is missing is, to the kernel, itself not found: say which program it is.
    fn why_not_started(&mut self, text: &str, error: &str) -> String {
        let interpreter = interpreter_of(text).unwrap_or("/bin/sh");
        match self.exists(interpreter) {
            Ok(false) => format!(
                "its interpreter {interpreter} is not in the guest; add it to `binaries` in [guest]"
            ),
            _ => error.to_owned(),
        }
    }

    /// Nobody asks for news any more, and a full inbox must not keep the machine from ending.
    fn drain_until_gone(&self, deadline: Instant) -> bool {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(left.min(Duration::from_millis(50))) {
                Ok(Report::News(News::Sign(Sign::Gone(_)))) => return true,
                Ok(_) => {}
                Err(_) if self.vm.wait(Some(Instant::now())).is_some() => return true,
                Err(_) if left.is_zero() => return false,
                Err(_) => {}
            }
        }
    }

    /// How it ended; what QEMU complained about is kept.
    fn last_words(&self) -> String {
        let Some(ended) = self.vm.wait(Some(Instant::now() + Duration::from_secs(5))) else {
            return "still ending".to_owned();
        };
        if !ended.stderr.trim().is_empty() {
            // Without the file the run is no worse than without a complaint.
            let _ = fs::write(self.folder.join("qemu.log"), &ended.stderr);
        }
        ended.how.word().to_owned()
    }
}

/// The program that a script's first line names.
fn interpreter_of(text: &str) -> Option<&str> {
    text.strip_prefix("#!")?.lines().next()?.split_whitespace().next()
}
