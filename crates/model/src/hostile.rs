//! Text from guests, kernels and files of others, made fit to be looked at.
//!
//! It is hostile: a control character could repaint what was said before, an override could turn a line around, and
//! what has no width could make two names look the same. Which characters those are is said once, here
//! ([`deceives`]). Names are shown with escapes, so that they can be told apart ([`line()`]); prose is shown with U+FFFD
//! in their place ([`one_line`], [`visible`]).

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character steers a terminal, changes how others are shown, or shows nothing: C0 and C1 controls (line
/// feed and tab among them), line and paragraph separators, bidirectional marks, overrides and isolates, and what has
/// no width.
pub fn deceives(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// One line, as long as it comes, with each character that [`deceives`] replaced by its escape (`\x1b`, `\u{202e}`).
/// Tabs become a space; line feeds are escaped too.
pub fn line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(deceives) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\t' => shown.push(' '),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            c if deceives(c) && u32::from(c) < 0x100 => {
                let _infallible = write!(shown, "\\x{:02x}", u32::from(c));
            }
            c if deceives(c) => {
                let _infallible = write!(shown, "\\u{{{:x}}}", u32::from(c));
            }
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// One line of at most so many characters, with `…` for what was cut: what [`deceives`] becomes U+FFFD, line ends and
/// tabs a space.
pub fn one_line(text: &str, most: usize) -> String {
    let mut line: String = text
        .chars()
        .take(most)
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            c => harmless(c),
        })
        .collect();
    if text.chars().nth(most).is_some() {
        line.pop();
        line.push('…');
    }
    line
}

/// Lines that stay lines: line feeds and tabs are kept, whatever else [`deceives`] becomes U+FFFD.
pub fn visible(text: &str) -> String {
    text.chars().map(|c| if matches!(c, '\n' | '\t') { c } else { harmless(c) }).collect()
}

fn harmless(c: char) -> char {
    if deceives(c) { '\u{fffd}' } else { c }
}

/// The text without terminal escape sequences (CSI, strings such as OSC, and two-character ones). What is left may
/// still deceive.
pub fn without_sequences(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\x1b' {
            bare.push(c);
            continue;
        }
        match chars.next() {
            Some('[') => while chars.next().is_some_and(|c| !('\x40'..='\x7e').contains(&c)) {},
            Some(']' | 'P' | '_' | '^' | 'X') => {
                // Up to BEL or ST (`ESC \`).
                while let Some(c) = chars.next() {
                    if c == '\x07' {
                        break;
                    }
                    if c == '\x1b' {
                        chars.next_if_eq(&'\\');
                        break;
                    }
                }
            }
            Some('(' | ')' | '*' | '+' | '#' | ' ') => {
                chars.next();
            }
            Some(_) | None => {}
        }
    }
    bare
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_that_steers_or_reorders_or_hides_gets_through() {
        let hostile = "a\x1b[2Jb\x07c\u{9b}31md\u{202e}e\x7f\nf\tg";
        assert_eq!(line(hostile), "a\\x1b[2Jb\\x07c\\x9b31md\\u{202e}e\\x7f\\nf g");
        for c in "\0\x1b\x7f\u{85}\u{9f}\u{200b}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}\u{feff}".chars() {
            assert!(deceives(c), "{c:?}");
        }
        for c in " ~äß漢é€…\u{fffd}😀".chars() {
            assert!(!deceives(c), "{c:?}");
        }
    }

    #[test]
    fn prose_is_bounded_and_says_that_it_was_cut() {
        assert_eq!(one_line("a\nb\u{1b}[31mc\u{202e}", 80), "a b\u{fffd}[31mc\u{fffd}");
        assert_eq!(one_line("abcdef", 4), "abc…");
        assert_eq!(one_line("abcd", 4), "abcd");
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(visible("a\tb\r\n\u{2029}c\n"), "a\tb\u{fffd}\n\u{fffd}c\n");
    }

    #[test]
    fn sequences_go_whole_even_where_they_are_cut_short() {
        assert_eq!(
            without_sequences("\x1b]0;title\x07a\x1b[1;31mb\x1b(Bc\x1b]8;;x\x1b\\d"),
            "abcd"
        );
        assert_eq!(without_sequences("x\x1b"), "x");
        assert_eq!(without_sequences("x\x1b[31"), "x");
    }

    proptest! {
        #[test]
        fn whatever_comes_in_nothing_that_deceives_comes_out(text: String, most in 0usize..40) {
            prop_assert!(!line(&text).chars().any(deceives));
            let short = one_line(&text, most);
            prop_assert!(!short.chars().any(deceives));
            prop_assert!(short.chars().count() <= most.max(1));
            prop_assert!(!visible(&text).chars().any(|c| deceives(c) && !matches!(c, '\n' | '\t')));
        }
    }
}
