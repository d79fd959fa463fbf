use super::*;
use kiln_block::ByteLen;

fn space() -> Space {
    let size = ByteLen::mib(4);
    Space::new(&Layout::new(size, size, ByteLen::kib(64)), &[])
}

#[test]
fn what_was_unmapped_is_not_handed_out_before_a_checkpoint() {
    let space = space();
    let mut taken = Vec::new();
    while let Some((run, _)) = space.take(100) {
        taken.extend(run.start..run.start + run.len);
    }
    taken.iter().for_each(|block| space.set_stored(*block));
    assert_eq!(space.available(), 0);
    space.unmap(&taken[10..20]);
    assert!(space.take(1).is_none(), "a power cut may bring the old map back");
    let freed = space.take_freed();
    space.settle(&freed);
    assert_eq!(space.take(100).map(|(run, _)| run.len), Some(10));
}

#[test]
fn metadata_finds_room_when_data_does_not() {
    let space = space();
    while space.take(64).is_some() {}
    assert_eq!(space.available(), 0);
    assert_eq!(space.take_reserved(1).map(|run| run.len), Some(1));
}

#[test]
fn what_is_added_can_be_taken() {
    let (size, limit) = (ByteLen::mib(4), ByteLen::gib(1));
    let layout = Layout::new(ByteLen::new(size.get() + 5 * 4096), limit, ByteLen::kib(64));
    let space = Space::new(&layout, &[]);
    while space.take_reserved(64).is_some() {}
    let reserve = space.reserve();
    space.grow(layout.blocks + 16_391);
    assert!(space.reserve() > reserve);
    assert_eq!(space.available(), 16_391 - space.reserve());
    let mut taken = 0;
    while let Some(run) = space.take_reserved(1000) {
        assert!(run.start >= layout.blocks && space.holds(run.start + run.len - 1));
        taken += run.len;
    }
    assert_eq!(taken, 16_391);
    assert_eq!(space.bits().len() as u64, (layout.blocks + 16_391).div_ceil(64));
}

#[test]
fn what_changes_while_a_checkpoint_copies_is_not_part_of_it() {
    let space = space();
    space.set_stored(100);
    space.stand_still();
    space.use_run(Run { start: 101, len: 1 });
    space.unmap(&[100]);
    space.set_stored(102);
    let (_, words) = space.pages_for(0, 0).0.remove(0);
    assert_eq!((words[1] >> 36) & 7, 0b101);
    space.go_on();
    assert_eq!(space.bits()[1] >> 36 & 7, 0b110);
    assert_eq!(space.pages_for(0, 1).0.len(), 1, "and is part of the next");
}

#[test]
fn each_slot_of_the_map_gets_every_change_once() {
    let space = space();
    let count = |slot| space.pages_for(slot, 1).0.len();
    assert_eq!([count(0), count(0), count(1)], [1, 0, 1]);
    space.set_stored(100);
    assert_eq!([count(0), count(1), count(1)], [1, 1, 0]);
}

#[test]
fn a_page_of_the_map_is_stored_when_a_later_one_is() {
    let size = ByteLen::mib(512);
    let space = Space::new(&Layout::new(size, size, ByteLen::kib(64)), &[]);
    space.set_stored(100);
    assert_eq!(space.pages_for(0, 0).0.len(), 1);
    assert_eq!(space.pages_for(1, 1), (vec![(0, space.bits()[..508].to_vec())], 1));
    space.set_stored(MAP_BITS * 3);
    let (pages, used) = space.pages_for(0, 1);
    assert_eq!((pages.len(), used), (3, 4), "the two between, too");
}

#[test]
fn a_stored_map_with_something_behind_the_end_leads_nowhere() {
    let size = ByteLen::mib(4);
    let layout = Layout::new(size, size, ByteLen::kib(64));
    let words = usize::try_from(layout.blocks.div_ceil(64)).unwrap();
    let mut stored = vec![u64::MAX; words + 8];
    stored[words - 1] = 0;
    let space = Space::new(&layout, &stored);
    while let Some(run) = space.take_reserved(64) {
        assert!(run.start + run.len <= layout.blocks);
    }
}
