//! Runs that are stopped: politely, at once, and from behind.

use kiln_model::event::Happening;
use kiln_model::outcome::{Outcome, Verdict};
use rustix::process::{Pid, Signal, kill_process};

use crate::room::{GUEST, Room, gone};

/// A first stage that passes, a second that goes on until something is done about it, and a third.
fn scenario(second: &str) -> String {
    format!(
        "name = \"stopped\"\n{GUEST}\n\
         [[stages]]\nname = \"one\"\nrun = \"true\"\n\
         [[stages]]\nname = \"two\"\nrun = \"{second}\"\n\
         [[stages]]\nname = \"three\"\nrun = \"true\"\n"
    )
}

#[test]
fn a_killed_run_leaves_no_machine_and_is_shown_as_interrupted() {
    let room = Room::new();
    let mut run = room.start(&scenario("sleep 1000"));
    run.until_started("two");
    let processes = run.processes();
    assert_eq!(processes.len(), 2, "a job and an emulator");
    run.signal(Signal::KILL);
    let (status, _) = run.end();
    assert!(!status.success());
    processes.into_iter().for_each(gone);
    assert_eq!(room.outcomes(), ["one: passed", "two: unfinished", "three: not-started"]);
    let shown = room.run(&["show", "last"]).exits(0).stdout;
    assert!(shown.contains("interrupted: 1 of 3 stages passed, 2 without an end"), "{shown}");
}

#[test]
fn one_interrupt_lets_the_stage_finish_and_starts_no_other() {
    let room = Room::new();
    let mut run = room.start(&scenario("sleep 3"));
    run.until_started("two");
    run.signal(Signal::INT);
    let (status, events) = run.end();
    assert_eq!(status.code(), Some(130), "{events:?}");
    assert_eq!(room.outcomes(), ["one: passed", "two: passed", "three: not-run (interrupted)"]);
    assert!(matches!(
        events.last(),
        Some(Happening::RunEnded { verdict: Verdict::Interrupted, .. })
    ));
    room.nothing_is_left();
    // What never ran is run again, and only that.
    room.run(&["run", "--rerun", "last"]).exits(0);
    assert_eq!(room.outcomes(), ["three: passed"]);
}

#[test]
fn two_interrupts_stop_at_once() {
    let room = Room::new();
    let mut run = room.start(&scenario("sleep 1000"));
    run.until_started("two");
    run.signal(Signal::INT);
    // Two signals that come together are heard as one, so the second waits until the first was heard.
    run.until_said("Ctrl-C again stops at once");
    run.signal(Signal::INT);
    run.until(|event| {
        matches!(event, Happening::StageEnded { stage, .. } if stage.as_str() == "two")
            .then_some(())
    });
    let (status, events) = run.end();
    assert_eq!(status.code(), Some(130), "{events:?}");
    room.nothing_is_left();
}

#[test]
fn being_terminated_stops_at_once() {
    let room = Room::new();
    let mut run = room.start(&scenario("sleep 1000"));
    run.until_started("two");
    run.signal(Signal::TERM);
    let (status, events) = run.end();
    assert_eq!(status.code(), Some(130), "{events:?}");
    assert_eq!(room.outcomes()[2], "three: not-run (interrupted)");
    room.nothing_is_left();
}

#[test]
fn a_job_that_is_killed_takes_its_machine_along_and_breaks_the_run() {
    let room = Room::new();
    let mut run = room.start(&scenario("sleep 1000"));
    run.until_started("two");
    let job = run.processes()[0];
    let job = Pid::from_raw(i32::try_from(job).unwrap()).unwrap();
    kill_process(job, Signal::KILL).unwrap();
    let (status, events) = run.end();
    assert_eq!(status.code(), Some(103), "{events:?}");
    let broken = events.iter().any(|event| {
        matches!(event, Happening::StageEnded { stage, outcome: Outcome::Broken { .. }, .. } if stage.as_str() == "two")
    });
    assert!(broken, "{events:?}");
    room.nothing_is_left();
}
