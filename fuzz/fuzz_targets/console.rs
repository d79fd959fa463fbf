//! A console's bytes: what is cut out of them is bounded and visible, however they arrive.
#![no_main]

use kiln_vm::console::LineSplitter;
use kiln_vm::splat::Detector;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, u16)| {
    let (bytes, cut) = input;
    let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
    let mut whole = Vec::new();
    let mut parts = Vec::new();
    let mut splitter = LineSplitter::default();
    splitter.push(&bytes, |line| whole.push(line));
    splitter.finish(|line| whole.push(line));
    let mut splitter = LineSplitter::default();
    splitter.push(first, |line| parts.push(line));
    splitter.push(second, |line| parts.push(line));
    splitter.finish(|line| parts.push(line));
    assert_eq!(whole, parts);

    let mut detector = Detector::new();
    let mut splats = Vec::new();
    for line in &whole {
        detector.push(line, |splat| splats.push(splat));
    }
    detector.finish(|splat| splats.push(splat));
    for splat in splats {
        assert!(splat.signature.chars().count() <= 160);
        assert!(splat.excerpt.len() <= 32 << 10);
        assert!(!splat.excerpt.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
    }
});
