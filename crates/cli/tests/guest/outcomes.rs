//! The five ways a stage goes, in one run.

use crate::room::{GUEST, Room};

#[test]
fn a_panic_a_hang_and_a_timeout_each_cost_one_stage_and_the_run_goes_on() {
    let room = Room::new();
    let scenario = format!(
        r#"
name = "five"
{GUEST}
hang_timeout = "10s"
[[stages]]
name = "passes"
run = "uname -r"
[[stages]]
name = "panics"
run = "echo c >/proc/sysrq-trigger"
[[stages]]
name = "hangs"
# A real-time loop on the only processor, without the share that other programs are usually left.
run = '''
echo -1 >/proc/sys/kernel/sched_rt_runtime_us
for share in /sys/kernel/debug/sched/fair_server/*/runtime; do echo 0 >$share; done
sleep 1
exec chrt -f 99 sh -c 'while :; do :; done'
'''
[[stages]]
name = "slow"
timeout = "3s"
run = "while :; do echo alive; sleep 0.2; done"
[[stages]]
name = "passes-too"
run = "true"
"#
    );
    room.write("five.toml", &scenario);
    let ended = room.run(&["run", "five.toml"]).exits(100);
    assert_eq!(
        room.outcomes(),
        [
            "passes: passed",
            "panics: crashed (panic: sysrq triggered crash)",
            "hangs: timed-out (hang)",
            "slow: timed-out (deadline)",
            "passes-too: passed",
        ],
        "{}",
        ended.stderr
    );
    room.nothing_is_left();
    let (run, _) = room.recorded();
    ended.complains(&[
        "panics: crashed (panic: sysrq triggered crash)",
        "Kernel panic - not syncing: sysrq triggered crash",
        &format!("kiln run --rerun {} --stage panics", run.id),
        &format!("kiln replay {}/slow", run.id),
        &format!("kiln shell {}/slow", run.id),
        "failed: 2 of 5 stages passed, 1 crashed, 2 timed-out",
    ]);
}
