//! What stays the same when the same bug strikes again.

/// The longest signature.
const MAX_SIGNATURE: usize = 160;
/// The longest name of a function believed.
const MAX_FUNCTION: usize = 100;

/// Functions a sleeping or warning task is always in: they say how it waits, not for what.
const WAITING: &[&str] = &[
    "__schedule",
    "schedule",
    "schedule_timeout",
    "schedule_preempt_disabled",
    "io_schedule",
    "io_schedule_timeout",
    "schedule_hrtimeout_range_clock",
    "schedule_rtlock",
    "context_switch",
    "preempt_schedule_irq",
    "__mutex_lock",
    "__mutex_lock_slowpath",
    "mutex_lock",
    "mutex_lock_nested",
    "__mutex_lock_common",
    "rwsem_down_read_slowpath",
    "rwsem_down_write_slowpath",
    "down_read",
    "down_write",
    "down",
    "__down",
    "__down_common",
    "wait_for_completion",
    "__wait_for_common",
    "do_wait_for_common",
    "wait_for_common",
    "wait_for_completion_io",
    "bit_wait",
    "bit_wait_io",
    "__wait_on_bit",
    "__wait_on_bit_lock",
    "out_of_line_wait_on_bit",
    "folio_wait_bit_common",
    "folio_wait_bit",
    "__folio_lock",
    "rt_mutex_schedule",
    "rwbase_write_lock",
    "percpu_down_write",
    "percpu_rwsem_wait",
    "__percpu_down_read",
    "blk_mq_get_tag",
    "wait_on_page_bit",
    "dump_stack",
    "dump_stack_lvl",
    "show_stack",
    "asm_sysvec_apic_timer_interrupt",
];

/// Whether a function only says how a task waits.
pub(super) fn is_waiting(name: &str) -> bool {
    WAITING.contains(&name)
}

/// The bare name in `name.isra.0+0x1/0x2 [module]`; nothing when it is no name.
pub(super) fn function(text: &str) -> Option<&str> {
    let word = text.trim().split([' ', ',']).next()?;
    let name = word.split('+').next()?;
    // `.isra.0`, `.constprop.0`, `.part.0`, `.cold`, `.llvm.123`: how the compiler cut it this time.
    let name = name.split('.').next()?;
    let first = name.bytes().next()?;
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$');
    let fits = name.len() <= MAX_FUNCTION && !first.is_ascii_digit();
    (plain && fits).then_some(name)
}

/// Printable, bounded, with every number that may change replaced by `#`: hexadecimal ones, and decimal ones that
/// stand alone. `ext4` and `raid5` keep theirs.
pub(super) fn normal(text: &str) -> String {
    let mut out = String::new();
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        normal_word(word, &mut out);
        if out.len() > MAX_SIGNATURE {
            break;
        }
    }
    bounded(&out)
}

fn normal_word(word: &str, out: &mut String) {
    let mut rest = word;
    while let Some(first) = rest.chars().next() {
        let end =
            |part: &str, good: fn(char) -> bool| part.find(|c| !good(c)).unwrap_or(part.len());
        if first.is_ascii_alphanumeric() || first == '_' {
            let (run, later) = rest.split_at(end(rest, |c| c.is_ascii_alphanumeric() || c == '_'));
            out.push_str(if is_changing_number(run) { "#" } else { run });
            rest = later;
        } else {
            out.push(if first.is_ascii_graphic() { first } else { '?' });
            rest = &rest[first.len_utf8()..];
        }
    }
}

fn is_changing_number(run: &str) -> bool {
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    match run.strip_prefix("0x") {
        Some(digits) => hex(digits),
        None => {
            run.bytes().all(|b| b.is_ascii_digit())
                || run.len() >= 8 && hex(run) && run.bytes().any(|b| b.is_ascii_digit())
        }
    }
}

/// `array-index-out-of-bounds in fs/x.c:12:3` loses its line and column, and an exclamation mark.
pub(super) fn without_line_numbers(text: &str) -> String {
    let words: Vec<&str> = text
        .trim_end_matches('!')
        .split_whitespace()
        .map(|word| match word.split_once(':') {
            Some((file, line))
                if file.contains('.') && line.starts_with(|c: char| c.is_ascii_digit()) =>
            {
                file
            }
            _ => word,
        })
        .collect();
    normal(&words.join(" "))
}

/// Cuts at a character's border.
pub(super) fn bounded(text: &str) -> String {
    text.chars().take(MAX_SIGNATURE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_change_from_run_to_run_do_not_reach_the_signature() {
        assert_eq!(
            normal("Attempted to kill init! exitcode=0x0000000b"),
            "Attempted to kill init! exitcode=#"
        );
        assert_eq!(normal("ext4 raid5 ffff888012345678 17 \x1b[31m"), "ext4 raid5 # # ?[31m");
        assert_eq!(without_line_numbers("fs/btrfs/inode.c:1234!"), "fs/btrfs/inode.c");
        assert_eq!(function("btrfs_x.isra.0+0x1a/0x20 [btrfs]"), Some("btrfs_x"));
        assert_eq!(function("0xffffffff81000000"), None);
    }
}
