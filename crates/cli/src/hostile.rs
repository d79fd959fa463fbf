//! Hostile text in the columns of a terminal: what may be shown is [`kiln_model::hostile`]'s to say, how much of it
//! fits is said here.

use std::borrow::Cow;

pub(crate) use kiln_model::hostile::{line, without_sequences};
use unicode_width::UnicodeWidthChar as _;

/// The last line of a piece of terminal output as a person would see it: escape sequences removed rather than
/// shown, an overwritten line (`\r`) as it was overwritten. What is left still goes through [`line()`].
pub(crate) fn last_line(text: &str) -> Option<String> {
    let bare = without_sequences(text);
    let last =
        bare.split('\n').map(|l| l.trim_end_matches('\r')).rfind(|l| !l.trim().is_empty())?;
    let last = last.rsplit('\r').find(|part| !part.trim().is_empty())?;
    Some(line(last.trim_end()).into_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

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
