//! The job spec: everything one machine needs to execute a plan, as data (`docs/formats/job-spec.md`).
//!
//! `kiln job exec SPEC` reads one and writes events; nothing else is consulted, neither configuration nor
//! environment, so that the same spec does the same on every backend.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::event::KernelIdentity;
use crate::{RunId, StageName};

/// Version of this schema; a job of another version is refused.
pub const SCHEMA: u32 = 1;

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
    /// The initramfs to boot.
    pub initramfs: PathBuf,
    /// The machine.
    pub machine: Machine,
    /// The disks, made afresh for every machine that boots.
    pub disks: Vec<Disk>,
    /// Environment of every stage, in order.
    pub environment: Vec<(String, String)>,
    /// Kernel modules to load before the first stage.
    pub modules: Vec<String>,
    /// The stages, in order.
    pub stages: Vec<Stage>,
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

/// One disk: sparse, empty, found in the guest by its serial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Up to 20 bytes, unique within the job; `/dev/disk/by-id/virtio-SERIAL` in the guest.
    pub serial: String,
    /// In bytes.
    pub size: u64,
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
