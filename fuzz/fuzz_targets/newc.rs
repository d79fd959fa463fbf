//! Archives of anybody's making are listed or refused.
#![no_main]

use std::io::Cursor;

use kiln_image::newc::Reader;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(mut reader) = Reader::new(Cursor::new(bytes)) else { return };
    while let Some(Ok(member)) = reader.next() {
        assert!(!member.name.contains(&0));
        let data = reader.data(&member, u64::MAX).expect("a listed member's data is there");
        assert_eq!(data.len() as u64, member.data_len);
    }
});
