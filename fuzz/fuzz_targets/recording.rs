//! The events of a run, added up; then told as JUnit.
#![no_main]

use kiln_history::{RunFolder, SummaryBuilder, junit, read_events};
use libfuzzer_sys::fuzz_target;

/// Without a beginning every other event is nothing.
const BEGINNING: &[u8] = br#"{"at":1,"event":{"type":"run-started","schema":1,"run":"20260101-000000-0001","kiln":"0","scenario":"s","scenario_source":"s","kernel":{"release":"6","digest":"a"},"memory":1,"cpus":1,"stages":["a"],"command":[]}}
"#;

fuzz_target!(|data: &[u8]| {
    for beginning in [BEGINNING, b""] {
        let mut builder = SummaryBuilder::default();
        let Ok(damage) = read_events(&[beginning, data].concat()[..], |event| builder.take(event))
        else {
            unreachable!("memory can always be read");
        };
        if let Ok(run) = builder.finish(&RunFolder::at("fuzz"), false, damage) {
            assert!(run.passed().0 <= run.stages.len());
            let _ = junit(&run, None);
        }
    }
});
