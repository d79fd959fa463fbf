use kiln_model::splat::SplatKind;
use proptest::prelude::*;

use super::*;

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn limits() -> Limits {
    Limits::of(at(10_000), at(3000))
}

fn splat(kind: SplatKind, signature: &str) -> Sign {
    Sign::Splat(Splat { kind, signature: signature.into(), excerpt: String::new() })
}

fn watch(signs: &[(u64, Sign)]) -> Watch {
    let mut watch = Watch::new(at(0), limits());
    for (when, sign) in signs {
        watch.see(at(*when), sign);
    }
    watch
}

fn text(sign: fn(Vec<u8>) -> Sign) -> Sign {
    sign(b"x".to_vec())
}

#[test]
fn an_exit_counts_once_the_console_is_still() {
    let watch = watch(&[(100, Sign::Exited(Exit::Code(0))), (110, text(Sign::Console))]);
    assert_eq!(watch.ending(at(165)), None);
    assert_eq!(watch.wake_at(), at(170));
    assert_eq!(watch.ending(at(170)), Some(Ending::Exited(Exit::Code(0))));
}

#[test]
fn an_exit_counts_even_if_the_console_never_rests() {
    let mut signs = vec![(100, Sign::Exited(Exit::Code(3)))];
    signs.extend((0..200).map(|n| (100 + n * 10, text(Sign::Console))));
    let watch = watch(&signs);
    assert_eq!(watch.ending(at(1100)), Some(Ending::Exited(Exit::Code(3))));
}

#[test]
fn an_oops_beats_the_exit_that_overtook_it() {
    let watch = watch(&[
        (100, Sign::Exited(Exit::Code(0))),
        (130, splat(SplatKind::Oops, "oops: f")),
        (140, splat(SplatKind::Panic, "panic: Fatal exception")),
    ]);
    assert_eq!(watch.ending(at(1000)), None, "the report is still being printed");
    assert_eq!(watch.ending(at(2130)), Some(Ending::Crashed { signature: "oops: f".into() }));
}

#[test]
fn an_exit_waits_for_a_report_that_has_begun() {
    let mut watch = watch(&[(90, Sign::ReportBegun), (100, Sign::Exited(Exit::Code(0)))]);
    assert_eq!(watch.ending(at(2500)), None);
    assert_eq!(watch.wake_at(), at(4100));
    watch.see(at(2600), &splat(SplatKind::Bug, "bug: f"));
    assert_eq!(watch.ending(at(4600)), Some(Ending::Crashed { signature: "bug: f".into() }));
}

#[test]
fn a_crash_is_told_at_once_when_the_machine_is_gone() {
    let watch = watch(&[
        (5, splat(SplatKind::Panic, "panic: sysrq")),
        (9, Sign::Gone(Gone::ByGuest("reset".into()))),
    ]);
    assert_eq!(watch.ending(at(9)), Some(Ending::Crashed { signature: "panic: sysrq".into() }));
}

#[test]
fn a_warning_decides_nothing() {
    let watch = watch(&[
        (5, splat(SplatKind::Warning, "warning: f")),
        (6, splat(SplatKind::Lockdep, "lockdep: f")),
        (9, Sign::Exited(Exit::Code(0))),
    ]);
    assert_eq!(watch.ending(at(500)), Some(Ending::Exited(Exit::Code(0))));
}

#[test]
fn any_sign_of_life_puts_off_the_hang_but_not_the_deadline() {
    for sign in [Sign::Heartbeat, text(Sign::Terminal), text(Sign::Console)] {
        let watch = watch(&[(2000, sign)]);
        assert_eq!(watch.ending(at(4999)), None);
        assert_eq!(watch.ending(at(5000)), Some(Ending::Hang));
    }
    let signs: Vec<_> = (0..10).map(|n| (n * 1000, Sign::Heartbeat)).collect();
    let watch = watch(&signs);
    assert_eq!(watch.wake_at(), at(10_000));
    assert_eq!(watch.ending(at(10_000)), Some(Ending::Deadline));
}

#[test]
fn a_guest_silent_since_before_its_deadline_hangs() {
    let watch = watch(&[(7000, Sign::Heartbeat)]);
    assert_eq!(watch.ending(at(10_000)), Some(Ending::Hang));
}

#[test]
fn a_machine_that_goes_without_a_word_says_whose_fault_it_was() {
    let guest = watch(&[(5, Sign::Gone(Gone::ByGuest("reset".into())))]).ending(at(5)).unwrap();
    assert_eq!(judge_ending(&guest), Some(Outcome::Crashed { signature: "machine: reset".into() }));
    let host =
        watch(&[(5, Sign::Gone(Gone::ByHost("QEMU was killed".into())))]).ending(at(5)).unwrap();
    assert_eq!(judge_ending(&host), Some(Outcome::Broken { reason: "QEMU was killed".into() }));
}

#[test]
fn a_lost_agent_waits_for_a_better_explanation() {
    let lost = (5, Sign::AgentLost("end of file".into()));
    let mut alone = watch(std::slice::from_ref(&lost));
    assert_eq!(alone.ending(at(1000)), None);
    alone.see(at(1500), &splat(SplatKind::Panic, "panic: p"));
    assert_eq!(alone.ending(at(4000)), Some(Ending::Crashed { signature: "panic: p".into() }));
    let alone = watch(&[lost]);
    assert_eq!(alone.ending(at(2005)), Some(Ending::AgentLost("end of file".into())));
}

#[test]
fn exit_statuses_mean_what_the_page_says() {
    let judged = [
        judge_exit(Exit::Code(0), "", None),
        judge_exit(Exit::Code(0), "", Some("/tmp/done")),
        judge_exit(Exit::Code(77), "", None),
        judge_exit(Exit::Code(77), "no raid56 here\n", None),
        judge_exit(Exit::Code(1), "", Some("/tmp/done")),
        judge_exit(Exit::Code(127), "", None),
        judge_exit(Exit::Signal(11), "", None),
        judge_exit(Exit::Signal(64), "", None),
    ];
    let lines: Vec<String> = judged.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

fn any_sign() -> impl Strategy<Value = Sign> {
    prop_oneof![
        Just(Sign::Heartbeat),
        Just(text(Sign::Console)),
        Just(text(Sign::Terminal)),
        Just(Sign::ReportBegun),
        Just(splat(SplatKind::Warning, "w")),
        Just(splat(SplatKind::Oops, "o")),
        (0..3).prop_map(|code| Sign::Exited(Exit::Code(code))),
        Just(Sign::AgentLost("gone".into())),
        Just(Sign::Gone(Gone::ByHost("killed".into()))),
    ]
}

proptest! {
    /// A stage may not outlive every limit, whatever the guest does.
    #[test]
    fn every_stage_ends(signs in proptest::collection::vec((0u64..20_000, any_sign()), 0..20)) {
        let mut signs = signs;
        signs.sort_by_key(|(when, _)| *when);
        let watch = watch(&signs);
        prop_assert!(watch.ending(at(30_000)).is_some());
    }

    /// Asking at `wake_at` always settles something: the job never spins.
    #[test]
    fn waking_up_when_told_to_is_never_in_vain(signs in proptest::collection::vec((0u64..9_000, any_sign()), 0..20)) {
        let mut signs = signs;
        signs.sort_by_key(|(when, _)| *when);
        let watch = watch(&signs);
        prop_assert!(watch.ending(watch.wake_at()).is_some());
    }

    /// A kernel that oopsed never passes.
    #[test]
    fn a_fatal_splat_never_passes(signs in proptest::collection::vec((0u64..9_000, any_sign()), 0..20)) {
        let mut signs = signs;
        signs.sort_by_key(|(when, _)| *when);
        signs.insert(0, (0, splat(SplatKind::Oops, "first")));
        let crashed = Ending::Crashed { signature: "first".into() };
        prop_assert_eq!(watch(&signs).ending(at(9_000 + 2_000)), Some(crashed));
    }
}
