//! Every rule of executing a job, on a machine that plays a script.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};

use kiln_model::StageName;
use kiln_model::event::{Acceleration, Event, KernelIdentity};
use kiln_model::job::{self, AccelerationChoice, JobKernel, KeepDisks, Machine as Shape, Suite};
use kiln_model::splat::{Splat, SplatKind};

use super::disks::Kept;
use super::machine::Pulled;
use super::*;
use crate::watch::Exit;

/// What a fake machine does on one occasion.
#[derive(Clone, Debug)]
enum Act {
    Say(News),
    /// A stage begins.
    AwaitLaunch,
    AskToStop(StopToken),
    /// Nothing any more, and this is why.
    StandStill(String),
    /// The same, and it is the root disk that could not be read.
    Misread(String),
    /// Nothing until somebody looks without waiting.
    Pause,
    /// Lines on the console without an end.
    Flood,
}

fn ready() -> Act {
    Act::Say(News::Ready { boot_ms: 2000, boot_cpu_ms: 1900, restored: false, prepared: false })
}

fn sign(sign: Sign) -> Act {
    Act::Say(News::Sign(sign))
}

fn exit(code: i32) -> Act {
    sign(Sign::Exited(Exit::Code(code)))
}

fn splat(kind: SplatKind, signature: &str) -> Act {
    let splat = Splat { kind, signature: signature.into(), excerpt: "…".into() };
    sign(Sign::Splat(splat))
}

#[derive(Default)]
struct FakeMachines {
    scripts: VecDeque<Result<Vec<Act>, String>>,
    log: Arc<Mutex<Vec<String>>>,
    time: Arc<Mutex<Duration>>,
    files: Vec<String>,
}

struct FakeMachine {
    number: u32,
    acts: VecDeque<Act>,
    log: Arc<Mutex<Vec<String>>>,
    /// What the job's clock shows: it goes on only here, so that no load of the host makes a machine late.
    time: Arc<Mutex<Duration>>,
    files: Vec<String>,
}

impl Machines for FakeMachines {
    fn start(&mut self, number: u32) -> Result<Box<dyn Machine>, String> {
        let acts =
            self.scripts.pop_front().expect("the job made more machines than the test has")?;
        let (log, time) = (Arc::clone(&self.log), Arc::clone(&self.time));
        let files = self.files.clone();
        Ok(Box::new(FakeMachine { number, acts: acts.into(), log, time, files }))
    }
}

impl FakeMachine {
    fn pass(&self, time: Duration) {
        *self.time.lock().unwrap() += time;
    }

    fn note(&self, what: &str) {
        self.log.lock().unwrap().push(format!("{}: {what}", self.number));
    }
}

impl Machine for FakeMachine {
    fn identity(&self) -> (Acceleration, u32) {
        (Acceleration::Tcg, 4711)
    }

    fn next(&mut self, patience: Duration) -> Option<News> {
        self.pass(Duration::from_millis(1));
        match self.acts.front() {
            Some(Act::Say(_)) => match self.acts.pop_front() {
                Some(Act::Say(news)) => Some(news),
                _ => None,
            },
            Some(Act::Flood) => Some(News::Sign(Sign::Console(b"flood\n".to_vec()))),
            Some(Act::AskToStop(token)) => {
                token.ask();
                self.acts.pop_front();
                None
            }
            Some(Act::Pause) if patience.is_zero() => {
                self.acts.pop_front();
                None
            }
            // A silent machine: time passes, as it would.
            Some(Act::AwaitLaunch | Act::Pause | Act::StandStill(_) | Act::Misread(_)) | None => {
                self.pass(patience);
                None
            }
        }
    }

    fn launch(&mut self, stage: &Stage, _: &[(String, String)]) -> Result<(), String> {
        self.note(&format!("launch {}", stage.name));
        match self.acts.pop_front() {
            Some(Act::AwaitLaunch) => Ok(()),
            other => Err(format!("the test expected {other:?}")),
        }
    }

    fn cancel(&mut self) {
        self.note("cancel");
    }

    fn exists(&mut self, path: &str) -> Result<bool, String> {
        Ok(self.files.iter().any(|file| file == path))
    }

    fn pull(&mut self, patterns: &[String], _: &Path) -> Result<Pulled, String> {
        self.note(&format!("pull {}", patterns.join(" ")));
        Ok(Pulled::default())
    }

    fn diagnose(&mut self) -> Option<String> {
        self.note("diagnose");
        Some("RIP=ffffffff81000000".to_owned())
    }

    fn host_trouble(&mut self) -> Option<String> {
        match self.acts.front() {
            Some(Act::StandStill(why) | Act::Misread(why)) => Some(why.clone()),
            _ => None,
        }
    }

    fn misread(&mut self) -> Option<String> {
        match self.acts.front() {
            Some(Act::Misread(why)) => Some(why.clone()),
            _ => None,
        }
    }

    fn keep_disks(&mut self, stage: &StageName) -> Result<Vec<Kept>, String> {
        self.note(&format!("keep disks of {stage}"));
        Ok(vec![Kept { serial: "d".into(), snapshot: format!("run:{stage}:d@kept") }])
    }

    fn end(self: Box<Self>, politely: bool) -> String {
        self.note(if politely { "power off" } else { "kill" });
        if politely { "powered off".into() } else { "killed".into() }
    }
}

struct Told {
    lines: Vec<String>,
    log: Vec<String>,
}

fn stage(name: &str) -> Stage {
    Stage {
        name: name.parse().unwrap(),
        suite: Suite::Script { text: "true".into(), arguments: vec![], completion_file: None },
        timeout_ms: 2000,
        fresh: false,
        environment: vec![],
        artifacts: vec![],
    }
}

fn spec(folder: &Path, stages: Vec<Stage>) -> JobSpec {
    JobSpec {
        schema: job::SCHEMA,
        run: "20261121-142530-7f3a".parse().unwrap(),
        job: "job-1".into(),
        folder: folder.to_owned(),
        kernel: JobKernel {
            identity: KernelIdentity { release: "6.12".into(), digest: "00".into() },
            boot: "/k".into(),
            parameters: vec![],
            fast: false,
        },
        initramfs: Some("/i".into()),
        root: kiln_model::root::JobRoot::default(),
        machine: Shape {
            memory: 1 << 30,
            cpus: 1,
            acceleration: AccelerationChoice::Auto,
            boot_timeout_ms: 200,
            hang_timeout_ms: 300,
            qemu: None,
        },
        first_machine: 1,
        machine_step: 1,
        pool: Some("/p".into()),
        disks: vec![job::Disk { serial: "d".into(), size: 1 << 20, base: None, persistent: None }],
        environment: vec![],
        modules: vec![],
        stages,
        keep_disks: KeepDisks::Never,
        warm: None,
    }
}

fn play_with(
    mut change: impl FnMut(&mut JobSpec),
    stages: Vec<Stage>,
    machines: Vec<Result<Vec<Act>, String>>,
    stop: &StopToken,
) -> Told {
    let folder = tempfile::tempdir().unwrap();
    let mut spec = spec(folder.path(), stages);
    change(&mut spec);
    let mut fake = FakeMachines {
        scripts: machines.into(),
        files: vec!["/tmp/done".into()],
        ..FakeMachines::default()
    };
    let mut lines = Vec::new();
    let mut sink = |event: Event| {
        lines.push(match event.event {
            Happening::StageEnded { stage, outcome, .. } => format!("{stage}: {outcome}"),
            Happening::VmStarted { vm, .. } => format!("machine {vm}"),
            Happening::VmEnded { vm, how } => format!("machine {vm} {how}"),
            Happening::SplatSeen { stage, splat, .. } => {
                format!("splat {} in {:?}", splat.signature, stage.map(|s| s.to_string()))
            }
            Happening::Note { text, .. } => format!("note: {text}"),
            Happening::ArtifactSaved { path, .. } => format!("saved {path}"),
            Happening::DiskKept { snapshot, .. } => format!("kept {snapshot}"),
            Happening::Output { text, .. } => format!("output {}", text.len()),
            _ => return,
        });
    };
    let time = Arc::clone(&fake.time);
    let clock = || *time.lock().unwrap();
    Execution::new(&spec, &mut sink, stop, &clock).all(&mut fake);
    let log = fake.log.lock().unwrap().clone();
    Told { lines, log }
}

fn play(stages: Vec<Stage>, machines: Vec<Result<Vec<Act>, String>>) -> Told {
    play_with(|_| {}, stages, machines, &StopToken::new())
}

impl Told {
    fn outcomes(&self) -> Vec<&str> {
        let is_outcome = |line: &&str| {
            let known =
                ["passed", "failed", "skipped", "timed-out", "crashed", "not-run", "broken"];
            line.split_once(": ")
                .is_some_and(|(_, rest)| known.iter().any(|word| rest.starts_with(word)))
        };
        self.lines.iter().map(String::as_str).filter(is_outcome).collect()
    }
}

#[test]
fn a_crash_a_hang_and_a_timeout_each_cost_one_stage_and_one_machine() {
    let beats = (0..).map(|_| sign(Sign::Heartbeat));
    let mut slow = vec![ready(), Act::AwaitLaunch];
    slow.extend(beats.take(100_000));
    let told = play_with(
        |spec| spec.stages[3].timeout_ms = 100,
        ["one", "panics", "hangs", "slow", "five"].map(stage).to_vec(),
        vec![
            Ok(vec![
                ready(),
                Act::AwaitLaunch,
                exit(0),
                Act::AwaitLaunch,
                splat(SplatKind::Panic, "panic: sysrq triggered crash"),
                sign(Sign::Gone(Gone::ByGuest("reset".into()))),
            ]),
            Ok(vec![ready(), Act::AwaitLaunch]),
            Ok(slow),
            Ok(vec![ready(), Act::AwaitLaunch, exit(0)]),
        ],
        &StopToken::new(),
    );
    assert_eq!(
        told.outcomes(),
        [
            "one: passed",
            "panics: crashed (panic: sysrq triggered crash)",
            "hangs: timed-out (hang)",
            "slow: timed-out (deadline)",
            "five: passed",
        ]
    );
    insta::assert_snapshot!(told.log.join("\n"), @"
    1: launch one
    1: launch panics
    1: kill
    2: launch hangs
    2: diagnose
    2: kill
    3: launch slow
    3: diagnose
    3: cancel
    3: kill
    4: launch five
    4: power off
    ");
    assert!(told.lines.contains(&"saved machines/2/registers.txt".to_owned()), "{:#?}", told.lines);
}

#[test]
fn a_fresh_stage_gets_a_machine_nobody_used_and_a_first_one_needs_no_second() {
    let mut fresh = stage("fresh");
    fresh.fresh = true;
    let told = play(
        vec![fresh.clone(), stage("shares"), Stage { name: "again".parse().unwrap(), ..fresh }],
        vec![
            Ok(vec![ready(), Act::AwaitLaunch, exit(0), Act::AwaitLaunch, exit(1)]),
            Ok(vec![ready(), Act::AwaitLaunch, exit(77)]),
        ],
    );
    assert_eq!(
        told.outcomes(),
        ["fresh: passed", "shares: failed (exit status 1)", "again: skipped (exit status 77)"]
    );
    assert_eq!(
        told.log,
        ["1: launch fresh", "1: launch shares", "1: power off", "2: launch again", "2: power off"]
    );
}

#[test]
fn a_machine_that_crashed_between_two_stages_is_not_blamed_on_the_second() {
    let one = StopToken::new();
    let told = play_with(
        |spec| spec.stages[0].timeout_ms = 60_000,
        ["one", "two"].map(stage).to_vec(),
        vec![
            // The pause lets the first stage end before the crash is heard.
            Ok(vec![
                ready(),
                Act::AwaitLaunch,
                exit(0),
                Act::Pause,
                splat(SplatKind::Oops, "oops: f"),
            ]),
            Ok(vec![ready(), Act::AwaitLaunch, exit(0)]),
        ],
        &one,
    );
    assert_eq!(told.outcomes(), ["one: passed", "two: passed"]);
    assert!(told.lines.contains(&"splat oops: f in None".to_owned()), "{:?}", told.lines);
    assert_eq!(told.log, ["1: launch one", "1: kill", "2: launch two", "2: power off"]);
}

#[test]
fn a_machine_that_never_stops_talking_is_replaced_and_its_stage_still_ends() {
    let told = play_with(
        |spec| spec.stages[0].timeout_ms = 60_000,
        ["one", "two"].map(stage).to_vec(),
        vec![
            Ok(vec![ready(), Act::AwaitLaunch, exit(0), Act::Flood]),
            Ok(vec![ready(), Act::AwaitLaunch, exit(0)]),
        ],
        &StopToken::new(),
    );
    assert_eq!(told.outcomes(), ["one: passed", "two: passed"]);
    assert_eq!(told.log, ["1: launch one", "1: kill", "2: launch two", "2: power off"]);
}

#[test]
fn two_boots_in_a_row_that_fail_end_the_job() {
    let panics = || {
        Ok(vec![
            splat(SplatKind::Panic, "panic: no init"),
            sign(Sign::Gone(Gone::ByGuest("reset".into()))),
        ])
    };
    let told = play(["a", "b", "c"].map(stage).to_vec(), vec![panics(), panics()]);
    assert_eq!(
        told.outcomes(),
        [
            "a: crashed (panic: no init)",
            "b: crashed (panic: no init)",
            "c: not-run (2 machines in a row did not boot)",
        ]
    );
}

#[test]
fn a_boot_that_works_forgives_the_one_that_did_not() {
    let told = play(
        ["a", "b", "c", "d"].map(stage).to_vec(),
        vec![
            Err("no space".into()),
            Ok(vec![
                ready(),
                Act::AwaitLaunch,
                sign(Sign::Gone(Gone::ByHost("QEMU was killed".into()))),
            ]),
            Err("no space".into()),
            Ok(vec![ready(), Act::AwaitLaunch, exit(0)]),
        ],
    );
    assert_eq!(
        told.outcomes(),
        [
            "a: broken (no space)",
            "b: broken (QEMU was killed)",
            "c: broken (no space)",
            "d: passed"
        ]
    );
}

#[test]
fn a_guest_that_never_answers_is_broken_with_a_cure() {
    let told = play(vec![stage("a")], vec![Ok(vec![])]);
    insta::assert_snapshot!(told.lines.join("\n"));
    let talks = sign(Sign::Console(b"[    1.0] Run /init as init process\r\n\x1b[0m\r\n".to_vec()));
    let told = play(vec![stage("a")], vec![Ok(vec![talks])]);
    assert!(
        told.outcomes()[0].contains("the console ends with: [    1.0] Run /init"),
        "{:?}",
        told.lines
    );
}

#[test]
fn a_machine_that_this_host_stopped_is_no_hang_of_its_kernel() {
    let full = Act::StandStill("the disk is full".into());
    let told = play(vec![stage("a")], vec![Ok(vec![ready(), Act::AwaitLaunch, full])]);
    assert_eq!(told.outcomes(), ["a: broken (the disk is full)"]);
}

#[test]
fn a_missing_completion_file_fails_a_script_that_says_it_passed() {
    let with = |file: &str| {
        let mut stage = stage(if file == "/tmp/done" { "there" } else { "missing" });
        let completion_file = Some(file.to_owned());
        stage.suite = Suite::Script { text: "true".into(), arguments: vec![], completion_file };
        stage
    };
    let told = play(
        vec![with("/tmp/done"), with("/tmp/gone")],
        vec![Ok(vec![ready(), Act::AwaitLaunch, exit(0), Act::AwaitLaunch, exit(0)])],
    );
    assert_eq!(
        told.outcomes(),
        [
            "there: passed",
            "missing: failed (exit status 0, but the completion file /tmp/gone is missing)"
        ]
    );
}

#[test]
fn asked_once_the_running_stage_may_end_and_no_other_begins() {
    let stop = StopToken::new();
    let told = play_with(
        |_| {},
        ["a", "b"].map(stage).to_vec(),
        vec![Ok(vec![
            ready(),
            Act::AwaitLaunch,
            Act::AskToStop(stop.clone()),
            sign(Sign::Heartbeat),
            exit(0),
        ])],
        &stop,
    );
    assert_eq!(told.outcomes(), ["a: passed", "b: not-run (interrupted)"]);
    assert_eq!(told.log, ["1: launch a", "1: power off"]);
}

#[test]
fn asked_while_a_machine_boots_no_stage_begins_on_it() {
    let stop = StopToken::new();
    let told = play_with(
        |_| {},
        ["a", "b"].map(stage).to_vec(),
        vec![Ok(vec![Act::AskToStop(stop.clone()), ready(), Act::AwaitLaunch, exit(0)])],
        &stop,
    );
    assert_eq!(told.outcomes(), ["a: not-run (interrupted)", "b: not-run (interrupted)"]);
    assert_eq!(told.log, ["1: kill"]);
}

#[test]
fn asked_twice_everything_ends_now() {
    let stop = StopToken::new();
    let ask = || Act::AskToStop(stop.clone());
    let told = play_with(
        |_| {},
        ["a", "b"].map(stage).to_vec(),
        vec![Ok(vec![ready(), Act::AwaitLaunch, ask(), ask()])],
        &stop,
    );
    assert_eq!(told.outcomes(), ["a: not-run (interrupted)", "b: not-run (interrupted)"]);
    assert_eq!(told.log, ["1: launch a", "1: kill"]);
}

#[test]
fn a_warning_is_told_and_does_not_fail_the_stage() {
    let told = play(
        vec![stage("a")],
        vec![Ok(vec![ready(), Act::AwaitLaunch, splat(SplatKind::Warning, "warning: f"), exit(0)])],
    );
    assert!(told.lines.contains(&"splat warning: f in Some(\"a\")".to_owned()), "{:?}", told.lines);
    assert_eq!(told.outcomes(), ["a: passed"]);
}

#[test]
fn a_flood_of_output_is_bounded_and_said() {
    let mut acts = vec![ready(), Act::AwaitLaunch];
    acts.extend((0..400).map(|_| sign(Sign::Terminal(vec![b'x'; 64 << 10]))));
    acts.push(exit(0));
    let told = play(vec![stage("a")], vec![Ok(acts)]);
    let dropped = 400 * (64 << 10) - (16 << 20);
    assert!(
        told.lines.contains(&format!("note: output of a dropped: {dropped} bytes")),
        "{:?}",
        told.lines.last()
    );
}

fn kept_when(keep_disks: KeepDisks) -> Vec<String> {
    let told = play_with(
        |spec| spec.keep_disks = keep_disks,
        ["passes", "fails", "next"].map(stage).to_vec(),
        vec![Ok(vec![
            ready(),
            Act::AwaitLaunch,
            exit(0),
            Act::AwaitLaunch,
            exit(1),
            Act::AwaitLaunch,
            exit(0),
        ])],
        &StopToken::new(),
    );
    told.lines.into_iter().filter(|line| line.starts_with("kept")).collect()
}

#[test]
fn disks_are_kept_after_the_stages_that_were_asked_for_and_the_machine_goes_on() {
    assert_eq!(kept_when(KeepDisks::Never), Vec::<String>::new());
    assert_eq!(kept_when(KeepDisks::Failed), ["kept run:fails:d@kept"]);
    assert_eq!(kept_when(KeepDisks::Always).len(), 3);
}

/// A guest whose disks failed on this host says nothing about its kernel.
#[test]
fn a_failure_on_disks_that_failed_on_the_host_is_broken_and_the_next_stage_gets_other_disks() {
    let told = play(
        ["fails", "next"].map(stage).to_vec(),
        vec![
            Ok(vec![
                ready(),
                Act::AwaitLaunch,
                exit(1),
                Act::StandStill("the pool is full".into()),
            ]),
            Ok(vec![ready(), Act::AwaitLaunch, exit(0)]),
        ],
    );
    assert!(
        told.lines.contains(&"fails: broken (the pool is full)".to_owned()),
        "{:?}",
        told.lines
    );
    assert!(told.lines.contains(&"next: passed".to_owned()), "{:?}", told.lines);
    assert_eq!(told.log, ["1: launch fails", "1: kill", "2: launch next", "2: power off"]);
}

#[test]
fn a_stage_that_passed_on_a_root_disk_that_could_not_be_read_has_not_passed() {
    for (status, word) in [(0, "passed"), (77, "skipped")] {
        let told = play(
            ["passes", "next"].map(stage).to_vec(),
            vec![
                Ok(vec![ready(), Act::AwaitLaunch, exit(status), Act::Misread("gone".into())]),
                Ok(vec![ready(), Act::AwaitLaunch, exit(0)]),
            ],
        );
        let broken = format!("passes: broken ({word}, but gone)");
        assert_eq!(told.outcomes(), [broken.as_str(), "next: passed"]);
        assert_eq!(told.log, ["1: launch passes", "1: kill", "2: launch next", "2: power off"]);
    }
}

#[test]
fn a_stage_that_passed_although_its_disks_failed_is_told_of_once() {
    let told = play(
        vec![stage("passes")],
        vec![Ok(vec![
            ready(),
            Act::AwaitLaunch,
            exit(0),
            Act::StandStill("3 requests failed".into()),
        ])],
    );
    assert_eq!(told.outcomes(), ["passes: passed"]);
    let warning = "note: passes passed although 3 requests failed".to_owned();
    assert!(told.lines.contains(&warning), "{:?}", told.lines);
}
