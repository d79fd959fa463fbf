//! What arrives is what was sent.

use std::ops::ControlFlow;
use std::sync::Arc;

use kiln_block::{BlockDevice as _, ByteLen, ByteOffset, MemoryDevice};
use kiln_parallax::stream::{ReceiveOptions, SendOptions};
use kiln_parallax::{DiskOptions, Pool};
use proptest::prelude::*;

use crate::{
    assert_same, assert_sound, bytes_of, change, content, options, pool, pool_with, receive, send,
};

#[test]
fn a_snapshot_arrives_with_its_disk_as_it_was_sent() {
    for compress in [false, true] {
        let (from, to) = (pool_with("base"), pool());
        change(&from, "base", 1, 60);
        from.snapshot("base", "ready").unwrap();
        change(&from, "base", 2, 20);
        let stream = send(&from, "base", "ready", &SendOptions { compress, ..Default::default() });
        let received = receive(&to, &stream).unwrap();
        assert_eq!((&*received.disk, &*received.snapshot), ("base", "ready"));
        assert_eq!(received.bytes, stream.len() as u64);
        assert_same(&from, &to, "base", "ready");
        assert!(bytes_of(&to.open_disk("base").unwrap()) == content(&from, "base", "ready"));
        let names: Vec<String> = to.disks().into_iter().map(|disk| disk.name).collect();
        assert_eq!(names, ["base"]);
        assert_sound(&to);
    }
}

#[test]
fn what_changed_all_over_a_large_disk_is_sent_a_part_at_a_time() {
    let (from, to) = (pool(), pool());
    let size = (3 << 30) + (5 << 20);
    from.create_disk("large", ByteLen::new(size), &DiskOptions::default()).unwrap();
    let disk = from.open_disk("large").unwrap();
    let write = |at: u64, number: u8, blocks: usize| {
        disk.write_at(ByteOffset::new(at), &vec![number; blocks * 4096]).unwrap();
    };
    // On both sides of every border between parts, and every other block of a stretch.
    let borders = [1_u64, 2, 3].map(|gib| gib << 30);
    borders.iter().for_each(|at| write(at - 8192, 1, 4));
    from.snapshot("large", "one").unwrap();
    receive(&to, &send(&from, "large", "one", &SendOptions::default())).unwrap();
    borders.iter().for_each(|at| write(at - 4096, 2, 2));
    disk.discard(ByteOffset::new((2 << 30) - 8192), ByteLen::kib(16)).unwrap();
    (0..600).for_each(|n| write((1 << 30) + n * 8192, 3, 1));
    write(size - 4096, 4, 1);
    from.snapshot("large", "two").unwrap();
    let options = SendOptions { from: Some("one"), ..Default::default() };
    let stream = send(&from, "large", "two", &options);
    assert!(stream.len() < 700 * 4200, "{}", stream.len());
    receive(&to, &stream).unwrap();
    let [a, b] = [&from, &to].map(|pool| pool.open_snapshot("large", "two").unwrap());
    let (mut here, mut there) = (vec![0; 8 << 20], vec![0; 8 << 20]);
    for at in borders.iter().map(|at| at - (3 << 20)) {
        a.read_at(ByteOffset::new(at), &mut here).unwrap();
        b.read_at(ByteOffset::new(at), &mut there).unwrap();
        assert!(here == there, "from byte {at}");
    }
    assert_sound(&to);
}

#[test]
fn every_snapshot_of_a_chain_arrives_over_pools_that_only_pass_it_on() {
    let (first, second, third) = (pool_with("base"), pool(), pool());
    let mut last: Option<String> = None;
    for step in 0..6_u64 {
        change(&first, "base", step, 25);
        // It grows, shrinks, and grows again.
        let size = [12_u64, 12, 14, 9, 9, 16][usize::try_from(step).unwrap()];
        first.resize("base", ByteLen::mib(size)).unwrap();
        change(&first, "base", step + 100, 5);
        let name = format!("step-{step}");
        first.snapshot("base", &name).unwrap();
        let options =
            SendOptions { from: last.as_deref(), compress: step % 2 == 0, ..Default::default() };
        receive(&second, &send(&first, "base", &name, &options)).unwrap();
        // The second pool sends what it received, and the third knows it by what it is, not by its name.
        receive(&third, &send(&second, "base", &name, &options)).unwrap();
        assert_same(&first, &second, "base", &name);
        assert_same(&first, &third, "base", &name);
        // Names are the pool's own.
        last = Some(name);
    }
    for pool in [&second, &third] {
        for step in 0..6 {
            assert_same(&first, pool, "base", &format!("step-{step}"));
        }
        // What was received can be used, and given back.
        pool.clone_disk("base", "step-2", "clone", &DiskOptions::default()).unwrap();
        change(pool, "clone", 9, 10);
        change(pool, "base", 10, 10);
        pool.delete_snapshot("base", "step-3").unwrap();
        pool.rollback("base", "step-4").unwrap();
        pool.gc().unwrap();
        assert_same(&first, pool, "base", "step-4");
        assert_sound(pool);
    }
}

#[test]
fn holes_and_zeros_cost_nothing() {
    let from = pool();
    from.create_disk("base", ByteLen::gib(1024), &DiskOptions::default()).unwrap();
    let disk = from.open_disk("base").unwrap();
    disk.write_at(ByteOffset::new(700 << 30), &[7; 4096]).unwrap();
    disk.write_at(ByteOffset::new(800 << 30), &vec![0; 1 << 20]).unwrap();
    from.snapshot("base", "one").unwrap();
    let stream = send(&from, "base", "one", &SendOptions::default());
    assert!(stream.len() < 6000, "{}", stream.len());
    disk.discard(ByteOffset::new(700 << 30), ByteLen::gib(200)).unwrap();
    from.snapshot("base", "two").unwrap();
    let later =
        send(&from, "base", "two", &SendOptions { from: Some("one"), ..Default::default() });
    assert!(later.len() < 1000, "{}", later.len());
    let to = pool();
    receive(&to, &stream).unwrap();
    receive(&to, &later).unwrap();
    assert_eq!(to.stat("base").unwrap().referenced, ByteLen::ZERO);
    assert_eq!(to.snapshots("base").unwrap()[0].referenced, ByteLen::new(4096));
}

#[test]
fn a_disk_may_get_another_name() {
    let (from, to) = (pool_with("base"), pool_with("base"));
    change(&from, "base", 3, 10);
    from.snapshot("base", "a").unwrap();
    change(&from, "base", 4, 10);
    from.snapshot("base", "b").unwrap();
    let options = ReceiveOptions { disk: Some("other") };
    let go_on = &mut |_| ControlFlow::Continue(());
    let whole = send(&from, "base", "a", &SendOptions::default());
    to.receive(&mut &whole[..], &options, go_on).unwrap();
    let changes = send(&from, "base", "b", &SendOptions { from: Some("a"), ..Default::default() });
    to.rename("other", "another").unwrap();
    let options = ReceiveOptions { disk: Some("another") };
    to.receive(&mut &changes[..], &options, go_on).unwrap();
    assert!(content(&to, "another", "b") == content(&from, "base", "b"));
}

#[test]
fn what_was_received_outlives_the_process() {
    let from = pool_with("base");
    change(&from, "base", 5, 30);
    from.snapshot("base", "a").unwrap();
    change(&from, "base", 6, 30);
    from.snapshot("base", "b").unwrap();
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(128)));
    let changes = SendOptions { from: Some("a"), ..Default::default() };
    for stream in
        [send(&from, "base", "a", &SendOptions::default()), send(&from, "base", "b", &changes)]
    {
        let to = match Pool::open(device.clone(), &options()) {
            Ok(pool) => pool,
            Err(_) => Pool::create(device.clone(), &options()).unwrap(),
        };
        receive(&to, &stream).unwrap();
    }
    let to = Pool::open(device, &options()).unwrap();
    assert_same(&from, &to, "base", "a");
    assert_same(&from, &to, "base", "b");
    assert_sound(&to);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any history, sent whole or step by step.
    #[test]
    fn any_history_arrives(seeds in proptest::collection::vec((any::<u64>(), 0..30_usize), 1..5)) {
        let (from, to) = (pool_with("base"), pool());
        let mut last: Option<String> = None;
        for (number, (seed, times)) in seeds.into_iter().enumerate() {
            change(&from, "base", seed, times);
            let name = number.to_string();
            from.snapshot("base", &name).unwrap();
            let options =
                SendOptions { from: last.as_deref(), compress: seed % 2 == 0, ..Default::default() };
            receive(&to, &send(&from, "base", &name, &options)).unwrap();
            assert_same(&from, &to, "base", &name);
            last = Some(name);
        }
        assert_sound(&to);
    }
}
