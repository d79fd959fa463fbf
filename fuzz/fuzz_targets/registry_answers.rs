//! What a registry answers is read or refused: manifests, challenges, tokens, ranges, locations, errors; and the traces
//! that the cache keeps, and names of images.
#![no_main]

use kiln_registry::parsers::{Challenge, Token, content_range, parse_trace, resolve, said};
use kiln_registry::{Manifest, Reference};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for kind in ["", "application/vnd.oci.image.index.v1+json"] {
        match Manifest::parse(bytes, kind) {
            Ok(Manifest::Image(image)) => assert!(image.layers.len() <= 1024),
            Ok(Manifest::Index(images)) => assert!((1..=1024).contains(&images.len())),
            Err(_) => {}
        }
    }
    if let Ok(token) = Token::parse(bytes) {
        assert!(token.value.bytes().all(|byte| byte.is_ascii_graphic()));
        assert!((1..=86_400).contains(&token.life.as_secs()));
    }
    assert!(said(bytes).chars().all(|letter| !letter.is_control()));
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    assert!(Challenge::parse(text).len() <= 16);
    if let Some((first, last, total)) = content_range(text) {
        assert!(first <= last && total.is_none_or(|total| last < total));
    }
    if let Some(url) = resolve("https://registry.example/v2/a/blobs/uploads/1", text) {
        assert!(url.starts_with("http") || url.starts_with("HTTP") || url.contains("://"));
        assert!(url.bytes().all(|byte| byte.is_ascii_graphic()));
    }
    let size = 1000 * 65536;
    for run in parse_trace(text, size).unwrap_or_default() {
        assert!(run.count > 0 && run.first + run.count <= 1000);
    }
    if let Ok(reference) = text.parse::<Reference>() {
        let full = reference.to_string();
        assert_eq!(full.parse::<Reference>().map(|again| again.to_string()), Ok(full));
    }
});
