//! A pool and a plain model of it, side by side: every operation is done to both.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice};
use kiln_parallax::{DiskOptions, NewBase, OpenBase, OpenedBase, Pool, PoolError, PoolOptions};

pub(crate) const SECTOR: usize = 512;

/// A disk's content, one number per sector; every sector is filled with its number.
pub(crate) type Content = Vec<u8>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ModelDisk {
    pub(crate) now: Content,
    pub(crate) snapshots: BTreeMap<String, Content>,
}

pub(crate) type Model = BTreeMap<String, ModelDisk>;

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Create(&'static str, u64),
    /// On the base that all of them are on.
    CreateOnBase(&'static str),
    /// Disk, first sector, sectors, number.
    Write(&'static str, u64, u64, u8),
    Zero(&'static str, u64, u64),
    Flush,
    /// Into the log, without a sync.
    Settle,
    Snapshot(&'static str, &'static str),
    Clone(&'static str, &'static str, &'static str),
    Rollback(&'static str, &'static str),
    DeleteSnapshot(&'static str, &'static str),
    Delete(&'static str),
    Rename(&'static str, &'static str),
    /// In sectors.
    Resize(&'static str, u64),
    /// Copies the base into the pool.
    Flatten(&'static str),
    Gc,
    Checkpoint,
    /// The pool, to that many KiB.
    Grow(u64),
}

pub(crate) fn small() -> PoolOptions {
    PoolOptions {
        log: ByteLen::kib(32),
        cache: ByteLen::mib(1),
        background: false,
        bases: Some(Arc::new(Images::of(&base_content()))),
        ..PoolOptions::default()
    }
}

/// What the base holds: stretches with holes between them, in two leaves, and an end within a block.
pub(crate) fn base_content() -> Content {
    let mut content = vec![0; 2300];
    for (from, to) in [(0, 64), (500, 540), (700, 701), (2030, 2060), (2290, 2300)] {
        for (sector, number) in content.iter_mut().enumerate().take(to).skip(from) {
            *number = u8::try_from(200 + sector % 50).unwrap();
        }
    }
    content
}

/// Images that can be bases, by their description.
#[derive(Debug, Default)]
pub(crate) struct Images(pub(crate) Mutex<BTreeMap<String, Vec<u8>>>);

impl Images {
    pub(crate) fn of(content: &[u8]) -> Images {
        let images = Images::default();
        let bytes = content.iter().flat_map(|number| [*number; SECTOR]).collect();
        images.0.lock().unwrap().insert("base".to_owned(), bytes);
        images
    }
}

/// An image, which is known by its first and its last byte.
impl OpenBase for Images {
    fn open(&self, kind: &str, description: &str) -> Result<OpenedBase, String> {
        assert_eq!(kind, "test");
        let images = self.0.lock().unwrap();
        let bytes = images.get(description).ok_or("it is not there; put it back")?;
        let mut identity = [0; 32];
        identity[..2].copy_from_slice(&[bytes[0], bytes[bytes.len() - 1]]);
        let device = MemoryDevice::new(ByteLen::of(bytes));
        for (place, block) in (0..).step_by(4096).zip(bytes.chunks(4096)) {
            // Elsewhere it has holes.
            if block.iter().any(|byte| *byte != 0) {
                device.write_at(ByteOffset::new(place), block).map_err(|e| e.to_string())?;
            }
        }
        Ok(OpenedBase { device: Arc::new(device), identity })
    }
}

pub(crate) const BASE: NewBase<'static> =
    NewBase { kind: "test", name: "the base", description: "base" };

impl Op {
    /// Whether everything done so far is durable once this returned.
    pub(crate) fn settles(&self) -> bool {
        !matches!(self, Op::Write(..) | Op::Zero(..) | Op::Settle)
    }

    pub(crate) fn apply_to_pool(&self, pool: &Pool) -> Result<(), PoolError> {
        let options = DiskOptions::default();
        let device = |act| move |source| PoolError::Device { act, source };
        let len = |sectors: u64| ByteLen::new(sectors * 512);
        match *self {
            Op::Create(name, sectors) => pool.create_disk(name, len(sectors), &options),
            Op::CreateOnBase(name) => pool.create_on_base(name, &BASE, &options).map(|_| ()),
            Op::Write(disk, at, count, number) => {
                let bytes = vec![number; len(count).to_usize().unwrap()];
                let at = ByteOffset::new(at * 512);
                pool.open_disk(disk)?.write_at(at, &bytes).map_err(device("write"))
            }
            Op::Zero(disk, at, count) => {
                let at = ByteOffset::new(at * 512);
                let disk = pool.open_disk(disk)?;
                disk.write_zeroes(at, len(count), false).map_err(device("zero"))
            }
            Op::Flush => pool.flush(),
            Op::Settle => pool.settle(),
            Op::Snapshot(disk, name) => pool.snapshot(disk, name),
            Op::Clone(disk, snapshot, name) => pool.clone_disk(disk, snapshot, name, &options),
            Op::Rollback(disk, snapshot) => pool.rollback(disk, snapshot),
            Op::DeleteSnapshot(disk, name) => pool.delete_snapshot(disk, name),
            Op::Delete(disk) => pool.delete(disk),
            Op::Rename(disk, name) => pool.rename(disk, name),
            Op::Resize(disk, sectors) => pool.resize(disk, len(sectors)),
            Op::Flatten(disk) => {
                pool.flatten(disk, &mut |_, _| ControlFlow::Continue(())).map(|_| ())
            }
            Op::Gc => pool.gc(),
            Op::Checkpoint => pool.checkpoint(),
            Op::Grow(kib) => pool.grow_to(ByteLen::kib(kib)),
        }
    }

    /// The model says no where the pool has to.
    pub(crate) fn apply_to_model(&self, model: &mut Model) -> bool {
        let size = |n: u64| usize::try_from(n).unwrap();
        match *self {
            Op::Create(name, sectors) => {
                let free = !model.contains_key(name);
                if free {
                    let now = vec![0; size(sectors)];
                    model.insert(name.into(), ModelDisk { now, ..ModelDisk::default() });
                }
                free
            }
            Op::CreateOnBase(name) => {
                let free = !model.contains_key(name);
                if free {
                    let mut now = base_content();
                    now.resize(now.len().next_multiple_of(8), 0);
                    model.insert(name.into(), ModelDisk { now, ..ModelDisk::default() });
                }
                free
            }
            Op::Flatten(disk) => model.contains_key(disk),
            Op::Write(disk, at, count, number) => fill(model, disk, at, count, number),
            Op::Zero(disk, at, count) => fill(model, disk, at, count, 0),
            Op::Flush | Op::Settle | Op::Gc | Op::Checkpoint | Op::Grow(_) => true,
            Op::Snapshot(disk, name) => {
                let Some(disk) = model.get_mut(disk) else { return false };
                if disk.snapshots.contains_key(name) {
                    return false;
                }
                disk.snapshots.insert(name.into(), disk.now.clone());
                true
            }
            Op::Clone(disk, snapshot, name) => {
                let content = model.get(disk).and_then(|disk| disk.snapshots.get(snapshot));
                let Some(now) = content.cloned().filter(|_| !model.contains_key(name)) else {
                    return false;
                };
                model.insert(name.into(), ModelDisk { now, ..ModelDisk::default() });
                true
            }
            Op::Rollback(disk, snapshot) => {
                let Some(disk) = model.get_mut(disk) else { return false };
                let Some(content) = disk.snapshots.get(snapshot) else { return false };
                disk.now.clone_from(content);
                true
            }
            Op::DeleteSnapshot(disk, name) => {
                model.get_mut(disk).is_some_and(|disk| disk.snapshots.remove(name).is_some())
            }
            Op::Delete(disk) => {
                let may = model.get(disk).is_some_and(|disk| disk.snapshots.is_empty());
                may && model.remove(disk).is_some()
            }
            Op::Rename(disk, name) => {
                if !model.contains_key(disk) || model.contains_key(name) {
                    return false;
                }
                let content = model.remove(disk).unwrap();
                model.insert(name.into(), content);
                true
            }
            Op::Resize(disk, sectors) => {
                let Some(disk) = model.get_mut(disk) else { return false };
                disk.now.resize(size(sectors), 0);
                true
            }
        }
    }
}

fn fill(model: &mut Model, disk: &str, at: u64, count: u64, number: u8) -> bool {
    let Some(disk) = model.get_mut(disk) else { return false };
    let (from, to) = (usize::try_from(at).unwrap(), usize::try_from(at + count).unwrap());
    let Some(sectors) = disk.now.get_mut(from..to) else { return false };
    sectors.fill(number);
    true
}

/// What a disk holds, or a description of a sector that is torn.
pub(crate) fn content_of(disk: &dyn BlockDevice) -> Result<Content, String> {
    let mut bytes = vec![0xee; disk.size().to_usize().unwrap()];
    disk.read_at(ByteOffset::ZERO, &mut bytes).map_err(|error| error.to_string())?;
    let sectors = bytes.chunks(SECTOR).enumerate();
    sectors
        .map(|(place, sector)| match sector.iter().all(|byte| *byte == sector[0]) {
            true => Ok(sector[0]),
            false => Err(format!("sector {place} is torn")),
        })
        .collect()
}

/// All the pool holds, as the model would say it.
pub(crate) fn model_of(pool: &Pool) -> Result<Model, String> {
    let mut model = Model::new();
    for info in pool.disks() {
        let name = info.name;
        let disk = pool.open_disk(&name).map_err(|error| error.to_string())?;
        let mut found = ModelDisk { now: content_of(&disk)?, ..ModelDisk::default() };
        for snapshot in pool.snapshots(&name).map_err(|error| error.to_string())? {
            let view = pool.open_snapshot(&name, &snapshot.name).unwrap();
            found.snapshots.insert(snapshot.name, content_of(&view)?);
        }
        model.insert(name, found);
    }
    Ok(model)
}

const DISKS: [&str; 3] = ["a", "b", "c"];
const SNAPSHOTS: [&str; 3] = ["s", "t", "u"];

/// Any operation; many make no sense where they come, which is a sense of its own.
pub(crate) fn any_op(dice: &mut Dice, number: u8) -> Op {
    let mut one = |of: [&'static str; 3]| of[usize::try_from(dice.below(3)).unwrap()];
    let (disk, other, snapshot) = (one(DISKS), one(DISKS), one(SNAPSHOTS));
    // Two leaves, with holes between what is written.
    let at = dice.below(5) * 509 % 2100;
    match dice.below(32) {
        0..=9 => Op::Write(disk, at, 1 + dice.below(30), number),
        10 => Op::Zero(disk, at, 1 + dice.below(40)),
        11 | 12 => Op::Flush,
        13..=15 => Op::Snapshot(disk, snapshot),
        16 | 17 => Op::Clone(disk, snapshot, other),
        18 => Op::Rollback(disk, snapshot),
        19 | 20 => Op::DeleteSnapshot(disk, snapshot),
        21 => Op::Delete(disk),
        22 => Op::Rename(disk, other),
        23 => Op::Resize(disk, [1024, 2304, 3072][usize::try_from(dice.below(3)).unwrap()]),
        24 => Op::Gc,
        25 | 26 => Op::Settle,
        27 => Op::Grow(4096 + dice.below(1024)),
        28 | 29 => Op::CreateOnBase(disk),
        30 => Op::Flatten(disk),
        _ => Op::Checkpoint,
    }
}

/// Does it to both, and compares whether they took it; true if they did.
pub(crate) fn step(pool: &Pool, model: &mut Model, op: &Op) -> bool {
    let taken = op.apply_to_model(model);
    match op.apply_to_pool(pool) {
        Ok(()) => assert!(taken, "{op:?} had to be refused"),
        Err(error) => assert!(!taken, "{op:?} was refused: {error}"),
    }
    taken
}

pub(crate) fn pool_on(device: Arc<dyn BlockDevice>) -> Pool {
    Pool::create(device, &small()).unwrap()
}

/// How much longer a test runs when asked to.
pub(crate) fn rounds(few: u64, many: u64) -> u64 {
    if std::env::var_os("KILN_LONG").is_some() { many } else { few }
}
