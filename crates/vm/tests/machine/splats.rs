//! The kernel's reports, as consoles showed them: what is found, how it is called, and what is not believed.

use kiln_model::splat::{Splat, SplatKind};
use kiln_vm::console::LineSplitter;
use kiln_vm::splat::Detector;

fn splats(console: &[u8]) -> Vec<Splat> {
    let mut splitter = LineSplitter::default();
    let mut detector = Detector::new();
    let mut found = Vec::new();
    let mut lines = Vec::new();
    splitter.push(console, |line| lines.push(line));
    splitter.finish(|line| lines.push(line));
    for line in &lines {
        detector.push(line, |splat| found.push(splat));
    }
    detector.finish(|splat| found.push(splat));
    found
}

fn signatures(console: &[u8]) -> Vec<String> {
    splats(console).into_iter().map(|splat| splat.signature).collect()
}

const LKDTM: &[u8] = include_bytes!("data/console/console-lkdtm-warn-hung-oops.log");
const PANIC: &[u8] = include_bytes!("data/console/console-sysrq-c-panic.log");
const KINDS: &str = include_str!("data/console/kinds.txt");

#[test]
fn a_warning_a_hung_task_and_an_oops_are_three_reports_named_by_their_functions() {
    insta::assert_snapshot!(signatures(LKDTM).join("\n"), @r"
    warning: lkdtm_WARNING
    hung-task: lkdtm_HUNG_TASK
    oops: lkdtm_EXCEPTION
    ");
}

#[test]
fn an_excerpt_begins_with_its_headline_and_ends_with_the_kernels_end_mark() {
    let found = splats(LKDTM);
    let lines: Vec<&str> = found[0].excerpt.lines().collect();
    assert_eq!(lines[0], "------------[ cut here ]------------");
    assert_eq!(lines[1], "WARNING: CPU: 0 PID: 58 at lkdtm_WARNING+0xa/0x10 [lkdtm]");
    assert_eq!(lines[lines.len() - 1], "---[ end trace 0000000000000000 ]---");
    assert!(!found[0].excerpt.contains("PROVOKE"), "a program's line is no part of a report");
}

#[test]
fn a_panic_is_named_by_what_it_says_and_a_requested_backtrace_is_no_report() {
    assert_eq!(signatures(PANIC), ["panic: sysrq triggered crash"]);
    let found = splats(PANIC);
    assert_eq!(found[0].kind, SplatKind::Panic);
    assert!(found[0].excerpt.contains("Kernel Offset:"), "{}", found[0].excerpt);
}

#[test]
fn every_kind_is_told_from_the_others() {
    let mut table = String::new();
    for sample in KINDS.split("### ").skip(1) {
        let (title, console) = sample.split_once('\n').unwrap();
        table.push_str(title);
        for signature in signatures(console.as_bytes()) {
            table.push_str("\n    ");
            table.push_str(&signature);
        }
        table.push('\n');
    }
    insta::assert_snapshot!(table, @r"
    oops: page fault, two headlines, then the panic it causes
        oops: sample_write_pages
        panic: Fatal exception in interrupt
    kernel BUG with its oops
        bug: sample_extent_clear
    older kernel BUG
        bug: sample_ext4
    sleeping in atomic context
        bug: sleeping function called from invalid context at kernel/locking/mutex.c
    warning with file and line
        warning: sample_put_group
    warning as newer kernels print it
        warning: sample_put_group
    KASAN
        kasan: slab-use-after-free in sample_free_node
    KCSAN: the order of the two functions is chance
        kcsan: data-race in sample_reader / sample_writer
    KMSAN
        kmsan: uninit-value in sample_csum
    UBSAN
        ubsan: array-index-out-of-bounds in fs/ext4/sample.c
    lockdep
        lockdep: possible circular locking dependency detected in sample_commit
    soft lockup
        soft-lockup: sample_spin
    hard lockup
        hard-lockup: sample_irqs_off
    RCU stall
        rcu-stall: sample_loop
    out of memory
        oom-kill: fsstress
    ");
}

#[test]
fn the_signature_is_the_same_on_another_cpu_with_other_addresses_and_times() {
    let other = KINDS
        .replace("PID: 812", "PID: 9")
        .replace("PID: 4242", "PID: 1")
        .replace("CPU: 3", "CPU: 0")
        .replace("CPU#2", "CPU#0")
        .replace("+0x57/0x60", "+0x99/0x1f0")
        .replace("ffffc90000a3f000", "ffffc900dead0000")
        .replace("c:4321", "c:4400")
        .replace("sample_writer / sample_reader", "sample_reader / sample_writer")
        .replace(".isra.0", ".constprop.3");
    for (one, two) in KINDS.split("### ").zip(other.split("### ")) {
        assert_eq!(signatures(one.as_bytes()), signatures(two.as_bytes()));
    }
}

#[test]
fn text_a_program_prints_is_not_believed() {
    let quoted = "[   50.000001] systemd: up\nKernel panic - not syncing: Fatal exception\n\
                  WARNING: CPU: 0 PID: 1 at x+0x1/0x2\nCall Trace:\n";
    assert_eq!(signatures(quoted.as_bytes()), [""; 0]);
    let replayed = format!("[   90.000000] loop: module loaded\n{KINDS}");
    assert_eq!(signatures(replayed.as_bytes()), [""; 0], "a printed dmesg is the past");
    let lonely = "[    1.000000] BUG: something a test wrote to /dev/kmsg\n[    1.1] x\n";
    assert_eq!(signatures(lonely.as_bytes()), [""; 0]);
}

#[test]
fn two_cpus_that_print_at_once_give_two_whole_reports_where_the_kernel_names_them() {
    let console = "\
[    5.000001][    T7] WARNING: CPU: 0 PID: 7 at fs/a.c:1 sample_a+0x1/0x2\n\
[    5.000002][    T8] WARNING: CPU: 1 PID: 8 at fs/b.c:1 sample_b+0x1/0x2\n\
[    5.000003][    T7] Modules linked in: a\n\
[    5.000004][    T8] Modules linked in: b\n\
[    5.000005][    T8] ---[ end trace 0 ]---\n\
[    5.000006][    T7] ---[ end trace 0 ]---\n";
    let found = splats(console.as_bytes());
    assert_eq!(signatures(console.as_bytes()), ["warning: sample_b", "warning: sample_a"]);
    assert!(found.iter().all(|splat| splat.excerpt.lines().count() == 3), "{found:?}");
}

#[test]
fn a_warning_in_a_loop_is_reported_a_bounded_number_of_times() {
    let mut console = String::new();
    for n in 0..1000 {
        console.push_str(&format!(
            "[{n:5}.000001] WARNING: CPU: 0 PID: {n} at fs/a.c:1 sample_a+0x1/0x2\n[{n:5}.000002] Call Trace:\n"
        ));
    }
    assert_eq!(signatures(console.as_bytes()).len(), 16);
}

#[test]
fn a_report_that_never_ends_is_cut() {
    let mut console = String::from("[    1.000000] Kernel panic - not syncing: x\n");
    for _ in 0..100_000 {
        console.push_str("[    1.000001] ");
        console.push_str(&"\u{1b}[2Jevil ".repeat(50));
        console.push('\n');
    }
    let found = splats(console.as_bytes());
    assert_eq!(found.len(), 1);
    assert!(found[0].excerpt.len() < 32 << 10);
    assert!(!found[0].excerpt.contains('\u{1b}'));
}

proptest::proptest! {
    #[test]
    fn no_console_makes_the_detector_panic_or_grow(parts in proptest::collection::vec(
        proptest::sample::select(vec![
            "[    1.000000] ", "[    9.999999][    C3] ", "BUG: ", "WARNING: ", "CPU: 0 PID: 1 at ", "Call Trace:", "\n",
            "KASAN: ", " in ", "a+0x1/0x2", "Oops: ", "[#1]", "[#", "Kernel panic - not syncing:", "INFO: task ",
            " blocked for more than ", "RIP: 0010:", "RIP: ", "\u{fffd}", "=====", "</TASK>", ", at: ", "Out of memory",
            "Killed process ", "(", ")", " invoked oom-killer: ", "UBSAN: ", ".", ":", "0x", "\u{1b}", " ", "é",
        ]), 0..200)) {
        for splat in splats(parts.concat().as_bytes()) {
            proptest::prop_assert!(splat.signature.chars().count() <= 160);
            proptest::prop_assert!(splat.excerpt.len() <= 32 << 10);
            proptest::prop_assert!(!splat.excerpt.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
        }
    }
}
