//! A power cut at any moment of receiving leaves every disk what it was, or what was sent, and receiving can go on.

use std::sync::Arc;

use kiln_block::testing::CrashDisk;
use kiln_block::{BlockDevice as _, ByteLen, ByteOffset, MemoryDevice};
use kiln_parallax::stream::SendOptions;
use kiln_parallax::{DiskOptions, Pool, PoolOptions};

use crate::{bytes_of, content, pool, receive, send};

fn small() -> PoolOptions {
    PoolOptions { log: ByteLen::kib(64), ..PoolOptions::default() }
}

/// A source with two snapshots of a small disk.
fn source() -> Pool {
    let from = pool();
    from.create_disk("base", ByteLen::kib(256), &DiskOptions::default()).unwrap();
    let disk = from.open_disk("base").unwrap();
    disk.write_at(ByteOffset::ZERO, &[1; 20_000]).unwrap();
    disk.write_at(ByteOffset::new(200_000), &[2; 4096]).unwrap();
    from.snapshot("base", "a").unwrap();
    disk.write_at(ByteOffset::new(8192), &[3; 30_000]).unwrap();
    disk.discard(ByteOffset::new(196_608), ByteLen::new(32_768)).unwrap();
    from.snapshot("base", "b").unwrap();
    from
}

#[test]
fn a_power_cut_while_receiving_loses_nothing_and_receiving_goes_on() {
    let from = source();
    let (first, second) = (content(&from, "base", "a"), content(&from, "base", "b"));
    let whole = send(&from, "base", "a", &SendOptions::default());
    let changes = SendOptions { from: Some("a"), ..Default::default() };
    let later = send(&from, "base", "b", &changes);
    let device = Arc::new(CrashDisk::new(ByteLen::mib(2)));
    let to = Pool::create(device.clone(), &small()).unwrap();
    to.create_disk("treasure", ByteLen::kib(16), &DiskOptions::default()).unwrap();
    to.open_disk("treasure").unwrap().write_at(ByteOffset::ZERO, &[9; 16384]).unwrap();
    to.flush().unwrap();
    let start = device.steps();
    receive(&to, &whole).unwrap();
    let middle = device.steps();
    receive(&to, &later).unwrap();
    let end = device.steps();
    drop(to);
    for cut in start..=end {
        for (number, image) in
            device.images_a_power_cut_may_leave(cut, 2, 5).into_iter().enumerate()
        {
            let told = |what: &str| format!("{what} after step {cut} of {end}, image {number}");
            let device = Arc::new(MemoryDevice::holding(&image));
            let to =
                Pool::open(device, &small()).unwrap_or_else(|e| panic!("{e} {}", told("open")));
            let report = to.verify(true).unwrap();
            assert!(report.is_clean(), "{:?} {}", report.problems, told("unsound"));
            let treasure = bytes_of(&to.open_disk("treasure").unwrap());
            assert!(treasure == [9; 16384], "{}", told("treasure"));
            let has = |snapshot| to.open_snapshot("base", snapshot).is_ok();
            let (a, b) = (has("a"), has("b"));
            assert!((a || cut < middle) && (b || cut < end) && (a || !b), "{}", told("lost"));
            if a {
                assert!(content(&to, "base", "a") == first, "{}", told("wrong"));
                // The disk is one of the two, never something between them.
                let now = bytes_of(&to.open_disk("base").unwrap());
                assert!(now == if b { &second[..] } else { &first[..] }, "{}", told("torn"));
            }
            // What is missing is sent again, from where it was cut if it says so.
            for (there, name, options) in [(a, "a", SendOptions::default()), (b, "b", changes)] {
                if there {
                    continue;
                }
                let resume = to.partials().first().map(|partial| partial.token);
                let rest = send(&from, "base", name, &SendOptions { resume, ..options });
                receive(&to, &rest).unwrap_or_else(|e| panic!("{e:?} {}", told("resume")));
            }
            assert!(content(&to, "base", "b") == second, "{}", told("in the end"));
            assert_eq!(to.partials(), [], "{}", told("left"));
            let unborn = to.disks().into_iter().filter(|disk| disk.name.starts_with("receiving-"));
            assert_eq!(unborn.count(), 0, "{}", told("left"));
        }
    }
}
