//! A power cut after any step leaves a pool that opens, is whole, and lost nothing that was flushed.

use std::collections::BTreeSet;
use std::sync::Arc;

use kiln_block::testing::{CrashDisk, Dice};
use kiln_block::{ByteLen, MemoryDevice};
use kiln_parallax::{Pool, PoolOptions};

use crate::world::{Model, Op, any_op, model_of, rounds, small, step};

const POOL: ByteLen = ByteLen::mib(4);

/// Runs the steps once, cuts the power after every device call, and opens what may be left.
fn survives_every_cut(ops: &[Op], samples: usize, stride: usize) {
    survives_every_cut_of(POOL, &small(), ops, samples, stride);
}

fn survives_every_cut_of(
    size: ByteLen,
    options: &PoolOptions,
    ops: &[Op],
    samples: usize,
    stride: usize,
) {
    let device = Arc::new(CrashDisk::new(size));
    let pool = Pool::create(device.clone(), options).unwrap();
    let mut model = Model::new();
    // What the world was before each step, and how many device calls there had been.
    let mut history = vec![(device.steps(), model.clone())];
    // What was refused made nothing durable.
    let mut settles = Vec::new();
    for op in ops {
        settles.push(step(&pool, &mut model, op) && op.settles());
        history.push((device.steps(), model.clone()));
    }
    drop(pool);
    let first = history[0].0;
    for cut in (first..=device.steps()).step_by(stride) {
        // The step that was under way, or the last.
        let during = (0..ops.len()).find(|n| history[n + 1].0 > cut).unwrap_or(ops.len());
        let settled = (0..during).rev().find(|n| settles[*n]).map_or(0, |n| n + 1);
        let upto = (during + 1).min(ops.len());
        let legal: Vec<&Model> = history[settled..=upto].iter().map(|(_, m)| m).collect();
        for (n, image) in
            device.images_a_power_cut_may_leave(cut, samples, 7).into_iter().enumerate()
        {
            let context = || format!("cut {cut}, image {n}, during step {during} of {ops:?}");
            let device = Arc::new(MemoryDevice::holding(&image));
            let pool = Pool::open(device.clone(), options)
                .unwrap_or_else(|error| panic!("{error}: {}", context()));
            let report = pool.verify(true).unwrap();
            assert!(report.is_clean(), "{report:?}: {}", context());
            let found = model_of(&pool).unwrap_or_else(|error| panic!("{error}: {}", context()));
            if let Err(what) = is_legal(&found, &legal) {
                panic!("{what}: {}", context());
            }
        }
    }
}

/// Which disks and snapshots there are is decided whole; what a disk holds is decided by the sector.
pub(crate) fn is_legal(found: &Model, legal: &[&Model]) -> Result<(), String> {
    let shape = |model: &Model| -> Vec<(String, usize, Vec<String>)> {
        let disk = |(name, disk): (&String, &crate::world::ModelDisk)| {
            (name.clone(), disk.now.len(), disk.snapshots.keys().cloned().collect())
        };
        model.iter().map(disk).collect()
    };
    let legal: Vec<&&Model> = legal.iter().filter(|model| shape(model) == shape(found)).collect();
    if legal.is_empty() {
        return Err(format!("the pool has {:?}", shape(found)));
    }
    for (name, disk) in found {
        for (place, number) in disk.now.iter().enumerate() {
            let values: BTreeSet<u8> = legal.iter().map(|model| model[name].now[place]).collect();
            if !values.contains(number) {
                return Err(format!("disk {name}, sector {place} is {number}, not {values:?}"));
            }
        }
        for (snapshot, content) in &disk.snapshots {
            if !legal.iter().any(|model| model[name].snapshots[snapshot] == *content) {
                return Err(format!("snapshot {name}@{snapshot} changed"));
            }
        }
    }
    Ok(())
}

#[test]
fn writes_and_flushes_survive_a_power_cut_after_any_step() {
    survives_every_cut(
        &[
            Op::Create("a", 3072),
            Op::Write("a", 0, 16, 1),
            Op::Write("a", 4, 3, 2),
            Op::Flush,
            Op::Write("a", 0, 24, 3),
            Op::Write("a", 2040, 32, 4),
            Op::Write("a", 9, 2, 5),
            Op::Flush,
            Op::Zero("a", 3, 20),
            Op::Write("a", 16, 8, 6),
            Op::Flush,
            Op::Checkpoint,
            Op::Write("a", 0, 8, 7),
            Op::Flush,
        ],
        6,
        1,
    );
}

#[test]
fn writes_logged_without_a_sync_are_there_or_not_after_a_power_cut_but_nothing_flushed_is_lost() {
    survives_every_cut(
        &[
            Op::Create("a", 3072),
            Op::Write("a", 0, 16, 1),
            Op::Settle,
            Op::Write("a", 4, 3, 2),
            Op::Settle,
            Op::Zero("a", 8, 3),
            Op::Settle,
            Op::Flush,
            Op::Write("a", 0, 24, 3),
            Op::Settle,
            Op::Write("a", 2040, 32, 4),
            Op::Flush,
            Op::Write("a", 9, 2, 5),
            Op::Settle,
            Op::Write("a", 9, 9, 6),
        ],
        8,
        1,
    );
}

#[test]
fn snapshots_clones_and_deletions_survive_a_power_cut_after_any_step() {
    survives_every_cut(
        &[
            Op::Create("a", 3072),
            Op::Write("a", 0, 40, 1),
            Op::Snapshot("a", "s"),
            Op::Write("a", 8, 8, 2),
            Op::Write("a", 2048, 8, 2),
            Op::Snapshot("a", "t"),
            Op::Clone("a", "s", "b"),
            Op::Write("b", 0, 8, 3),
            Op::Write("a", 8, 16, 4),
            Op::DeleteSnapshot("a", "t"),
            Op::Rollback("a", "s"),
            Op::Write("a", 0, 9, 5),
            Op::Rename("a", "c"),
            Op::Resize("c", 1024),
            Op::DeleteSnapshot("c", "s"),
            Op::Delete("b"),
            Op::Gc,
            Op::Write("c", 32, 8, 6),
            Op::Flush,
        ],
        3,
        1,
    );
}

#[test]
fn disks_on_a_base_survive_a_power_cut_after_any_step() {
    survives_every_cut(
        &[
            Op::Create("c", 1024),
            Op::Write("c", 0, 8, 1),
            Op::CreateOnBase("a"),
            Op::Write("a", 4, 9, 2),
            Op::Zero("a", 16, 30),
            Op::Settle,
            Op::Zero("a", 503, 20),
            Op::Write("a", 506, 3, 3),
            Op::Flush,
            Op::Snapshot("a", "s"),
            Op::Clone("a", "s", "b"),
            Op::Zero("b", 2040, 4),
            Op::Resize("a", 1024),
            Op::Resize("a", 2304),
            Op::Write("a", 2048, 8, 4),
            Op::Flush,
            Op::Flatten("b"),
            Op::Write("b", 2032, 2, 5),
            Op::Rollback("a", "s"),
            Op::Zero("a", 0, 2304),
            Op::Delete("b"),
            Op::DeleteSnapshot("a", "s"),
            Op::Delete("a"),
            Op::Gc,
            Op::Checkpoint,
        ],
        2,
        1,
    );
}

#[test]
fn growing_by_itself_and_when_asked_survives_a_power_cut_after_any_step() {
    let options = PoolOptions { limit: ByteLen::kib(2048), ..small() };
    survives_every_cut_of(
        ByteLen::kib(1280),
        &options,
        &[
            Op::Create("a", 3072),
            Op::Write("a", 0, 900, 1),
            Op::Flush,
            Op::Write("a", 900, 900, 2),
            Op::Snapshot("a", "s"),
            Op::Write("a", 300, 8, 3),
            Op::Grow(2304),
            Op::Write("a", 1800, 400, 4),
            Op::Flush,
            Op::DeleteSnapshot("a", "s"),
            Op::Gc,
        ],
        4,
        1,
    );
}

#[test]
fn a_log_that_goes_round_survives_a_power_cut_after_any_step() {
    let mut ops = vec![Op::Create("a", 3072)];
    for round in 0..12_u8 {
        // Twelve kilobytes of log each, of thirty-two.
        ops.extend((0..5).map(|n| Op::Write("a", u64::from(round) * 8 + n * 500, 400, round + 1)));
        ops.push(if round % 4 == 3 { Op::Checkpoint } else { Op::Flush });
    }
    survives_every_cut(&ops, 2, 3);
}

#[test]
fn any_mixture_survives_a_power_cut() {
    for seed in 0..rounds(3, 100) {
        let mut dice = Dice::seeded(seed + 1);
        let mut ops = vec![Op::Create("a", 3072), Op::Create("b", 2304)];
        let count = 14 + usize::try_from(dice.below(10)).unwrap();
        ops.extend((0..count).map(|n| any_op(&mut dice, u8::try_from(n + 10).unwrap())));
        survives_every_cut(&ops, 3, if rounds(0, 1) == 1 { 1 } else { 3 });
    }
}
