//! What a terminal was told, made fit to be looked at.
//!
//! A kernel log may hold anything: escape sequences that rewrite a title or ask the terminal to answer, overrides that
//! turn a line around, megabytes without a newline. Two readers want two things of it: a page of text ([`page`],
//! [`plain`]), and a terminal that replays it ([`TerminalFilter`]). Single lines are [`kiln_model::hostile`]'s.

use std::borrow::Cow;

use kiln_model::hostile::deceives;

/// Text for a page: escape sequences are taken out, other control and invisible characters are made visible as
/// U+FFFD, lines beyond `widest` characters are cut and say so, and of more than `most` bytes the end is kept.
pub fn page(text: &str, most: usize, widest: usize) -> String {
    let mut from = text.len().saturating_sub(most);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let mut out = String::new();
    if from > 0 {
        out.push_str(&format!("[{from} bytes before this are left out]\n"));
    }
    for line in plain(&text[from..]).split_inclusive('\n') {
        match line.char_indices().nth(widest) {
            Some((at, _)) => {
                out.push_str(&line[..at]);
                out.push_str(&format!(" […{} bytes more]\n", line.len() - at));
            }
            None => out.push_str(line),
        }
    }
    out
}

/// What a terminal showed, as plain text: no escape sequences, and of a line that was written over with `\r` only what
/// came last.
pub fn plain(text: &str) -> String {
    let mut filter = TerminalFilter::new(Allow::Text);
    let text = filter.pass(text);
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (body, end) = match line.strip_suffix('\n') {
            Some(body) => (body.trim_end_matches('\r'), "\n"),
            None => (line.trim_end_matches('\r'), ""),
        };
        let shown = body.rsplit('\r').next().unwrap_or(body);
        out.push_str(shown);
        out.push_str(end);
    }
    out
}

/// What a filter lets through besides text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allow {
    /// Colours and movements of the cursor.
    Drawing,
    /// Nothing.
    Text,
}

/// Lets text, colours and cursor movements through to a terminal and nothing that outlives the replay or makes the
/// terminal answer: no titles, clipboards, reports, mouse modes, alternate screens, or device strings.
///
/// It keeps its place between pieces, so a sequence cut in two by the recording is still recognised.
#[derive(Debug)]
pub struct TerminalFilter {
    allow: Allow,
    place: Place,
    pending: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Text,
    /// After ESC.
    Escape,
    /// After ESC and an intermediate such as `(`: one more character belongs to it.
    EscapeOne,
    /// Within `ESC [ …`.
    Control,
    /// Within OSC, DCS, APC, PM or SOS: until ST or BEL.
    Word,
    /// The same, after an ESC.
    WordEscape,
}

/// A control sequence longer than this is dropped.
const LONGEST_SEQUENCE: usize = 64;

impl Default for TerminalFilter {
    fn default() -> TerminalFilter {
        TerminalFilter::new(Allow::Drawing)
    }
}

impl TerminalFilter {
    /// To be written to the terminal after a replay: colours, cursor and scroll region as they were.
    pub const RESTORE: &str = "\u{1b}[0m\u{1b}[r\u{1b}[?25h\u{1b}[?7h";

    fn new(allow: Allow) -> TerminalFilter {
        TerminalFilter { allow, place: Place::Text, pending: String::new() }
    }

    /// What of this piece may reach the terminal.
    pub fn pass<'a>(&mut self, text: &'a str) -> Cow<'a, str> {
        let harmless = |c: char| matches!(c, ' '..='~' | '\n' | '\r' | '\t');
        if self.place == Place::Text && text.chars().all(harmless) {
            return Cow::Borrowed(text);
        }
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            self.step(c, &mut out);
        }
        Cow::Owned(out)
    }

    fn step(&mut self, c: char, out: &mut String) {
        // CAN and SUB abort any sequence.
        if matches!(c, '\u{18}' | '\u{1a}') {
            self.place = Place::Text;
            return;
        }
        match self.place {
            Place::Text => self.text(c, out),
            Place::Escape => self.after_escape(c, out),
            Place::EscapeOne => self.place = Place::Text,
            Place::Control => self.control(c, out),
            Place::Word => match c {
                '\u{7}' | '\u{9c}' => self.place = Place::Text,
                '\u{1b}' => self.place = Place::WordEscape,
                _ => {}
            },
            Place::WordEscape => {
                self.place = match c {
                    '\\' => Place::Text,
                    '\u{1b}' => Place::WordEscape,
                    _ => Place::Word,
                }
            }
        }
    }

    fn text(&mut self, c: char, out: &mut String) {
        match c {
            '\u{1b}' => self.place = Place::Escape,
            '\u{9b}' => self.begin_control(),
            '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}' => self.place = Place::Word,
            '\n' | '\r' | '\t' => out.push(c),
            '\u{8}' if self.allow == Allow::Drawing => out.push(c),
            '\u{7}' | '\0' | '\u{8}' => {}
            c if deceives(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }

    fn after_escape(&mut self, c: char, out: &mut String) {
        self.place = Place::Text;
        match c {
            '[' => self.begin_control(),
            ']' | 'P' | 'X' | '^' | '_' => self.place = Place::Word,
            '\u{1b}' => self.place = Place::Escape,
            ' '..='/' => self.place = Place::EscapeOne,
            // Save and restore the cursor, index, next line, reverse index.
            '7' | '8' | 'D' | 'E' | 'M' if self.allow == Allow::Drawing => {
                out.push('\u{1b}');
                out.push(c);
            }
            '\n' | '\r' => out.push(c),
            _ => {}
        }
    }

    fn begin_control(&mut self) {
        self.place = Place::Control;
        self.pending.clear();
    }

    fn control(&mut self, c: char, out: &mut String) {
        match c {
            '\u{1b}' => self.place = Place::Escape,
            '\u{20}'..='\u{3f}' => {
                if self.pending.len() < LONGEST_SEQUENCE {
                    self.pending.push(c);
                }
            }
            '\u{40}'..='\u{7e}' => {
                self.place = Place::Text;
                if self.allow == Allow::Drawing && is_drawing(&self.pending, c) {
                    out.push_str("\u{1b}[");
                    out.push_str(&self.pending);
                    out.push(c);
                }
            }
            '\n' | '\r' => {
                self.place = Place::Text;
                out.push(c);
            }
            _ => self.place = Place::Text,
        }
    }
}

/// Whether `ESC [ parameters last` only draws.
fn is_drawing(parameters: &str, last: char) -> bool {
    if parameters.len() >= LONGEST_SEQUENCE {
        return false;
    }
    match last {
        'h' | 'l' => matches!(parameters, "?25" | "?7"),
        'm' | 'A'..='H' | 'J' | 'K' | 'L' | 'M' | 'P' | 'S' | 'T' | 'X' | '@' | 'd' | 'f' | 'r' => {
            parameters.chars().all(|c| matches!(c, '0'..='9' | ';' | ':'))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn colours_and_cursor_movements_pass_and_nothing_that_talks_back_does() {
        let keep = "a\u{1b}[1;31mred\u{1b}[0m\u{1b}[2K\r\u{1b}[3Ab\u{8}\u{1b}[?25l\u{1b}7";
        assert_eq!(TerminalFilter::default().pass(keep), keep);
        for (hostile, left) in [
            ("x\u{1b}]0;title\u{7}y", "xy"),
            ("x\u{1b}]52;c;ZXZpbA==\u{1b}\\y", "xy"),
            ("x\u{1b}Pq#0\u{1b}\\y", "xy"),
            ("x\u{1b}_Gf=100;AAAA\u{1b}\\y", "xy"),
            ("x\u{1b}[6ny\u{1b}[cz\u{1b}[>0q", "xyz"),
            ("x\u{1b}[?1049hy\u{1b}[?1003h", "xy"),
            ("x\u{1b}[21t\u{1b}cy\u{1b}(0z", "xyz"),
            ("x\u{9d}0;t\u{9c}y\u{9b}6n", "xy"),
            ("\u{202e}evil\u{2066}", "\u{fffd}evil\u{fffd}"),
        ] {
            assert_eq!(TerminalFilter::default().pass(hostile), left, "{hostile:?}");
        }
    }

    #[test]
    fn plain_text_is_what_stood_there_in_the_end() {
        assert_eq!(plain("10%\r20%\r\u{1b}[32m100%\u{1b}[0m\r\ndone\r\n"), "100%\ndone\n");
    }

    #[test]
    fn a_page_is_bounded_in_every_direction_and_says_what_it_left_out() {
        let text = format!("{}\nlast\u{0}\u{1}\n", "ä".repeat(1000));
        let page = page(&text, 500, 20);
        assert!(page.starts_with('['), "{page}");
        assert!(page.contains("bytes more]\nlast\u{fffd}\n"), "{page}");
    }

    proptest! {
        /// However a recording cuts the text, the terminal gets the same.
        #[test]
        fn a_sequence_cut_anywhere_is_still_recognised(
            text in "([a-z\\r\\n\u{7}\u{1b}\\[\\]P\\\\;0-9mhnc?\u{9b}\u{202e}]){0,40}",
            cut in 0usize..40,
        ) {
            let at = text.char_indices().map(|(at, _)| at).nth(cut).unwrap_or(text.len());
            let whole = TerminalFilter::default().pass(&text).into_owned();
            let mut filter = TerminalFilter::default();
            let halves = format!("{}{}", filter.pass(&text[..at]), filter.pass(&text[at..]));
            prop_assert_eq!(&whole, &halves);
            let allowed = "ABCDEFGHJKLMPSTX@dfrmhl78";
            for (at, _) in whole.match_indices('\u{1b}') {
                let rest = &whole[at + 1..];
                let end = rest.trim_start_matches(|c: char| matches!(c, '[' | '?' | ';' | ':' | '0'..='9'));
                prop_assert!(
                    rest.starts_with(['7', '8']) || end.starts_with(|c| allowed.contains(c)),
                    "{:?}", rest
                );
            }
        }
    }
}
