//! The local backend with shell scripts as jobs.

use std::path::Path;

use kiln_model::event::{Event, KernelIdentity};
use kiln_model::job::{self, AccelerationChoice, JobKernel, KeepDisks, Machine, Stage, Suite};
use kiln_model::outcome::Outcome;

use super::*;

fn spec(folder: &Path) -> JobSpec {
    let stage = |name: &str| Stage {
        name: name.parse().unwrap(),
        suite: Suite::Script { text: "true".into(), arguments: vec![], completion_file: None },
        timeout_ms: 1000,
        fresh: false,
        environment: vec![],
        artifacts: vec![],
    };
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
        machine: Machine {
            memory: 1 << 30,
            cpus: 1,
            acceleration: AccelerationChoice::Auto,
            boot_timeout_ms: 1000,
            hang_timeout_ms: 1000,
            qemu: None,
        },
        first_machine: 1,
        machine_step: 1,
        pool: None,
        disks: vec![],
        environment: vec![],
        modules: vec![],
        stages: vec![stage("a"), stage("b")],
        keep_disks: KeepDisks::Never,
        warm: None,
    }
}

fn passed(stage: &str) -> String {
    let outcome = Outcome::Passed;
    let event = Happening::StageEnded { stage: stage.parse().unwrap(), outcome, took_ms: 1 };
    serde_json::to_string(&Event { at: 1, event }).unwrap()
}

/// Runs a shell script as the job; the sink may ask for a stop when it sees what it waits for.
fn run_script(script: &str, stop: &StopToken, stop_at: &str) -> (Verdict, Vec<String>) {
    run_script_until(script, stop, stop_at, StopToken::ask)
}

fn run_script_until(
    script: &str,
    stop: &StopToken,
    stop_at: &str,
    request: fn(&StopToken),
) -> (Verdict, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let arguments = vec!["-c".into(), script.into(), "job".into()];
    let program = JobProgram { program: "/bin/sh".into(), arguments };
    let mut told = Vec::new();
    let mut sink = |event: Event| {
        let line = match event.event {
            Happening::StageEnded { stage, outcome, .. } => format!("{stage}: {outcome}"),
            Happening::RunEnded { verdict, .. } => format!("run: {verdict}"),
            Happening::Note { text, .. } => format!("note: {text}"),
            other => format!("{other:?}"),
        };
        if line.contains(stop_at) && !stop_at.is_empty() {
            request(stop);
        }
        told.push(line);
    };
    let verdict = run(&[spec(folder.path())], Vec::new(), &program, &mut sink, stop);
    (verdict, told)
}

#[test]
fn events_of_the_job_are_passed_on_and_added_up() {
    let script =
        format!("test -s \"$1\" || exit 9\necho '{}'\necho '{}'", passed("a"), passed("b"));
    let (verdict, told) = run_script(&script, &StopToken::new(), "");
    assert_eq!(told, ["a: passed", "b: passed", "run: passed"]);
    assert_eq!(verdict, Verdict::Passed);
}

#[test]
fn a_job_that_is_killed_leaves_its_other_stages_broken_and_the_run_an_end() {
    let script = format!("echo '{}'\necho 'no space left' >&2\nkill -KILL $$", passed("a"));
    let (verdict, told) = run_script(&script, &StopToken::new(), "");
    assert_eq!(
        told,
        [
            "a: passed",
            "b: broken (the job ended with signal: 9 (SIGKILL): no space left)",
            "run: broken"
        ]
    );
    assert_eq!(verdict, Verdict::Broken);
}

#[test]
fn a_job_that_cannot_start_says_so_for_every_stage() {
    let folder = tempfile::tempdir().unwrap();
    let program = JobProgram { program: "/nowhere/kiln".into(), arguments: vec![] };
    let mut reasons = Vec::new();
    let mut sink = |event: Event| {
        if let Happening::StageEnded { outcome: Outcome::Broken { reason }, .. } = event.event {
            reasons.push(reason);
        }
    };
    run(&[spec(folder.path())], Vec::new(), &program, &mut sink, &StopToken::new());
    assert_eq!(reasons.len(), 2);
    assert!(reasons[0].contains("cannot start /nowhere/kiln"), "{reasons:?}");
}

#[test]
fn a_request_to_stop_reaches_the_job_as_an_interrupt() {
    let script = format!(
        "trap 'echo \"{}\"; exit 0' INT\necho boo\nwhile :; do sleep 0.05; done",
        passed("a").replace('"', "\\\"")
    );
    let (verdict, told) = run_script(&script, &StopToken::new(), "boo");
    assert_eq!(told[1..], ["a: passed", "b: not-run (interrupted)", "run: interrupted"]);
    assert_eq!(verdict, Verdict::Interrupted);
}

/// Had it been two interrupts, the job might have heard only one, and let its stage run to the end.
#[test]
fn a_request_to_stop_at_once_reaches_the_job_as_a_termination() {
    let script = format!(
        "trap 'echo \"{}\"; exit 0' TERM\ntrap '' INT\necho boo\nwhile :; do sleep 0.05; done",
        passed("a").replace('"', "\\\"")
    );
    let (_, told) = run_script_until(&script, &StopToken::new(), "boo", StopToken::kill);
    assert_eq!(told[1..], ["a: passed", "b: not-run (interrupted)", "run: interrupted"]);
}

#[test]
fn an_endless_line_is_stepped_over() {
    let mut text = vec![b'x'; MAX_LINE + 5];
    text.extend_from_slice(b"\nnext\n");
    let mut seen = Vec::new();
    read_lines(BufReader::new(&text[..]), |line| {
        seen.push(match line {
            FromJob::Line(line) => String::from_utf8(line).unwrap(),
            FromJob::Overlong => "overlong".to_owned(),
            FromJob::End => "end".to_owned(),
        });
        true
    });
    assert_eq!(seen, ["overlong", "next\n"]);
}
