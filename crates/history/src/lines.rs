//! Lines of files that a crash may have torn and a guest may have stuffed: bounded, and honest about both.

use std::io::{self, BufRead};

/// The longest line of a recording; longer ones are skipped by readers and never written.
pub(crate) const LONGEST_LINE: usize = 1 << 20;

/// One line, without its newline.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// It ended in a newline.
    Whole(Vec<u8>),
    /// The file ended first: its writer died, or is still writing.
    Torn(Vec<u8>),
    /// It was longer than [`LONGEST_LINE`]; its text is gone.
    TooLong,
}

/// Reads the next line; `None` at the end.
pub(crate) fn next_line(from: &mut impl BufRead) -> io::Result<Option<Line>> {
    let mut line = Vec::new();
    let mut too_long = false;
    loop {
        let chunk = match from.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if chunk.is_empty() {
            return Ok(match (too_long, line.is_empty()) {
                (true, _) => Some(Line::TooLong),
                (false, true) => None,
                (false, false) => Some(Line::Torn(line)),
            });
        }
        let newline = chunk.iter().position(|&byte| byte == b'\n');
        let part = &chunk[..newline.unwrap_or(chunk.len())];
        let used = part.len() + usize::from(newline.is_some());
        if line.len() + part.len() > LONGEST_LINE {
            too_long = true;
            line = Vec::new();
        } else if !too_long {
            line.extend_from_slice(part);
        }
        from.consume(used);
        if newline.is_some() {
            return Ok(Some(if too_long { Line::TooLong } else { Line::Whole(line) }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    #[test]
    fn a_torn_or_endless_line_does_not_hide_the_others() {
        let mut text = b"one\n\n".to_vec();
        text.extend(std::iter::repeat_n(b'x', LONGEST_LINE + 1));
        text.extend(b"\ntwo\nthr");
        let mut reader = BufReader::with_capacity(7, &text[..]);
        let mut next = || next_line(&mut reader).unwrap();
        assert_eq!(next(), Some(Line::Whole(b"one".to_vec())));
        assert_eq!(next(), Some(Line::Whole(Vec::new())));
        assert_eq!(next(), Some(Line::TooLong));
        assert_eq!(next(), Some(Line::Whole(b"two".to_vec())));
        assert_eq!(next(), Some(Line::Torn(b"thr".to_vec())));
        assert_eq!(next(), None);
    }
}
