//! Asciicast, the text format of terminal recordings: written as version 2, read as version 2 or 3.
//!
//! | line   | version 2                                   | version 3                                           |
//! |--------|---------------------------------------------|-----------------------------------------------------|
//! | first  | `{"version":2,"width":80,"height":24,…}`    | `{"version":3,"term":{"cols":80,"rows":24,…},…}`    |
//! | others | `[seconds since the start, code, data]`     | `[seconds since the previous event, code, data]`    |
//!
//! Codes: `o` output, `i` input, `r` resize (`COLSxROWS`), `m` marker, `x` exit status; others are skipped. Lines that
//! begin with `#` are comments. Times never go backwards: a reader takes the latest seen.

use std::io::{self, BufRead};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::HistoryError;
use crate::lines::{Line, next_line};

/// Columns and rows of a stage's terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// What a recorded stage believes its terminal to be.
pub const STAGE_TERMINAL: TerminalSize = TerminalSize { columns: 80, rows: 24 };

/// The largest terminal a reader believes in.
const LARGEST: u16 = 1000;

/// The first line of a cast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CastHeader {
    /// 2 or 3.
    pub version: u8,
    /// The terminal at the start.
    pub size: TerminalSize,
    /// When it was recorded, in seconds since 1970; zero if it does not say.
    pub timestamp: u64,
    /// What it calls itself. Hostile text.
    pub title: String,
}

/// One thing on the recording, at a time since its start.
#[derive(Clone, Debug, PartialEq)]
pub struct CastEvent {
    /// Since the start.
    pub at: Duration,
    /// What.
    pub kind: CastKind,
}

/// What a recording holds.
#[derive(Clone, Debug, PartialEq)]
pub enum CastKind {
    /// Text for the terminal. Hostile text.
    Output(String),
    /// A new size.
    Resize(TerminalSize),
    /// A named moment. Hostile text.
    Marker(String),
}

/// The header line of a cast, with its newline.
pub(crate) fn header_line(size: TerminalSize, started_ms: u64, title: &str) -> String {
    let header = json!({
        "version": 2,
        "width": size.columns,
        "height": size.rows,
        "timestamp": started_ms / 1000,
        "title": title,
    });
    format!("{header}\n")
}

/// One output event, with its newline.
pub(crate) fn output_line(at_ms: u64, text: &str) -> String {
    format!("[{}.{:03}, \"o\", {}]\n", at_ms / 1000, at_ms % 1000, Value::from(text))
}

/// Reads a cast line by line; what it cannot understand after the header is skipped, as the formats ask.
#[derive(Debug)]
pub struct CastReader<R> {
    lines: R,
    header: CastHeader,
    at: Duration,
}

#[derive(Deserialize)]
struct RawHeader {
    version: u64,
    width: Option<u64>,
    height: Option<u64>,
    term: Option<RawTerm>,
    #[serde(default)]
    timestamp: Option<f64>,
    #[serde(default)]
    title: Option<String>,
}

#[derive(Deserialize)]
struct RawTerm {
    cols: u64,
    rows: u64,
}

impl<R: BufRead> CastReader<R> {
    /// Reads the header; `name` is for the error.
    pub fn open(mut lines: R, name: &Path) -> Result<CastReader<R>, HistoryError> {
        let damaged = |found: String| HistoryError::Cast { path: name.to_owned(), line: 1, found };
        let first = match next_line(&mut lines).map_err(HistoryError::io("read", name))? {
            Some(Line::Whole(line) | Line::Torn(line)) => line,
            Some(Line::TooLong) => return Err(damaged("it is too long".into())),
            None => return Err(damaged("the file is empty".into())),
        };
        let raw: RawHeader =
            serde_json::from_slice(&first).map_err(|error| damaged(error.to_string()))?;
        let (version, columns, rows) = match (raw.version, raw.term) {
            (2, _) => (2, raw.width, raw.height),
            (3, Some(term)) => (3, Some(term.cols), Some(term.rows)),
            (3, None) => (3, None, None),
            (other, _) => return Err(damaged(format!("version {other} is neither 2 nor 3"))),
        };
        let size = columns.zip(rows).and_then(|(columns, rows)| size(columns, rows));
        let size = size.ok_or_else(|| damaged("the terminal has no believable size".into()))?;
        let header = CastHeader {
            version,
            size,
            timestamp: Duration::try_from_secs_f64(raw.timestamp.unwrap_or(0.0))
                .unwrap_or_default()
                .as_secs(),
            title: raw.title.unwrap_or_default(),
        };
        Ok(CastReader { lines, header, at: Duration::ZERO })
    }

    /// The first line.
    pub fn header(&self) -> &CastHeader {
        &self.header
    }

    /// The next event; `None` at the end, and at a torn last line.
    pub fn next_event(&mut self) -> io::Result<Option<CastEvent>> {
        loop {
            let line = match next_line(&mut self.lines)? {
                Some(Line::Whole(line) | Line::Torn(line)) => line,
                Some(Line::TooLong) => continue,
                None => return Ok(None),
            };
            let Ok((seconds, code, data)) = serde_json::from_slice::<(f64, String, String)>(&line)
            else {
                continue; // a comment, a torn line, or an event of a shape nobody has met yet
            };
            let time = Duration::try_from_secs_f64(seconds).unwrap_or_default();
            self.at = match self.header.version {
                2 => self.at.max(time),
                _ => self.at.saturating_add(time),
            };
            let kind = match code.as_str() {
                "o" => CastKind::Output(data),
                "m" => CastKind::Marker(data),
                "r" => match parse_size(&data) {
                    Some(size) => CastKind::Resize(size),
                    None => continue,
                },
                _ => continue,
            };
            return Ok(Some(CastEvent { at: self.at, kind }));
        }
    }
}

fn size(columns: u64, rows: u64) -> Option<TerminalSize> {
    let side = |n: u64| u16::try_from(n).ok().filter(|n| (1..=LARGEST).contains(n));
    Some(TerminalSize { columns: side(columns)?, rows: side(rows)? })
}

fn parse_size(text: &str) -> Option<TerminalSize> {
    let (columns, rows) = text.split_once('x')?;
    size(columns.parse().ok()?, rows.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic_or_time_run_backwards(
            lines in proptest::collection::vec("[\\[\\]{}\",.0-9eomr x:-]{0,30}|\\PC{0,20}", 0..20),
            version in 2..4,
        ) {
            let header = if version == 2 {
                "{\"version\":2,\"width\":80,\"height\":12}"
            } else {
                "{\"version\":3,\"term\":{\"cols\":80,\"rows\":12}}"
            };
            let text = format!("{header}\n{}", lines.join("\n"));
            let mut reader = CastReader::open(text.as_bytes(), Path::new("x")).unwrap();
            let mut at = Duration::ZERO;
            while let Some(event) = reader.next_event().unwrap() {
                prop_assert!(event.at >= at);
                at = event.at;
            }
        }
    }

    fn events(text: &str) -> Vec<(u128, CastKind)> {
        let mut reader = CastReader::open(text.as_bytes(), Path::new("x.cast")).unwrap();
        let mut all = Vec::new();
        while let Some(event) = reader.next_event().unwrap() {
            all.push((event.at.as_millis(), event.kind));
        }
        all
    }

    #[test]
    fn version_2_counts_from_the_start_and_version_3_from_the_event_before() {
        let expected = [
            (100, CastKind::Output("a".into())),
            (600, CastKind::Marker("m".into())),
            (700, CastKind::Resize(TerminalSize { columns: 100, rows: 30 })),
        ];
        let two = "{\"version\":2,\"width\":80,\"height\":12}\n[0.1,\"o\",\"a\"]\n[0.6,\"m\",\"m\"]\n[0.7,\"r\",\"100x30\"]\n";
        let three = "{\"version\":3,\"term\":{\"cols\":80,\"rows\":12}}\n# note\n[0.1,\"o\",\"a\"]\n[0.5,\"m\",\"m\"]\n[0.1,\"r\",\"100x30\"]\n[0.3,\"x\",\"1\"]\n";
        assert_eq!(events(two), expected);
        assert_eq!(events(three), expected);
    }

    #[test]
    fn nonsense_after_the_header_is_skipped() {
        let text = "{\"version\":2,\"width\":80,\"height\":12}\n[-1,\"o\",\"a\"]\n[1e400,\"o\",\"b\"]\n{}\n[1,\"o\"]\n[9,\"r\",\"0x0\"]\n[2.0,\"o\",\"c\"]\n[1.0,\"o\",\"d\"]\n[3,\"o\",\"to";
        let texts = events(text);
        assert_eq!(texts[0], (0, CastKind::Output("a".into())));
        assert_eq!(texts[texts.len() - 1].1, CastKind::Output("d".into()));
        assert!(texts.windows(2).all(|pair| pair[0].0 <= pair[1].0), "time runs forwards");
    }

    #[test]
    fn a_header_nobody_can_play_is_refused_by_line() {
        for bad in [
            "",
            "\n",
            "{\"version\":1,\"width\":8,\"height\":8}\n",
            "{\"version\":2}\n",
            "{\"version\":2,\"width\":0,\"height\":8}\n",
            "{\"version\":2,\"width\":99999999999,\"height\":8}\n",
        ] {
            let error = CastReader::open(bad.as_bytes(), Path::new("x.cast")).unwrap_err();
            assert!(error.to_string().contains("x.cast"), "{bad:?}: {error}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let text = format!(
            "{}{}",
            header_line(STAGE_TERMINAL, 1_795_180_000_123, "raid5 \"scrub\""),
            output_line(61_005, "quote \" newline \r\n \u{1b}[31m \u{fffd}")
        );
        let mut reader = CastReader::open(text.as_bytes(), Path::new("x")).unwrap();
        assert_eq!(reader.header().timestamp, 1_795_180_000);
        assert_eq!(reader.header().title, "raid5 \"scrub\"");
        let event = reader.next_event().unwrap().unwrap();
        assert_eq!(event.at, Duration::from_millis(61_005));
        assert_eq!(
            event.kind,
            CastKind::Output("quote \" newline \r\n \u{1b}[31m \u{fffd}".into())
        );
    }
}
