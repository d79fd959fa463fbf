//! A machine that is saved once and started many times: its memory is a file, its devices are a stream.
//!
//! QEMU's migration moves the devices; memory that is mapped shared from a file stays out of the stream. Whoever is
//! restored maps that file privately, so the host's kernel copies each page when it is first written and the file is
//! never changed: one saved machine serves any number at once. Only where somebody else maps the machine's
//! memory too (a disk over vhost-user) is the file copied, while QEMU starts.
//!
//! The machine stands still while it is saved: translated guests with several processors are saved wrongly otherwise.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::machine::{MemoryFile, Vm, VmState};
use crate::qmp::QmpError;
use crate::spec::{Beginning, VmSpec};
use crate::{VmError, memory};

/// The longest stream of devices that is read: a machine with two dozen disks needs a hundredth.
pub const MAX_DEVICE_STATE: usize = 64 << 20;
/// How long one command may take on a busy host.
const COMMAND: Duration = Duration::from_secs(30);
/// How long the devices may take to travel.
const TRAVEL: Duration = Duration::from_secs(60);
/// How QEMU knows the stream.
const STREAM: &str = "state";

/// How far a migration is, as QEMU's events tell.
#[derive(Debug, Default)]
pub(crate) struct Migration {
    heard: Mutex<Heard>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Heard {
    completed: bool,
    failed: bool,
    /// No event comes any more.
    over: bool,
}

/// The side of [`Migration`] that is told; dropped when nothing more will be.
pub(crate) struct Told(pub(crate) Arc<Migration>);

impl Told {
    pub(crate) fn hear(&self, event: &str, data: &Map<String, Value>) {
        if event != "MIGRATION" {
            return;
        }
        let status = data.get("status").and_then(Value::as_str);
        let mut heard = self.0.lock();
        match status {
            Some("completed") => heard.completed = true,
            Some("failed" | "cancelled") => heard.failed = true,
            _ => return,
        }
        drop(heard);
        self.0.more.notify_all();
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.more.notify_all();
    }
}

impl Migration {
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect_another(&self) {
        let mut heard = self.lock();
        (heard.completed, heard.failed) = (false, false);
    }

    /// Whether the devices arrived; the reason if they did not.
    fn wait(&self, deadline: Instant) -> Result<(), &'static str> {
        let mut heard = self.lock();
        loop {
            match &*heard {
                Heard { failed: true, .. } => return Err("QEMU gave up"),
                Heard { completed: true, .. } => return Ok(()),
                Heard { over: true, .. } => return Err("QEMU ended"),
                Heard { .. } => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("QEMU does not come to an end");
            }
            let waited = self.more.wait_timeout(heard, left);
            heard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn not_saved(why: impl ToString) -> VmError {
    VmError::Snapshot { act: "save", why: why.to_string() }
}

fn not_restored(why: impl ToString) -> VmError {
    VmError::Snapshot { act: "restore", why: why.to_string() }
}

impl Vm {
    /// As [`start`](Vm::start), in memory that [`save`](Vm::save) can keep. A saved machine and those that are restored from
    /// it have the same devices, so their specs differ in sockets and the console's recording alone.
    ///
    /// # Errors
    /// As those of [`start`](Vm::start).
    pub fn start_savable(spec: &VmSpec) -> Result<Vm, VmError> {
        let failed = |source| VmError::Io {
            act: "make memory for",
            path: spec.emulator.path().to_owned(),
            source,
        };
        let memory = memory::anonymous(spec.memory_kib() << 10).map_err(failed)?;
        let theirs = OwnedFd::from(memory.try_clone().map_err(failed)?);
        let mut vm =
            Vm::launch(spec, Some(MemoryFile { file: theirs, beginning: Beginning::BootInFile }))?;
        vm.memory = Some(memory);
        Ok(vm)
    }

    /// Stops the machine, writes what is not zero of its memory to the empty file and returns the state of its devices. It
    /// stands still afterwards, also when this failed; [`resume`](Vm::resume) lets it go on.
    ///
    /// Whoever talked to the guest has made it silent before: what is under way in a channel would come again in every
    /// machine that is restored.
    ///
    /// # Errors
    /// [`VmError::Snapshot`] if it was not [started for this](Vm::start_savable), is gone, or QEMU or the host refuse.
    pub fn save(&self, into: &File) -> Result<Vec<u8>, VmError> {
        let memory =
            self.memory.as_ref().ok_or_else(|| not_saved("it was not started to be saved"))?;
        let (ours, theirs) = UnixStream::pair().map_err(not_saved)?;
        let reader = thread::Builder::new()
            .name("state".into())
            .spawn(move || {
                let mut state = Vec::new();
                (&ours).take(MAX_DEVICE_STATE as u64 + 1).read_to_end(&mut state).map(|_| state)
            })
            .map_err(not_saved)?;
        let asked = self.send_devices(theirs);
        // Whatever became of it, QEMU holds no end of the stream any more, or is about to close it.
        if asked.is_err() {
            self.kill_stream();
        }
        let state = reader.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        asked?;
        let state = state.map_err(not_saved)?;
        if state.len() > MAX_DEVICE_STATE {
            return Err(not_saved(format!("its devices have more than {MAX_DEVICE_STATE} bytes")));
        }
        memory::keep(memory, into).map_err(not_saved)?;
        Ok(state)
    }

    fn send_devices(&self, stream: UnixStream) -> Result<(), VmError> {
        let refused = |error: QmpError| not_saved(error);
        let control = self.control();
        control.execute("stop", Value::Null, COMMAND).map_err(refused)?;
        self.leave_memory_out().map_err(refused)?;
        control.give(STREAM, stream.as_fd(), COMMAND).map_err(refused)?;
        // Theirs is the only end left, so the stream ends when they close it.
        drop(stream);
        self.migration.expect_another();
        let uri = json!({ "uri": format!("fd:{STREAM}") });
        control.execute("migrate", uri, COMMAND).map_err(refused)?;
        self.migration.wait(Instant::now() + TRAVEL).map_err(not_saved)
    }

    /// Takes the stream back from a QEMU that did not use it up, so that whoever reads it comes to its end.
    fn kill_stream(&self) {
        // Refused where QEMU has closed it already.
        let _ = self.control().execute("closefd", json!({ "fdname": STREAM }), COMMAND);
        let _ = self.control().execute("migrate_cancel", Value::Null, COMMAND);
    }

    fn leave_memory_out(&self) -> Result<(), QmpError> {
        let on = |name: &str| json!({ "capability": name, "state": true });
        let capabilities = json!({ "capabilities": [on("x-ignore-shared"), on("events")] });
        let control = self.control();
        control.execute("migrate-set-capabilities", capabilities, COMMAND).map(|_| ())
    }

    /// Lets a machine that stands still go on.
    ///
    /// # Errors
    /// When QEMU is gone or refuses.
    pub fn resume(&self) -> Result<(), QmpError> {
        self.control().execute("cont", Value::Null, COMMAND).map(|_| ())
    }

    /// Starts a machine as another one was when it was saved; it runs when this returns. The file is not changed, and may
    /// be removed.
    ///
    /// # Errors
    /// [`VmError::Snapshot`], or those of [`start`](Vm::start); nothing is left behind.
    pub fn restore(spec: &VmSpec, kept: &File, state: Vec<u8>) -> Result<Vm, VmError> {
        Vm::come_back(spec, kept, state, spec.shares_memory())
    }

    /// As [`restore`](Vm::restore), in memory that [`save`](Vm::save) can keep: a copy.
    ///
    /// # Errors
    /// As those of [`restore`](Vm::restore).
    pub fn restore_savable(spec: &VmSpec, kept: &File, state: Vec<u8>) -> Result<Vm, VmError> {
        Vm::come_back(spec, kept, state, true)
    }

    fn come_back(spec: &VmSpec, kept: &File, state: Vec<u8>, shared: bool) -> Result<Vm, VmError> {
        let size = kept.metadata().map_err(not_restored)?.len();
        let wanted = spec.memory_kib() << 10;
        if size != wanted {
            return Err(not_restored(format!("its memory has {size} bytes instead of {wanted}")));
        }
        let vm = if shared {
            let shared = memory::anonymous(size).map_err(not_restored)?;
            let theirs = OwnedFd::from(shared.try_clone().map_err(not_restored)?);
            let mut vm = thread::scope(|scope| {
                // QEMU leaves memory alone until the devices arrive.
                let copied = scope.spawn(|| memory::copy(kept, &shared));
                let vm = Vm::launch(
                    spec,
                    Some(MemoryFile { file: theirs, beginning: Beginning::RestoredShared }),
                );
                let copied = copied.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
                vm.and_then(|vm| copied.map(|()| vm).map_err(not_restored))
            })?;
            vm.memory = Some(shared);
            vm
        } else {
            let theirs = OwnedFd::from(kept.try_clone().map_err(not_restored)?);
            Vm::launch(spec, Some(MemoryFile { file: theirs, beginning: Beginning::Restored }))?
        };
        vm.receive_devices(state)?;
        Ok(vm)
    }

    fn receive_devices(&self, state: Vec<u8>) -> Result<(), VmError> {
        let (ours, theirs) = UnixStream::pair().map_err(not_restored)?;
        let writer = thread::Builder::new()
            .name("state".into())
            .spawn(move || {
                // A QEMU that does not take it says why, or ends.
                let _ = (&ours).write_all(&state);
                let _ = ours.shutdown(Shutdown::Both);
            })
            .map_err(not_restored)?;
        let arrived = self.let_them_arrive(theirs);
        if let Err(error) = arrived {
            // With QEMU the other end of the stream goes, and with it the writer.
            self.kill();
            let _ = writer.join();
            let said = self.wait(Some(Instant::now() + COMMAND)).map(|ended| ended.stderr);
            return Err(match said.as_deref().unwrap_or("") {
                "" => not_restored(error),
                said => not_restored(format!("{error}; it said: {said}")),
            });
        }
        let _ = writer.join();
        Ok(())
    }

    fn let_them_arrive(&self, stream: UnixStream) -> Result<(), String> {
        let refused = |error: QmpError| match self.state() {
            VmState::Running => error.to_string(),
            VmState::Ended(_) => "QEMU ended".to_owned(),
        };
        let control = self.control();
        self.leave_memory_out().map_err(refused)?;
        control.give(STREAM, stream.as_fd(), COMMAND).map_err(refused)?;
        drop(stream);
        let uri = json!({ "uri": format!("fd:{STREAM}") });
        control.execute("migrate-incoming", uri, COMMAND).map_err(refused)?;
        self.migration.wait(Instant::now() + TRAVEL)?;
        self.resume().map_err(refused)
    }
}
