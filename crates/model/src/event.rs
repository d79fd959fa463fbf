//! The waist between running and telling: one event is one thing that happened.
//!
//! A job writes one event per line as JSON; the recording keeps the same lines, `--format json`
//! prints them, and every view (terminal, database, JUnit, report) reads them. The first event of a
//! run is [`Happening::RunStarted`] and carries [`SCHEMA`]. Readers skip kinds and fields they do not know.

use serde::{Deserialize, Serialize};

use crate::outcome::{Outcome, Verdict};
use crate::splat::Splat;
use crate::{RunId, StageName};

/// Version of this schema; grows when a reader of the old one would misread the new one.
pub const SCHEMA: u32 = 1;

/// One thing that happened, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since 1970-01-01 UTC.
    pub at: u64,
    /// What happened.
    pub event: Happening,
}

/// What happened. In JSON `type` names the kind: `{"at":…,"event":{"type":"stage-ended",…}}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Happening {
    /// A run began; always the first event.
    RunStarted(RunStarted),
    /// A job process took over (its id on the host where it runs).
    JobStarted {
        /// The job's name within the run.
        job: String,
        /// Its process.
        pid: u32,
    },
    /// Something a person should know that decides nothing.
    Note {
        /// How loudly to say it.
        level: NoteLevel,
        /// One line.
        text: String,
    },
    /// The guest's image is there.
    ImageReady {
        /// The cache key, in hexadecimal.
        key: String,
        /// Whether it was found rather than built.
        cached: bool,
        /// Its size in bytes.
        bytes: u64,
        /// How long it took to find or to build, in milliseconds.
        took_ms: u64,
    },
    /// A virtual machine was started.
    VmStarted {
        /// Counted from 1 within the job.
        vm: u32,
        /// What executes the guest's instructions.
        acceleration: Acceleration,
        /// The emulator's process.
        pid: u32,
    },
    /// Its agent answered.
    VmReady {
        /// Which machine.
        vm: u32,
        /// From exec to the agent's hello, wall milliseconds.
        boot_ms: u64,
        /// The same in the emulator's CPU time.
        boot_cpu_ms: u64,
        /// Whether it was restored from a saved moment instead of booted.
        #[serde(default)]
        restored: bool,
    },
    /// It is gone.
    VmEnded {
        /// Which machine.
        vm: u32,
        /// `powered off`, `killed after a panic`, … for a person.
        how: String,
    },
    /// A stage began.
    StageStarted {
        /// Which.
        stage: StageName,
        /// On which machine.
        vm: u32,
    },
    /// Text appeared; bounded in number and size by the job. Recorders keep it in files of its own.
    Output {
        /// During which stage; none while no stage runs.
        stage: Option<StageName>,
        /// Where it appeared.
        source: OutputSource,
        /// What, as it came; bytes that are not UTF-8 have become U+FFFD. Hostile text.
        text: String,
    },
    /// The kernel cried out.
    SplatSeen {
        /// On which machine.
        vm: u32,
        /// During which stage, if one ran.
        stage: Option<StageName>,
        /// The report.
        splat: Splat,
    },
    /// A file belonging to a stage was saved in the run's folder.
    ArtifactSaved {
        /// Whose; none for the machine's own (console, registers).
        stage: Option<StageName>,
        /// Relative to the run's folder, with `/`.
        path: String,
        /// Its size in bytes.
        bytes: u64,
    },
    /// A disk was kept as it was after a stage.
    DiskKept {
        /// Which stage.
        stage: StageName,
        /// Which disk.
        serial: String,
        /// The snapshot in the pool, `NAME@SNAP`.
        snapshot: String,
    },
    /// A stage ended.
    StageEnded {
        /// Which.
        stage: StageName,
        /// How.
        outcome: Outcome,
        /// How long it ran, in milliseconds; zero when it never did.
        took_ms: u64,
    },
    /// The run ended; always the last event. A run without one was interrupted.
    RunEnded {
        /// What it adds up to.
        verdict: Verdict,
        /// Its whole wall time in milliseconds.
        took_ms: u64,
    },
    /// A kind this build does not know; kept out of the way of readers.
    #[serde(other)]
    Unknown,
}

/// How a run began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunStarted {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// Which run.
    pub run: RunId,
    /// Version of the writer.
    pub kiln: String,
    /// The scenario's name.
    pub scenario: String,
    /// Where the scenario was read from, as the user would name it.
    pub scenario_source: String,
    /// The kernel under test.
    pub kernel: KernelIdentity,
    /// The machine's memory in bytes.
    pub memory: u64,
    /// The machine's processors.
    pub cpus: u8,
    /// All stages, in order.
    pub stages: Vec<StageName>,
    /// The command line, for "run this again".
    pub command: Vec<String>,
}

/// Which kernel: its release and the digest of its image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KernelIdentity {
    /// `6.12.117+deb12-cloud-amd64`.
    pub release: String,
    /// blake3 of the bootable image file, in hexadecimal.
    pub digest: String,
}

/// How loudly a note is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoteLevel {
    /// Good to know.
    Info,
    /// Likely to matter.
    Warning,
}

/// What executes a guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Acceleration {
    /// The processor, through `/dev/kvm`.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Acceleration {
    /// The word of tables and of QEMU's `-accel`.
    pub fn word(self) -> &'static str {
        match self {
            Acceleration::Kvm => "kvm",
            Acceleration::Tcg => "tcg",
        }
    }
}

/// Where text appeared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputSource {
    /// The stage's terminal.
    Terminal,
    /// The machine's console.
    Console,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_a_later_kiln_is_skipped_not_refused() {
        let line = r#"{"at":1,"event":{"type":"moon-landed","crew":3},"extra":true}"#;
        let event: Event = serde_json::from_str(line).unwrap();
        assert_eq!(event.event, Happening::Unknown);
    }

    #[test]
    fn the_kind_is_named_by_type() {
        let event = Event {
            at: 5,
            event: Happening::StageEnded {
                stage: "a".parse().unwrap(),
                outcome: Outcome::Failed { reason: "exit status 3".into() },
                took_ms: 7,
            },
        };
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(
            line,
            r#"{"at":5,"event":{"type":"stage-ended","stage":"a","outcome":{"kind":"failed","reason":"exit status 3"},"took_ms":7}}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
    }
}
