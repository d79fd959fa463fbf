//! Scenarios and job specs are understood or refused; a refusal names a line that exists, and what was
//! understood keeps its promises.
#![no_main]

use std::collections::BTreeSet;

use kiln_model::event::KernelIdentity;
use kiln_model::job::JobSpec;
use kiln_model::plan::{Choices, plan};
use kiln_model::scenario::{MAX_DISKS, MAX_SERIAL, Scenario};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = JobSpec::parse(text);
    match Scenario::parse(text) {
        Err(error) => assert!(error.line >= 1 && error.line <= text.split('\n').count()),
        Ok(scenario) => {
            let serials: BTreeSet<&str> = scenario.disks.iter().map(|disk| disk.serial.as_str()).collect();
            assert!(serials.len() == scenario.disks.len() && serials.len() <= MAX_DISKS);
            assert!(serials.iter().all(|serial| (1..=MAX_SERIAL).contains(&serial.len())));
            let names: BTreeSet<_> = scenario.stages.iter().map(|stage| &stage.name).collect();
            assert_eq!(names.len(), scenario.stages.len());
            let kernel = KernelIdentity { release: "6.12".into(), digest: "00".into() };
            let planned = plan(&scenario, &kernel, &Choices::default());
            assert_eq!(planned.is_ok(), !scenario.stages.is_empty());
        }
    }
});
