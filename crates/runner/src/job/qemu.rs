//! The real machines: QEMU with Kiln's guest in it, booted or restored.
//!
//! Three threads report to the one that executes the job, through one bounded channel: one passes on what happens to
//! QEMU and on its console, one waits for the agent's hello and prepares the guest, one reads the terminal of
//! the stage that runs. When the machine ends, its streams end, and with them the threads.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use kiln_block::ByteLen;
use kiln_model::event::Acceleration;
use kiln_model::job::JobSpec;
use kiln_model::restore::Warm;
use kiln_model::root::{JobRoot, ROOT_SERIAL};
use kiln_vm::agent::Agent;
use kiln_vm::{CHANGING_PARAMETERS, DiskSpec, Emulator, Vm, VmSpec, probe};

use super::disks::{DiskSource, Disks, PoolAccess};
use super::greeting::{Greeting, ages, renew};
use super::listening::{Report, listen_to_machine, told};
use super::machine::{Machine, Machines, News};
use super::root::{Root, ServedRoot};
use super::running::{KEPT_WARM, QemuMachine};
use crate::chain::chain;
use crate::warm::{Found, Look, Saving, WarmStore};
use crate::watch::{Gone, Sign};

/// How many reports may wait for the job.
const WAITING: usize = 1024;
/// Most of a console's recording that is kept.
const CONSOLE_LIMIT: ByteLen = ByteLen::mib(64);
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
        // The guest lays its memory over what the kernel has mounted.
        let alone = spec.initramfs.is_none().then(|| {
            let disk = disk_name(spec.disks.len());
            [format!("root=/dev/{disk}"), "ro".to_owned(), "init=/init".to_owned()]
        });
        VmSpec {
            emulator,
            acceleration,
            kernel: spec.kernel.boot.clone(),
            initramfs: spec.initramfs.clone(),
            parameters: words.chain(way).chain(alone.into_iter().flatten()).collect(),
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

impl Machines for QemuMachines<'_> {
    fn start(&mut self, number: u32) -> Result<Box<dyn Machine>, String> {
        Ok(Box::new(self.boot(number)?))
    }
}

/// What the kernel calls a disk with so many before it: `vda` to `vdz`, then `vdaa`.
fn disk_name(before: usize) -> String {
    let mut letters = Vec::new();
    let mut left = before + 1;
    while left > 0 {
        left -= 1;
        letters.push(char::from(b'a' + u8::try_from(left % 26).unwrap_or_default()));
        left /= 26;
    }
    letters.push('d');
    letters.push('v');
    letters.into_iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::disk_name;

    #[test]
    fn disks_are_named_as_the_kernel_counts_them() {
        let names = [0, 1, 25, 26, 51, 52, 701, 702].map(disk_name);
        assert_eq!(names, ["vda", "vdb", "vdz", "vdaa", "vdaz", "vdba", "vdzz", "vdaaa"]);
    }
}
