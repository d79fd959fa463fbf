//! Runs that never were, for tests.

use kiln_model::event::{
    Acceleration, Event, Happening, KernelIdentity, OutputSource, RunStarted, SCHEMA,
};
use kiln_model::outcome::{Outcome, Verdict};
use kiln_model::splat::{Splat, SplatKind};

/// The kernel of every sample.
pub(crate) const RELEASE: &str = "6.12.117+deb12-cloud-amd64";

/// The events of a run with one stage per outcome, named `stage-1` and on.
pub(crate) fn events(run: &str, outcomes: &[Outcome]) -> Vec<Event> {
    scenario_events(run, "btrfs-smoke", "aa11", outcomes)
}

/// The same for a scenario and a kernel's digest.
pub(crate) fn scenario_events(
    run: &str,
    scenario: &str,
    digest: &str,
    outcomes: &[Outcome],
) -> Vec<Event> {
    let stages: Vec<kiln_model::StageName> =
        (1..=outcomes.len()).map(|n| format!("stage-{n}").parse().unwrap()).collect();
    // The id's own digits, so that later ids begin later.
    let digits: u64 =
        run.chars().filter(char::is_ascii_digit).take(14).collect::<String>().parse().unwrap();
    let mut at = 1_700_000_000_000 + (digits % 100_000_000) * 1000;
    let mut all = Vec::new();
    let mut push = |after: u64, event| {
        at += after;
        all.push(Event { at, event });
    };
    push(
        0,
        Happening::RunStarted(RunStarted {
            schema: SCHEMA,
            run: run.parse().unwrap(),
            kiln: "0.1.0".into(),
            scenario: scenario.into(),
            scenario_source: format!("scenarios/{scenario}.toml"),
            kernel: KernelIdentity { release: RELEASE.into(), digest: digest.into() },
            memory: 512 << 20,
            cpus: 2,
            stages: stages.clone(),
            command: vec!["kiln".into(), "run".into(), scenario.into()],
        }),
    );
    push(40, Happening::VmStarted { vm: 1, acceleration: Acceleration::Tcg, pid: 4711 });
    push(2300, Happening::VmReady { vm: 1, boot_ms: 2300, boot_cpu_ms: 2100, restored: false });
    for (stage, outcome) in stages.iter().zip(outcomes) {
        if matches!(outcome, Outcome::NotRun { .. }) {
            push(
                0,
                Happening::StageEnded {
                    stage: stage.clone(),
                    outcome: outcome.clone(),
                    took_ms: 0,
                },
            );
            continue;
        }
        push(10, Happening::StageStarted { stage: stage.clone(), vm: 1 });
        for line in ["mkfs.btrfs -f /dev/vda\n", "\u{1b}[32mok\u{1b}[0m\n"] {
            let event = Happening::Output {
                stage: Some(stage.clone()),
                source: OutputSource::Terminal,
                text: line.into(),
            };
            push(120, event);
        }
        if let Outcome::Crashed { signature } = outcome {
            let splat = Splat {
                kind: SplatKind::Panic,
                signature: signature.clone(),
                excerpt: "Kernel panic - not syncing: sysrq triggered crash\nCPU: 1 PID: 77 Comm: sh\nCall Trace:\n <TASK>\n dump_stack_lvl+0x44/0x5c\n panic+0x118/0x2ed\n sysrq_handle_crash+0x15/0x20\n".into(),
            };
            push(5, Happening::SplatSeen { vm: 1, stage: Some(stage.clone()), splat });
        }
        push(
            900,
            Happening::StageEnded { stage: stage.clone(), outcome: outcome.clone(), took_ms: 1140 },
        );
    }
    push(100, Happening::VmEnded { vm: 1, how: "powered off".into() });
    push(10, Happening::RunEnded { verdict: Verdict::of(outcomes), took_ms: 4000 });
    all
}

/// The events as a recording keeps them.
pub(crate) fn lines(events: &[Event]) -> Vec<u8> {
    let mut text = Vec::new();
    for event in events {
        if !matches!(event.event, Happening::Output { .. }) {
            text.extend(serde_json::to_vec(event).unwrap());
            text.push(b'\n');
        }
    }
    text
}
