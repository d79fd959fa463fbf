//! A recording of a terminal, and the filter between it and a terminal that shows it again.
#![no_main]

use std::path::Path;

use kiln_history::terminal_text::{TerminalFilter, page, plain};
use kiln_history::{CastKind, CastReader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(mut cast) = CastReader::open(data, Path::new("fuzz")) {
        let mut filter = TerminalFilter::default();
        let mut at = std::time::Duration::ZERO;
        while let Ok(Some(event)) = cast.next_event() {
            assert!(event.at >= at, "time runs forwards");
            at = event.at;
            if let CastKind::Output(text) = event.kind {
                check(&filter.pass(&text));
            }
        }
    }
    let text = String::from_utf8_lossy(data);
    check(&TerminalFilter::default().pass(&text));
    assert!(!plain(&text).contains('\u{1b}'));
    page(&text, 100, 10);
});

/// Of control characters a terminal gets only those that draw; after ESC comes `[` or a cursor command.
fn check(shown: &str) {
    let mut before = ' ';
    for c in shown.chars() {
        let draws = matches!(c, '\n' | '\r' | '\t' | '\u{8}' | '\u{1b}');
        assert!(draws || !c.is_control(), "{c:?} reached the terminal");
        assert!(before != '\u{1b}' || "[78DEM".contains(c), "ESC {c:?} reached the terminal");
        before = c;
    }
}
