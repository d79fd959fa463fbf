//! The job spec: everything one machine needs to execute a plan, as data (`docs/formats/job-spec.md`).
//!
//! `kiln job exec SPEC` reads one and writes events; nothing else is consulted, neither configuration nor
//! environment, so that the same spec does the same on every backend.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::event::KernelIdentity;
use crate::restore::Warm;
use crate::root::{JobRoot, ROOT_SERIAL};
use crate::{RunId, StageName};

/// Version of this schema; a job of another version is refused.
pub const SCHEMA: u32 = 3;

/// One job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// The run it belongs to.
    pub run: RunId,
    /// Its name within the run; `job-1` when there is only one.
    pub job: String,
    /// The run's folder; artifacts are written below it, console and dmesg included.
    pub folder: PathBuf,
    /// The kernel.
    pub kernel: JobKernel,
    /// The initramfs to boot; none where the kernel mounts its root disk by itself.
    pub initramfs: Option<PathBuf>,
    /// Where the root file system is.
    #[serde(default)]
    pub root: JobRoot,
    /// The machine.
    pub machine: Machine,
    /// Where its machines' numbers start, from 1. Jobs that run at the same time share the numbers among them.
    pub first_machine: u32,
    /// How far the numbers of its machines are apart; not zero.
    pub machine_step: u32,
    /// The pool the disks are in; there if there are disks.
    pub pool: Option<PathBuf>,
    /// The disks, made afresh for every machine that boots.
    pub disks: Vec<Disk>,
    /// Environment of every stage, in order.
    pub environment: Vec<(String, String)>,
    /// Kernel modules to load before the first stage.
    pub modules: Vec<String>,
    /// The stages, in order.
    pub stages: Vec<Stage>,
    /// After which stages the disks are kept as they are then, in the pool.
    #[serde(default)]
    pub keep_disks: KeepDisks,
    /// Where machines start; without it every machine boots.
    #[serde(default)]
    pub warm: Option<Warm>,
}

/// Longest job spec that is read, in bytes; scripts travel inside.
pub const MAX_TEXT: usize = 64 << 20;

/// Why a job spec was refused.
#[derive(Debug, thiserror::Error)]
pub enum JobSpecError {
    /// Longer than any spec.
    #[error("the job spec has {bytes} bytes, more than {MAX_TEXT}")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// Written by another Kiln.
    #[error(
        "the job spec has schema {found}, this build executes {SCHEMA}: use the Kiln that wrote it"
    )]
    Schema {
        /// Its version.
        found: u64,
    },
    /// Not a job spec.
    #[error("the job spec cannot be read")]
    Malformed(#[source] serde_json::Error),
    /// Well formed, but it cannot be executed.
    #[error("the job spec makes no sense: {0}")]
    Senseless(&'static str),
}

impl JobSpec {
    /// Reads and checks a spec.
    pub fn parse(text: &str) -> Result<JobSpec, JobSpecError> {
        if text.len() > MAX_TEXT {
            return Err(JobSpecError::TooLong { bytes: text.len() });
        }
        // The version first: a later schema may have fields this one would refuse with a worse message.
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(JobSpecError::Malformed)?;
        if let Some(found) = value.get("schema").and_then(serde_json::Value::as_u64)
            && found != u64::from(SCHEMA)
        {
            return Err(JobSpecError::Schema { found });
        }
        let spec = JobSpec::deserialize(value).map_err(JobSpecError::Malformed)?;
        spec.check().map_err(JobSpecError::Senseless)?;
        Ok(spec)
    }

    /// The spec as text, as [`JobSpec::parse`] reads it.
    pub fn to_json(&self) -> String {
        // Plain data with string keys: there is nothing in it that JSON could not say.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    fn check(&self) -> Result<(), &'static str> {
        let serial = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        for (at, disk) in self.disks.iter().enumerate() {
            if !(1..=20).contains(&disk.serial.len()) || !disk.serial.chars().all(serial) {
                return Err("a disk's serial is 1 to 20 letters, digits, '-', '_' and '.'");
            }
            if disk.size == 0 || !disk.size.is_multiple_of(4096) || disk.size > 8 << 40 {
                return Err("a disk's size is a whole number of 4096 bytes, at most 8T");
            }
            if disk.base.is_some() && disk.persistent.is_some() {
                return Err("a disk is a clone of its base, or the disk of the pool itself");
            }
            if disk.base.as_ref().is_some_and(|base| !is_snapshot(base)) {
                return Err("a disk's base is a snapshot NAME@SNAP");
            }
            if self.disks[..at].iter().any(|other| other.serial == disk.serial) {
                return Err("two disks have the same serial");
            }
        }
        if !self.disks.is_empty() && self.pool.is_none() {
            return Err("there are disks, but no pool for them");
        }
        let has_root = self.disks.iter().any(|disk| disk.serial == ROOT_SERIAL);
        if has_root != (self.root == JobRoot::Disk) {
            return Err("the root is on a disk that is not there, or such a disk on no root");
        }
        if self.first_machine == 0 || self.machine_step == 0 {
            return Err("machines are numbered from 1, in steps");
        }
        for (at, stage) in self.stages.iter().enumerate() {
            if self.stages[..at].iter().any(|other| other.name == stage.name) {
                return Err("two stages have the same name");
            }
            if stage.timeout_ms == 0 {
                return Err("a stage's timeout is zero");
            }
        }
        if self.machine.cpus == 0 || self.machine.memory < 1 << 20 {
            return Err("the machine has no processor or no memory");
        }
        if self.machine.boot_timeout_ms == 0 || self.machine.hang_timeout_ms == 0 {
            return Err("a timeout of the machine is zero");
        }
        Ok(())
    }
}

/// The kernel as files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobKernel {
    /// Which it is.
    pub identity: KernelIdentity,
    /// What QEMU boots: a `vmlinux` with a PVH note where one could be had, else the `bzImage`.
    pub boot: PathBuf,
    /// Extra parameters, appended to Kiln's own.
    pub parameters: Vec<String>,
    /// Whether parameters that boot faster but change the kernel's behaviour may be used.
    #[serde(default)]
    pub fast: bool,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// In bytes.
    pub memory: u64,
    /// At least one.
    pub cpus: u8,
    /// Asked for by name, or the best that works.
    pub acceleration: AccelerationChoice,
    /// How long a boot may take until the agent answers, in milliseconds.
    pub boot_timeout_ms: u64,
    /// Neither heartbeat nor output for this long is a hang, in milliseconds.
    pub hang_timeout_ms: u64,
    /// The emulator, if not the one on the PATH.
    pub qemu: Option<PathBuf>,
}

/// What may execute the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccelerationChoice {
    /// KVM where it was probed and works, else TCG.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// TCG.
    Tcg,
}

/// When the disks of a machine are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeepDisks {
    /// Never.
    Never,
    /// After a stage that did not pass.
    #[default]
    Failed,
    /// After every stage.
    Always,
}

impl KeepDisks {
    /// All of them as people write them, in the order of how much is kept.
    pub const WORDS: &'static [&'static str] = &["never", "failed", "always"];

    /// The one that is written so.
    pub fn of(word: &str) -> Option<KeepDisks> {
        match word {
            "never" => Some(KeepDisks::Never),
            "failed" => Some(KeepDisks::Failed),
            "always" => Some(KeepDisks::Always),
            _ => None,
        }
    }

    /// As people write it.
    pub fn word(self) -> &'static str {
        match self {
            KeepDisks::Never => "never",
            KeepDisks::Failed => "failed",
            KeepDisks::Always => "always",
        }
    }
}

fn is_snapshot(text: &str) -> bool {
    text.split_once('@').is_some_and(|(disk, snapshot)| {
        !disk.is_empty() && !snapshot.is_empty() && !snapshot.contains('@')
    })
}

/// How the names of disks begin that runs have kept, before the run's id.
pub const KEPT: &str = "run:";
/// The snapshot of a kept disk.
pub const KEPT_SNAPSHOT: &str = "kept";

/// The disk of the pool that keeps a machine's disk as it was after a stage; its snapshot is [`KEPT_SNAPSHOT`].
pub fn kept_disk(run: &RunId, stage: &StageName, serial: &str) -> String {
    // Names in a pool have at most 128 bytes; a serial has 20, so a longest stage name has to give.
    let stage: String = stage.as_str().chars().take(80).collect();
    format!("{KEPT}{run}:{stage}:{serial}")
}

/// One disk of a machine: a clone that goes with the machine, found in the guest by its serial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Up to 20 bytes, unique within the job; `/dev/disk/by-id/virtio-SERIAL` in the guest.
    pub serial: String,
    /// In bytes; at least that of its base.
    pub size: u64,
    /// The snapshot of the pool it starts as, `NAME@SNAP`; without one it is empty.
    #[serde(default)]
    pub base: Option<String>,
    /// The disk of the pool that it is, instead of a clone: what the guest writes stays.
    #[serde(default)]
    pub persistent: Option<String>,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Its name.
    pub name: StageName,
    /// The suite and what it should do.
    pub suite: Suite,
    /// How long it may run, in milliseconds.
    pub timeout_ms: u64,
    /// Whether it wants a machine (and disks) nobody has used.
    pub fresh: bool,
    /// Environment on top of the job's.
    pub environment: Vec<(String, String)>,
    /// Files and folders (`*` and `?` allowed) to bring out of the guest afterwards.
    pub artifacts: Vec<String>,
}

/// How a stage is invoked and judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "suite", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Suite {
    /// A script: passes when it exits with 0 (77 skips), and, where a completion file is named, only if that
    /// file is there afterwards (BTRFSQA's protocol).
    Script {
        /// The script's text, sent to the guest and run by its `#!` interpreter (default `/bin/sh`).
        text: String,
        /// Its arguments.
        arguments: Vec<String>,
        /// A path in the guest that the script creates when it got to its end.
        completion_file: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_of_another_schema_is_refused_by_its_number_not_by_its_fields() {
        let error = JobSpec::parse(r#"{"schema": 1, "moon": true}"#).unwrap_err();
        assert!(error.to_string().contains("schema 1, this build executes 3"), "{error}");
    }

    #[test]
    fn hostile_specs_are_refused_without_a_panic() {
        for text in ["", "[]", "null", "{}", "{\"schema\":3}", &"[".repeat(100_000)] {
            assert!(JobSpec::parse(text).is_err());
        }
    }
}
