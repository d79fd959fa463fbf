//! Manifests are understood or refused with a line that exists.
#![no_main]

use kiln_image::manifest::{Manifest, ManifestError, ManifestSource, Part};

libfuzzer_sys::fuzz_target!(|text: &str| {
    for part in [Part::Whole, Part::GuestTable] {
        let source = ManifestSource {
            name: "fuzz".to_owned(),
            text: text.to_owned(),
            folder: Some("/folder".into()),
            part,
        };
        if let Err(ManifestError::Wrong { line, .. }) = Manifest::parse(&source) {
            assert!(line >= 1 && line <= text.split('\n').count());
        }
    }
});
