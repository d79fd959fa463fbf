//! Text from guests, kernels and files of others is hostile: on a terminal, a control character could repaint
//! what was said before, and a bidirectional override could reorder it. Everything shown goes through here.

use std::borrow::Cow;
use std::fmt::Write as _;

use unicode_width::UnicodeWidthChar as _;

/// One line's worth of text with every character that could steer a terminal replaced by its escape
/// (`\x1b`, `\u{202e}`). Tabs become a space; line feeds are escaped too.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\t' => shown.push(' '),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            c if steers(c) && u32::from(c) < 0x100 => {
                let _infallible = write!(shown, "\\x{:02x}", u32::from(c));
            }
            c if steers(c) => {
                let _infallible = write!(shown, "\\u{{{:x}}}", u32::from(c));
            }
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// The last line of a piece of terminal output as a person would see it: escape sequences removed rather than
/// shown, an overwritten line (`\r`) as it was overwritten. What is left still goes through [`line()`].
pub(crate) fn last_line(text: &str) -> Option<String> {
    let bare = without_sequences(text);
    let last =
        bare.split('\n').map(|l| l.trim_end_matches('\r')).rfind(|l| !l.trim().is_empty())?;
    let last = last.rsplit('\r').find(|part| !part.trim().is_empty())?;
    Some(line(last.trim_end()).into_owned())
}

/// The text without terminal escape sequences (CSI, OSC and two-character ones).
pub(crate) fn without_sequences(text: &str) -> String {
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

/// Cuts to at most `columns` terminal columns, with `…` where something was cut.
pub(crate) fn cut(text: &str, columns: usize) -> Cow<'_, str> {
    let mut used = 0;
    let mut fits_with_mark = 0;
    for (at, c) in text.char_indices() {
        let width = c.width().unwrap_or(0);
        if used + width > columns {
            return Cow::Owned(format!("{}…", &text[..fits_with_mark]));
        }
        used += width;
        if used < columns {
            fits_with_mark = at + c.len_utf8();
        }
    }
    Cow::Borrowed(text)
}

fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_gets_through() {
        let hostile = "a\x1b[2Jb\x07c\u{9b}31md\u{202e}e\x7f\nf\tg";
        let shown = line(hostile);
        assert_eq!(shown, "a\\x1b[2Jb\\x07c\\x9b31md\\u{202e}e\\x7f\\nf g");
        assert!(!shown.chars().any(char::is_control));
    }

    #[test]
    fn a_progress_line_is_shown_as_it_was_last_overwritten() {
        assert_eq!(last_line("10%\r50%\r\x1b[K90%\r").as_deref(), Some("90%"));
        assert_eq!(last_line("one\r\ntwo\x1b[0m\r\n\r\n").as_deref(), Some("two"));
        assert_eq!(last_line("\x1b]0;title\x07\n"), None);
        assert_eq!(last_line("x\x1b"), Some("x".to_owned()));
    }

    fn width(text: &str) -> usize {
        text.chars().map(|c| c.width().unwrap_or(0)).sum()
    }

    #[test]
    fn a_cut_text_never_takes_more_columns_than_it_may() {
        for text in ["", "short", "exactly ten", "wide 漢字漢字漢字", "é́́́́́́"] {
            for columns in 1..14 {
                assert!(width(&cut(text, columns)) <= columns, "{text} in {columns}");
            }
        }
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("abcd", 4), "abcd");
    }
}
