//! `kiln layer apply`: files of a tar onto layers, as one more layer.
//!
//! Without layers below, a new ext2 file system is written here. Above layers the file system is there already, and
//! only its kernel driver writes to it: in a machine, whose disk is what the layers read like. The new layer is what
//! differs afterwards, sector by sector.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kiln_block::{BlockDevice, BlockSource, ByteLen, ByteOffset, DeviceError, Extent, ReadOnly};
use kiln_image::archive::Stretch;
use kiln_model::event::Event;
use kiln_model::hostile::{one_line, without_sequences};
use kiln_model::job::Disk;
use kiln_model::root::RootChoice;
use kiln_model::scenario::Scenario;
use kiln_overlaybd::{Sealing, Stack, pack, pack_changes};
use kiln_parallax::{DiskOptions, Pool, PoolOptions};
use kiln_runner::shell::{Shell, ShellEvent};
use kiln_runner::{Loaded, PoolAccess, StopToken, Urgency, settle_acceleration};
use kiln_store::Stop;
use kiln_store::contents::{self, Named};

use super::make::{random, sealing, write};
use super::output::folder_of;
use super::sources::{Source, names, source, stack};
use crate::arguments::LayerApplyArgs;
use crate::commands::disk::pool;
use crate::commands::{shell, target};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::signals::{self, Heard};
use crate::{hostile, run_id};

const SCENARIO: &str = include_str!("apply.toml");
/// What the disks are called: in the pool, and in the guest.
const LOWER: &str = "lower";
const ARCHIVE: &str = "archive";
/// The snapshot of what the layers read like.
const BEFORE: &str = "before";
/// How often the stop token is looked at.
const GLANCE: Duration = Duration::from_millis(200);
/// How much of what the guest said is kept.
const KEPT: usize = 4096;

/// `kiln layer apply`
pub(crate) fn apply(mut session: Session, args: &LayerApplyArgs) -> Result<Exit, Failure> {
    let sealing = sealing(&args.sealing, Some(random()?))?;
    if args.layers.is_empty() {
        return found(&session, args, &sealing);
    }
    if args.free != ByteLen::ZERO {
        let text = "--free is for a new file system, and there are layers below";
        return Err(Failure::new(Exit::Usage, text).hint("leave it out"));
    }
    let stack = stack(&args.layers)?;
    let kind = file_system(&stack, &names(&args.layers))?;
    let top = stack.layers().last().and_then(kiln_overlaybd::Layer::uuid).unwrap_or_default();
    let parent = if sealing.parent.is_nil() { top } else { sealing.parent };
    let sealing = Sealing { parent, ..sealing };
    let archive = Stretch::open(&args.archive).and_then(|archive| archive.unpacked());
    let archive = archive.exits(Exit::Usage)?;
    let size = BlockSource::size(&stack);
    // Beside the output, where there is space for it.
    let folder = tempfile::Builder::new()
        .prefix(".kiln-apply-")
        .tempdir_in(folder_of(&args.sealing.output))
        .tried(|| format!("cannot write {}", args.sealing.output.display()))
        .exits(Exit::Setup)?;
    let path = folder.path().join("pool");
    fill(&path, &ReadOnly(stack), &archive)?;
    unpack(&mut session, args, folder.path(), &path, (kind, &archive))?;
    let pool = Pool::open_file(&path, &PoolOptions::default()).exits(Exit::InfrastructureBroke)?;
    let changed = pool.diff(LOWER, BEFORE, None).exits(Exit::InfrastructureBroke)?;
    let before = pool.open_snapshot(LOWER, BEFORE).exits(Exit::InfrastructureBroke)?;
    let after = pool.open_disk(LOWER).exits(Exit::InfrastructureBroke)?;
    let after: Arc<dyn BlockDevice> = Arc::new(ReadOnly(Cut { disk: Arc::new(after), size }));
    write(&session, &args.sealing.output, |file| {
        let (before, after) = (("the layers below", &before as _), ("the new layer", &after));
        pack_changes(before, after, &changed, file, &sealing)
    })
}

/// The lowest layer: a file system that is written here.
fn found(session: &Session, args: &LayerApplyArgs, sealing: &Sealing) -> Result<Exit, Failure> {
    let paths = [args.archive.clone()];
    let Source::Files(disk) = source(&paths, args.free)? else {
        let text = format!("{} is no archive of files", args.archive.display());
        return Err(Failure::new(Exit::Usage, text));
    };
    let name = names(&paths);
    write(session, &args.sealing.output, |file| pack(&name, &disk, file, sealing))
}

/// The type of the file system that layers hold, as drivers are called.
fn file_system(stack: &Stack, name: &str) -> Result<&'static str, Failure> {
    let mut magic = [0; 2];
    if BlockSource::size(stack).get() >= 2048 {
        let read = stack.read(1080, &mut magic);
        read.map_err(|source| {
            let damaged = matches!(source, DeviceError::Damaged { .. });
            let exit = if damaged { Exit::Unsound } else { Exit::InfrastructureBroke };
            Failure::from(source).with_exit(exit)
        })?;
    }
    // The driver of ext4 is that of ext2, too.
    match magic {
        [0x53, 0xef] => Ok("ext4"),
        _ => {
            let text = format!("{name} hold neither ext2 nor ext4");
            Err(Failure::new(Exit::Usage, text).hint("kiln layer inspect shows what they are"))
        }
    }
}

/// Puts what the layers read like, and the archive, into a pool of their own.
fn fill(path: &Path, stack: &ReadOnly<Stack>, archive: &Stretch) -> Result<(), Failure> {
    let blocks =
        |len: u64| ByteLen::new(len.next_multiple_of(contents::BLOCK).max(contents::BLOCK));
    let size = blocks(BlockDevice::size(stack).get());
    // Everything may be written anew; beyond that it takes little.
    let most = (size.get() + archive.len()).saturating_mul(2).saturating_add(1 << 30);
    let broke = Exit::InfrastructureBroke;
    let pool = Pool::create_file(path, ByteLen::new(most), &PoolOptions::default()).exits(broke)?;
    pool.create_disk(LOWER, size, &DiskOptions::default()).exits(broke)?;
    let lower = pool.open_disk(LOWER).exits(broke)?;
    contents::copy(
        Named { device: stack, name: "the layers" },
        Named { device: &lower, name: LOWER },
        &Stop::new(),
        &mut |_| {},
    )
    .map_err(|error| pool::refused(error.into()))?;
    drop(lower);
    pool.snapshot(LOWER, BEFORE).exits(broke)?;
    pool.create_disk(ARCHIVE, blocks(archive.len()), &DiskOptions::default()).exits(broke)?;
    let copy = pool.open_disk(ARCHIVE).exits(broke)?;
    let mut bytes = vec![0; 1 << 20];
    for at in (0..archive.len()).step_by(bytes.len()) {
        let take = usize::try_from(archive.len() - at).unwrap_or(usize::MAX).min(bytes.len());
        archive.read(at, &mut bytes[..take]).exits(broke)?;
        copy.write_at(ByteOffset::new(at), &bytes[..take]).exits(broke)?;
    }
    copy.flush().exits(broke)
}

/// Boots a machine with both, and has the archive unpacked.
fn unpack(
    session: &mut Session,
    args: &LayerApplyArgs,
    folder: &Path,
    pool: &Path,
    (kind, archive): (&str, &Stretch),
) -> Result<(), Failure> {
    let scenario = Scenario::parse(SCENARIO).exits(Exit::Setup)?;
    let loaded = Loaded {
        scenario: scenario.clone(),
        source: scenario.name.clone(),
        text: SCENARIO.to_owned(),
        folder: None,
    };
    let kernel = target::chosen_kernel(session, args.kernel.as_deref())?;
    let mut plan = target::planned(&scenario, &kernel.identity(), &target::choices(session))?;
    plan.root = RootChoice::Initramfs;
    target::check_machine(session, &plan.machine)?;
    let stop = StopToken::new();
    let heard = stop.clone();
    signals::listen(move |signal| match signal {
        Heard::Resized => {}
        Heard::Interrupt | Heard::Terminate => heard.kill(),
    })?;
    let equipment = target::equipment(session, &loaded, &kernel, plan.root)?;
    settle_acceleration(&mut plan.machine, Some(session.home.cache())).exits(Exit::Setup)?;
    let disk = |name: &str| Disk {
        serial: name.to_owned(),
        size: 0,
        base: None,
        persistent: Some(name.to_owned()),
    };
    let run = run_id::fresh()
        .ok_or_else(|| Failure::new(Exit::Setup, "the clock of this machine is before 1970"))?;
    let disks = vec![disk(LOWER), disk(ARCHIVE)];
    let places = equipment.places(run, folder.to_owned(), Some(pool.to_owned()), disks);
    let mut spec = plan.job_spec(&places)?;
    spec.stages.clear();
    let access = PoolAccess::inside();
    let machine = Shell::open(&spec, &access, &mut |_: Event| {}, &stop);
    let machine = machine.map_err(shell::from_shell)?;
    let serial = |name: &str| format!("/dev/disk/by-id/virtio-{name}");
    let bytes = archive.len().to_string();
    let command = ["/proc/1/exe", "--unpack-layer", &serial(ARCHIVE), &bytes, &serial(LOWER), kind];
    let command: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
    let mut program = machine.start(&command, &[], None).map_err(shell::from_shell)?;
    program.input().close().map_err(shell::from_shell)?;
    let mut said = Vec::new();
    let how = loop {
        if stop.urgency() > Urgency::GoOn {
            return Err(Failure::new(Exit::Interrupted, "interrupted"));
        }
        match program.next(GLANCE).map_err(shell::from_shell)? {
            Some(ShellEvent::Output(bytes)) => {
                said.extend(bytes);
                let surplus = said.len().saturating_sub(KEPT);
                said.drain(..surplus);
            }
            Some(ShellEvent::Exited(0)) => break None,
            Some(ShellEvent::Exited(status)) => break Some(format!("exit status {status}")),
            Some(ShellEvent::Killed(signal)) => break Some(format!("killed by signal {signal}")),
            None => {}
        }
    };
    // The guest has unmounted the disk; switched off, it has written it, too.
    machine.close();
    let Some(how) = how else { return Ok(()) };
    let said = String::from_utf8_lossy(&said).into_owned();
    let said = one_line(without_sequences(&said).trim(), 1000);
    let said = if said.is_empty() { how } else { said };
    let text = format!("cannot apply {}: {}", args.archive.display(), hostile::line(&said));
    Err(Failure::new(Exit::BuildFailed, text))
}

/// The layers' part of a disk, which the pool has made a whole number of blocks.
struct Cut {
    disk: Arc<dyn BlockDevice>,
    size: ByteLen,
}

impl BlockSource for Cut {
    fn size(&self) -> ByteLen {
        self.size
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.disk.read_at(ByteOffset::new(at), buffer)
    }

    fn extents(&self, at: ByteOffset, len: ByteLen) -> Result<Vec<Extent>, DeviceError> {
        self.disk.extents(at, len)
    }
}
