//! From bytes to lines: the kernel's are told from everybody else's by their time stamp.
//!
//! A stamp is `[    1.234567] `, with `CONFIG_PRINTK_CALLER` followed by `[    T1] ` or `[   C0] `. The kernel may start
//! a line where a program left one unfinished; such a line is cut in two at the stamp.

/// The longest line, in bytes; what is longer comes in pieces.
pub const MAX_LINE: usize = 4096;

/// One line without its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Microseconds on the kernel's clock; none when the line carries no stamp, as text of a program does.
    pub stamp: Option<u64>,
    /// `T123` or `C0`: the task or processor that printed, where the kernel says so.
    pub caller: Option<String>,
    /// The text after the stamp; bytes that are not UTF-8 have become U+FFFD. Hostile text.
    pub text: String,
}

impl Line {
    /// Takes a line apart.
    pub fn parse(line: &str) -> Line {
        match stamp(line) {
            Some((stamp, rest)) => {
                let (caller, text) = caller(rest);
                Line { stamp: Some(stamp), caller, text: text.to_owned() }
            }
            None => Line { stamp: None, caller: None, text: line.to_owned() },
        }
    }
}

/// Cuts a stream into lines; holds at most [`MAX_LINE`] bytes.
#[derive(Debug, Default)]
pub struct LineSplitter {
    partial: Vec<u8>,
}

impl LineSplitter {
    /// Takes bytes in, gives every line they complete to `each`.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Line)) {
        while !bytes.is_empty() {
            let room = MAX_LINE.saturating_sub(self.partial.len());
            let end = bytes.iter().take(room).position(|&byte| byte == b'\n');
            let (taken, whole) = match end {
                Some(end) => (end + 1, true),
                None => (room.min(bytes.len()), bytes.len() >= room),
            };
            let (now, later) = bytes.split_at(taken);
            self.partial.extend_from_slice(now);
            bytes = later;
            if whole {
                self.finish(&mut each);
            }
        }
    }

    /// Gives out what is left without a line's end.
    pub fn finish(&mut self, mut each: impl FnMut(Line)) {
        if self.partial.is_empty() {
            return;
        }
        let text = String::from_utf8_lossy(&self.partial);
        let text = text.trim_end_matches(['\n', '\r']);
        match kernel_starts_at(text) {
            Some(at) => {
                each(Line::parse(text[..at].trim_end_matches('\r')));
                each(Line::parse(&text[at..]));
            }
            None => each(Line::parse(text)),
        }
        self.partial.clear();
    }
}

/// Where a stamp follows other text.
fn kernel_starts_at(text: &str) -> Option<usize> {
    if stamp(text).is_some() {
        return None;
    }
    text.match_indices('[').map(|(at, _)| at).find(|&at| at > 0 && stamp(&text[at..]).is_some())
}

/// `[    1.234567] rest`.
fn stamp(line: &str) -> Option<(u64, &str)> {
    let inside = line.strip_prefix('[')?.trim_start_matches(' ');
    let (seconds, rest) = inside.split_once('.')?;
    let (micros, rest) = rest.split_once(']')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(seconds) || seconds.len() > 10 || micros.len() != 6 || !digits(micros) {
        return None;
    }
    let whole: u64 = seconds.parse().ok()?;
    let part: u64 = micros.parse().ok()?;
    Some((whole * 1_000_000 + part, rest.strip_prefix(' ').unwrap_or(rest)))
}

/// `[    T1] rest`.
fn caller(text: &str) -> (Option<String>, &str) {
    let found = text.strip_prefix('[').and_then(|inside| {
        let (name, rest) = inside.split_once(']')?;
        let name = name.trim_start_matches(' ');
        let number = name.strip_prefix(['T', 'C'])?;
        let plain = (1..=10).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| (name.to_owned(), rest.strip_prefix(' ').unwrap_or(rest)))
    });
    match found {
        Some((name, rest)) => (Some(name), rest),
        None => (None, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<Line> {
        let mut splitter = LineSplitter::default();
        let mut lines = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, |line| lines.push(line));
        }
        splitter.finish(|line| lines.push(line));
        lines
    }

    #[test]
    fn a_kernel_line_is_told_from_a_programs_by_its_stamp() {
        let found =
            lines(&[b"[    1.0000", b"02] sysrq: x\r\n[ 9.000001][   T58]  y\nplain\n[x] z"]);
        let texts: Vec<_> =
            found.iter().map(|l| (l.stamp, l.caller.as_deref(), l.text.as_str())).collect();
        assert_eq!(
            texts,
            [
                (Some(1_000_002), None, "sysrq: x"),
                (Some(9_000_001), Some("T58"), " y"),
                (None, None, "plain"),
                (None, None, "[x] z"),
            ]
        );
    }

    #[test]
    fn the_kernel_interrupting_an_unfinished_line_starts_a_new_one() {
        let found = lines(&[b"50% done[   12.345678] BUG: x\n"]);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].text, "50% done");
        assert_eq!((found[1].stamp, found[1].text.as_str()), (Some(12_345_678), "BUG: x"));
    }

    #[test]
    fn a_line_without_end_comes_in_bounded_pieces() {
        let found = lines(&[&[b'a'; 3 * MAX_LINE + 7]]);
        assert_eq!(found.iter().map(|l| l.text.len()).collect::<Vec<_>>(), [4096, 4096, 4096, 7]);
    }

    proptest::proptest! {
        #[test]
        fn cutting_never_depends_on_how_the_bytes_arrive(bytes: Vec<u8>, cut: proptest::sample::Index) {
            let at = cut.index(bytes.len() + 1);
            proptest::prop_assert_eq!(lines(&[&bytes]), lines(&[&bytes[..at], &bytes[at..]]));
        }
    }
}
