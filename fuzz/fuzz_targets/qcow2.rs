//! An image of anybody's making opens and reads, or is refused; its extents cover the disk and never lie about zeros.
#![no_main]

use std::sync::Arc;

use kiln_block::{BlockDevice, ByteLen, ByteOffset, ExtentKind, MemoryDevice, is_zero};
use kiln_qcow2::{Image, TableCache};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let device = Arc::new(MemoryDevice::holding(bytes));
    let Ok(image) = Image::open("it", device.clone()) else { return };
    let names: Vec<String> = image.snapshots().iter().map(|it| it.name.clone()).collect();
    let below: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::holding(&[7; 100_000]));
    look_at(image, None, &below);
    if let Some(name) = names.first() {
        let Ok(image) = Image::open("it", device) else { return };
        look_at(image, Some(name), &below);
    }
});

fn look_at(image: Image, snapshot: Option<&str>, below: &Arc<dyn BlockDevice>) {
    let below = image.backing().map(|_| below.clone());
    let cache = Arc::new(TableCache::new(ByteLen::kib(64)));
    let Ok(disk) = image.disk(snapshot, below, cache) else { return };
    let size = disk.size().get();
    let mut buffer = vec![0; 200_000];
    for start in [0, 123, size / 2, size.saturating_sub(200_000)] {
        let len = size.saturating_sub(start).min(200_000);
        let part = &mut buffer[..usize::try_from(len).expect("small")];
        let read = disk.read_at(ByteOffset::new(start), part);
        let Ok(found) = disk.extents(ByteOffset::new(start), ByteLen::new(len)) else { continue };
        let covered: u64 = found.iter().map(|extent| extent.len.get()).sum();
        assert_eq!(covered, len);
        for extent in found.iter().filter(|_| read.is_ok()) {
            let from = usize::try_from(extent.at.get() - start).expect("small");
            let to = from + usize::try_from(extent.len.get()).expect("small");
            assert!(extent.kind == ExtentKind::Data || is_zero(&part[from..to]));
        }
    }
}
