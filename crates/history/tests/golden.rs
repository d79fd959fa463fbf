//! Recordings of version 1, as the first Kiln wrote them, stay readable (`docs/formats/recording.md`).

use std::path::Path;
use std::time::Duration;

use kiln_history::{Replay, ReplayOptions, RunFolder, RunState, RunSummary};
use kiln_model::event::Acceleration;
use kiln_model::outcome::{Outcome, TimeoutCause, Verdict};
use kiln_model::splat::SplatKind;

fn golden() -> RunFolder {
    RunFolder::at(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/recording-1"))
}

#[test]
fn a_recording_of_version_1_tells_the_same_run_for_ever() {
    let run = RunSummary::read(&golden()).unwrap();
    assert_eq!(run.id.as_str(), "20261121-142530-7f3a");
    assert_eq!((run.started, run.took_ms), (1_795_271_130_000, 31_500));
    assert_eq!(run.scenario, "btrfs-smoke");
    assert_eq!(run.kernel.release, "6.12.117+deb12-cloud-amd64");
    assert_eq!((run.memory, run.cpus), (1 << 29, 2));
    assert_eq!(run.command, ["kiln", "run", "btrfs-smoke"]);
    assert_eq!((run.state, run.verdict), (RunState::Ended, Some(Verdict::Failed)));
    let outcomes: Vec<_> = run.stages.iter().map(|stage| stage.outcome.clone().unwrap()).collect();
    assert_eq!(
        outcomes,
        [
            Outcome::Passed,
            Outcome::Failed { reason: "exit status 3".into() },
            Outcome::Crashed { signature: "panic: sysrq triggered crash".into() },
            Outcome::TimedOut { cause: TimeoutCause::Hang },
            Outcome::TimedOut { cause: TimeoutCause::Deadline },
            Outcome::Skipped { reason: "no quota tools".into() },
            Outcome::NotRun { reason: "interrupted".into() },
            Outcome::Broken { reason: "no qemu".into() },
        ]
    );
    assert_eq!(run.stages[2].splats[0].kind, SplatKind::Panic);
    assert_eq!(run.stages[0].artifacts[0].path, "stages/mkfs/dmesg.txt");
    assert_eq!(run.machines[0].acceleration, Acceleration::Tcg);
    assert_eq!(run.machines[0].boot_ms, Some(2300));
    assert_eq!(run.notes[0].text, "KVM cannot run a kernel here");
    assert_eq!(run.damage.unreadable_lines, 0, "events of later kinds are no damage");
}

#[test]
fn a_terminal_of_version_1_plays_the_same_for_ever() {
    let replay = Replay::open(&golden(), "x", &"mkfs".parse().unwrap()).unwrap();
    assert_eq!((replay.header().size.columns, replay.header().size.rows), (80, 24));
    let options = ReplayOptions { speed: 1.0, idle_limit: None };
    let frames: Vec<_> =
        replay.frames(options).map(|frame| frame.map(|f| (f.wait, f.text)).unwrap()).collect();
    assert_eq!(
        frames,
        [
            (Duration::from_millis(120), "mkfs.btrfs -f /dev/vda\r\n".to_owned()),
            (Duration::from_millis(880), "\u{1b}[32mok\u{1b}[0m\r\n".to_owned()),
        ]
    );
}
