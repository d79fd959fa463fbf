//! Whether `/dev/kvm` really runs code here.
//!
//! The device may exist, open, create machines and even execute the first instructions, and still not run a kernel:
//! nested and paravirtual hosts are like that. So a machine of 64 KiB runs the instructions that tell ([`machine`]),
//! in a process of its own which is killed at a deadline, because such hosts may also never come back. The answer
//! holds until the host boots again and is kept in a file.

mod cache;
#[cfg(target_arch = "x86_64")]
mod machine;

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use kiln_model::event::Acceleration;
use kiln_model::job::AccelerationChoice;
use serde::{Deserialize, Serialize};

use crate::lifeline;

/// The device.
const DEVICE: &str = "/dev/kvm";
/// Tells a program of ours that it was started to probe; see [`take_over`].
const ROLE: &str = "KILN_KVM_PROBE";
/// Begins each line the probing process has to say, among whatever else its program prints.
const MARK: &str = "kiln-kvm-probe: ";
/// How long the instructions may take.
const RUN_DEADLINE: Duration = Duration::from_millis(1500);
/// How long a loaded host may take to start a process.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// What is known about KVM on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kvm", rename_all = "kebab-case")]
pub enum KvmVerdict {
    /// It ran everything.
    Usable,
    /// There is no `/dev/kvm`.
    Missing,
    /// We may not open it.
    Forbidden,
    /// It is there and does not do what a kernel needs.
    Unusable {
        /// What happened.
        reason: String,
    },
}

impl KvmVerdict {
    /// Whether guests may run on it.
    pub fn is_usable(&self) -> bool {
        matches!(self, KvmVerdict::Usable)
    }

    /// What a person can do about it; none where nothing is wrong.
    pub fn cure(&self) -> Option<&'static str> {
        match self {
            KvmVerdict::Usable => None,
            KvmVerdict::Missing => Some(
                "enable virtualisation in the firmware and load the module: sudo modprobe kvm_intel || sudo modprobe kvm_amd",
            ),
            KvmVerdict::Forbidden => {
                Some("join the group that owns it and log in again: sudo usermod -aG kvm $USER")
            }
            KvmVerdict::Unusable { .. } => {
                Some("run Kiln on the physical host, or turn on nested virtualisation there")
            }
        }
    }
}

impl fmt::Display for KvmVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KvmVerdict::Usable => write!(f, "{DEVICE} runs guests"),
            KvmVerdict::Missing => write!(f, "{DEVICE} does not exist"),
            KvmVerdict::Forbidden => write!(f, "{DEVICE} may not be opened by this user"),
            KvmVerdict::Unusable { reason } => write!(f, "{DEVICE} cannot run a kernel: {reason}"),
        }
    }
}

/// KVM was demanded and is not to be had.
#[derive(Debug, thiserror::Error)]
#[error("KVM was asked for, but {verdict}; to go on without it choose `tcg` or `auto`")]
pub struct NoKvm {
    /// Why not.
    pub verdict: KvmVerdict,
}

/// Decides what executes guests. The probe is only asked where its answer matters.
///
/// # Errors
/// When KVM was demanded and does not work.
pub fn choose(
    choice: AccelerationChoice,
    probe: impl FnOnce() -> KvmVerdict,
) -> Result<(Acceleration, Option<KvmVerdict>), NoKvm> {
    if choice == AccelerationChoice::Tcg {
        return Ok((Acceleration::Tcg, None));
    }
    let verdict = probe();
    match (verdict.is_usable(), choice) {
        (true, _) => Ok((Acceleration::Kvm, Some(verdict))),
        (false, AccelerationChoice::Kvm) => Err(NoKvm { verdict }),
        (false, _) => Ok((Acceleration::Tcg, Some(verdict))),
    }
}

/// To be called first thing in `main` of every program that calls [`kvm`]: in the process that was started to probe it
/// probes, and says with which status to leave.
#[must_use]
pub fn take_over() -> Option<ExitCode> {
    std::env::var_os(ROLE)?;
    Some(ExitCode::from(u8::from(probe_here().is_err())))
}

/// Probes in this process and says the result on standard output.
fn probe_here() -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "\n{MARK}running")?;
    out.flush()?;
    let said = match run_instructions() {
        Ok(()) => "usable".to_owned(),
        Err(reason) => format!("unusable {reason}"),
    };
    writeln!(out, "\n{MARK}{said}")?;
    out.flush()
}

#[cfg(target_arch = "x86_64")]
fn run_instructions() -> Result<(), String> {
    machine::run()
}

#[cfg(not(target_arch = "x86_64"))]
fn run_instructions() -> Result<(), String> {
    Err("this build of Kiln only knows how to probe x86-64".into())
}

/// Asks the host, or the answer kept in `cache` (a folder, created when needed) since its last boot. Takes less than two
/// seconds on an idle host. The calling program's `main` must begin with [`take_over`].
pub fn kvm(cache: Option<&Path>) -> KvmVerdict {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    kvm_with(Command::new(program), cache)
}

/// The same with a program of the caller's choice whose `main` begins with [`take_over`].
pub fn kvm_with(mut program: Command, cache: Option<&Path>) -> KvmVerdict {
    match File::options().read(true).write(true).open(DEVICE) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return KvmVerdict::Missing,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return KvmVerdict::Forbidden;
        }
        Err(error) => return KvmVerdict::Unusable { reason: format!("cannot open it: {error}") },
    }
    if let Some(known) = cache.and_then(cache::load) {
        return known;
    }
    if std::env::var_os(ROLE).is_some() {
        // Without this a program that forgot `take_over` would start itself for ever.
        return KvmVerdict::Unusable { reason: "the probe was asked to probe".into() };
    }
    program.env(ROLE, "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    match listen(program) {
        Heard::Verdict(verdict) => {
            if let Some(folder) = cache {
                // A cache that cannot be written costs a second next time, no more.
                let _ = cache::store(folder, &verdict);
            }
            verdict
        }
        Heard::Nothing(reason) => KvmVerdict::Unusable { reason },
    }
}

enum Heard {
    Verdict(KvmVerdict),
    /// The probe itself failed: true now, perhaps not next time.
    Nothing(String),
}

fn listen(program: Command) -> Heard {
    let child = match lifeline::spawn(program, Vec::new()) {
        Ok(child) => child,
        Err(error) => return Heard::Nothing(format!("the probe could not be started: {error}")),
    };
    let Some(stdout) = child.take_stdout() else {
        return Heard::Nothing("the probe could not be heard".into());
    };
    let (sender, lines) = mpsc::channel();
    let reader = thread::Builder::new().name("kvm-probe".into()).spawn(move || {
        let lines = BufReader::new(stdout.take(64 << 10)).lines().map_while(Result::ok);
        for line in lines {
            if let Some(said) = line.strip_prefix(MARK)
                && sender.send(said.to_owned()).is_err()
            {
                return;
            }
        }
    });
    if let Err(error) = reader {
        return Heard::Nothing(format!("the probe could not be heard: {error}"));
    }
    let mut deadline = Instant::now() + START_DEADLINE;
    let mut running = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(said) if said == "running" => {
                running = true;
                deadline = Instant::now() + RUN_DEADLINE;
            }
            Ok(said) if said == "usable" => return Heard::Verdict(KvmVerdict::Usable),
            Ok(said) => {
                let reason: String =
                    said.trim_start_matches("unusable ").chars().take(300).collect();
                return Heard::Verdict(KvmVerdict::Unusable { reason });
            }
            Err(RecvTimeoutError::Timeout) if running => {
                let reason = format!(
                    "a few instructions had not ended after {} ms",
                    RUN_DEADLINE.as_millis()
                );
                return Heard::Verdict(KvmVerdict::Unusable { reason });
            }
            Err(RecvTimeoutError::Timeout) => {
                return Heard::Nothing("the probe did not start in time".into());
            }
            Err(RecvTimeoutError::Disconnected) if running => {
                let reason = "the probe was killed while its instructions ran".into();
                return Heard::Verdict(KvmVerdict::Unusable { reason });
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Heard::Nothing("the probe ended without a word".into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_is_asked_only_where_its_answer_matters() {
        let (chosen, verdict) =
            choose(AccelerationChoice::Tcg, || panic!("asked for nothing")).unwrap();
        assert_eq!((chosen, verdict), (Acceleration::Tcg, None));
    }

    #[test]
    fn automatic_choice_falls_back_and_says_why() {
        let (chosen, verdict) = choose(AccelerationChoice::Auto, || KvmVerdict::Forbidden).unwrap();
        assert_eq!((chosen, verdict), (Acceleration::Tcg, Some(KvmVerdict::Forbidden)));
        assert_eq!(
            choose(AccelerationChoice::Kvm, || KvmVerdict::Missing).unwrap_err().to_string(),
            "KVM was asked for, but /dev/kvm does not exist; to go on without it choose `tcg` or `auto`"
        );
    }
}
