//! What the disks of a scenario start as: snapshots in the pool, made once and found again.
//!
//! An image is imported under a name that says which file it was: its device, inode, size and time of change. What a
//! scenario makes itself is made in a machine of its own, under a digest of all that went in: the disk's size, the
//! commands, the guest's image and the kernel. One process makes at a time; others wait and find it made.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_block::ByteLen;
use kiln_model::RunId;
use kiln_model::event::Event;
use kiln_model::hostile;
use kiln_model::job::{Disk, KeepDisks};
use kiln_model::plan::{Plan, UnreadScript};
use kiln_model::scenario::{self, DiskStart, Making};
use kiln_qcow2::Qcow2Error;
use kiln_qcow2::chain::{self, Allow, Link};
use kiln_store::{BackingImage, Format, Reply, Request, Stop, Store, StoreError, Why};
use rustix::fs::{FlockOperation, flock};

use crate::equip::Equipment;
use crate::job::PoolAccess;
use crate::shell::{Shell, ShellError, ShellEvent};
use crate::stop::{StopToken, Urgency};

/// How names of disks that others start as begin.
pub const BASE: &str = "base:";
/// Their snapshot.
pub(crate) const READY: &str = "ready";
/// Of one scenario or image, so many are kept.
const KEPT_BASES: usize = 8;
/// How long the making of a disk may take.
const PATIENCE: Duration = Duration::from_secs(1800);
/// How much of what was printed is shown of a making that failed.
const LAST_LINES: usize = 8;
/// How many bytes of it are kept meanwhile.
const KEPT_OUTPUT: usize = 8 << 10;

/// Formats, mounts and fills the disk that `DISK` names; the commands are the first argument.
const MAKE: &str = r#"
fs=$0
if [ "$fs" != none ]; then
    "mkfs.$fs" "$DISK" </dev/null
    mkdir -p /run/kiln/disk
    mount -t "$fs" "$DISK" /run/kiln/disk
    (cd /run/kiln/disk && sh -ec "$1")
    umount /run/kiln/disk
else
    sh -ec "$1"
fi
"#;

/// Why a disk has nothing to start as.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The scenario asks for what is not there.
    #[error("{scenario}: line {line}: disk {serial}: {why}")]
    Unfit {
        /// The scenario.
        scenario: String,
        /// Where it speaks of the disk.
        line: usize,
        /// The disk.
        serial: String,
        /// What is wrong, and the cure.
        why: String,
    },
    /// The image cannot be read.
    #[error("{scenario}: line {line}: disk {serial}: cannot read the image {}", path.display())]
    Image {
        /// The scenario.
        scenario: String,
        /// Where it speaks of the disk.
        line: usize,
        /// The disk.
        serial: String,
        /// The image.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The pool, or its owner, failed.
    #[error("cannot make disk {serial} ready in pool {}", pool.display())]
    Pool {
        /// The disk.
        serial: String,
        /// The pool.
        pool: PathBuf,
        /// Why not.
        source: Box<StoreError>,
    },
    /// No machine came up to make it.
    #[error("cannot prepare disk {serial}")]
    Machine {
        /// The disk.
        serial: String,
        /// Why not.
        source: ShellError,
    },
    /// The commands failed.
    #[error("preparing disk {serial} failed ({how}); it ended with:\n{last}")]
    Commands {
        /// The disk.
        serial: String,
        /// How they ended.
        how: String,
        /// The last they printed, made harmless.
        last: String,
    },
    /// A person lost patience.
    #[error("interrupted")]
    Interrupted,
    /// The plan is not one that can run.
    #[error(transparent)]
    Plan(#[from] UnreadScript),
    /// This host failed.
    #[error("cannot {act}")]
    Host {
        /// What.
        act: String,
        /// Why not.
        source: std::io::Error,
    },
}

/// What the disks of a plan are made ready with.
#[derive(Debug)]
pub struct Bases<'a> {
    /// The plan; its machine is what disks are prepared in, its acceleration settled.
    pub plan: &'a Plan,
    /// Where the scenario came from, for errors.
    pub source: &'a str,
    /// The folder that relative paths of the scenario mean.
    pub folder: Option<&'a Path>,
    /// What the machines boot.
    pub equipment: &'a Equipment,
    /// The pool.
    pub pool: &'a Path,
    /// The way to it.
    pub access: &'a PoolAccess,
    /// The disk of the pool that is the root and stays, if a person wants one.
    pub persist: Option<&'a str>,
}

impl Bases<'_> {
    /// The disks of the plan as jobs name them. What they start as is there when this returns; `say` is told what
    /// takes its time, and what it came to.
    ///
    /// # Errors
    /// [`BaseError`]; whatever was made halfway is gone, or made anew the next time.
    pub fn settle(
        &self,
        say: &mut dyn FnMut(String),
        stop: &StopToken,
    ) -> Result<Vec<Disk>, BaseError> {
        let mut known: Vec<(&scenario::Disk, (String, u64))> = Vec::new();
        let mut disks = Vec::new();
        for disk in &self.plan.disks {
            let serial = disk.serial.clone();
            let Some(start) = Some(&disk.start).filter(|start| **start != DiskStart::Empty) else {
                let size = disk.size.map_or(0, ByteLen::get);
                disks.push(Disk { serial, size, base: None, persistent: None });
                continue;
            };
            let same = |known: &&(&scenario::Disk, _)| {
                known.0.start == *start && known.0.size == disk.size
            };
            let (base, is) = match known.iter().find(same) {
                Some((_, found)) => found.clone(),
                None => self.find_or_make(disk, say, stop)?,
            };
            known.push((disk, (base.clone(), is)));
            let size = disk.size.map_or(is, ByteLen::get);
            if size < is {
                let (size, is) = (ByteLen::new(size), ByteLen::new(is));
                let why = format!(
                    "it starts as {base}, which has {is}, and its `size` is {size}: give it more, or leave `size` out"
                );
                return Err(self.unfit(disk, why));
            }
            disks.push(Disk { serial, size, base: Some(base), persistent: None });
        }
        // The last, so that the names of the others in a guest do not depend on it.
        disks.extend(self.settle_root(say, stop)?);
        Ok(disks)
    }

    /// The snapshot a disk starts as, and its size.
    fn find_or_make(
        &self,
        disk: &scenario::Disk,
        say: &mut dyn FnMut(String),
        stop: &StopToken,
    ) -> Result<(String, u64), BaseError> {
        let failed = |error| self.pool_trouble(disk, error);
        Store::make(self.pool).map_err(failed)?;
        let (name, snapshot) = match &disk.start {
            DiskStart::Base { disk, snapshot } => (disk.clone(), snapshot.clone()),
            DiskStart::Image { path } => (self.image_name(disk, path)?, READY.to_owned()),
            DiskStart::Made(making) => (self.made_name(disk, making), READY.to_owned()),
            DiskStart::Empty => return Ok((String::new(), 0)),
        };
        let found = |size| (format!("{name}@{snapshot}"), size);
        let store = self.access.open(self.pool).map_err(failed)?;
        if let Some(size) = self.size_of(&store, disk, &name, &snapshot)? {
            return Ok(found(size));
        }
        if matches!(disk.start, DiskStart::Base { .. }) {
            let why = format!(
                "there is no snapshot {name}@{snapshot} in {}: `kiln disk ls` and `kiln disk snaps DISK` name what there is",
                self.pool.display()
            );
            return Err(self.unfit(disk, why));
        }
        let _alone = self.lock(disk)?;
        // Whoever had the lock before may have made it.
        if let Some(size) = self.size_of(&store, disk, &name, &snapshot)? {
            return Ok(found(size));
        }
        self.forget_half(&store, disk, &name)?;
        let began = Instant::now();
        match &disk.start {
            DiskStart::Image { path } => {
                say(format!("importing {} for disk {}", path.display(), disk.serial));
                self.import(&store, disk, path, &name, stop)?;
                let snap = Request::Snap { disk: name.clone(), snapshot: snapshot.clone() };
                store.ask(snap).map_err(failed)?;
            }
            DiskStart::Made(making) => {
                say(format!("preparing disk {}, once", disk.serial));
                self.prepare(disk, making, &name, stop)?;
            }
            DiskStart::Empty | DiskStart::Base { .. } => {}
        }
        let took = began.elapsed().as_secs_f32();
        say(format!("disk {} starts as {name}@{snapshot}, made in {took:.1} s", disk.serial));
        self.forget_old(&store, &name);
        let size = self.size_of(&store, disk, &name, &snapshot)?;
        Ok(found(size.unwrap_or_default()))
    }

    /// Removes what was made halfway: without its snapshot.
    pub(crate) fn forget_half(
        &self,
        store: &Store,
        disk: &scenario::Disk,
        name: &str,
    ) -> Result<(), BaseError> {
        let half = Request::Remove { names: vec![name.to_owned()], snapshots: true };
        match store.ask(half) {
            Ok(_) => Ok(()),
            Err(StoreError::Refused(refusal)) if matches!(refusal.why, Why::NoDisk { .. }) => {
                Ok(())
            }
            Err(error) => Err(self.pool_trouble(disk, error)),
        }
    }

    fn unfit(&self, disk: &scenario::Disk, why: String) -> BaseError {
        let scenario = self.source.to_owned();
        BaseError::Unfit { scenario, line: disk.line, serial: disk.serial.clone(), why }
    }

    pub(crate) fn pool_trouble(&self, disk: &scenario::Disk, error: StoreError) -> BaseError {
        match error {
            StoreError::Stopped => BaseError::Interrupted,
            error => BaseError::Pool {
                serial: disk.serial.clone(),
                pool: self.pool.to_owned(),
                source: Box::new(error),
            },
        }
    }

    pub(crate) fn size_of(
        &self,
        store: &Store,
        disk: &scenario::Disk,
        name: &str,
        snapshot: &str,
    ) -> Result<Option<u64>, BaseError> {
        match store.ask(Request::Snapshots { disk: name.to_owned() }) {
            Ok(Reply::Snapshots { snapshots }) => {
                Ok(snapshots.into_iter().find(|is| is.snapshot == snapshot).map(|is| is.size))
            }
            Ok(_) => Ok(None),
            Err(StoreError::Refused(refusal)) if matches!(refusal.why, Why::NoDisk { .. }) => {
                Ok(None)
            }
            Err(error) => Err(self.pool_trouble(disk, error)),
        }
    }

    /// One process at a time makes bases for a pool; the kernel gives the lock back however it ends.
    pub(crate) fn lock(&self, disk: &scenario::Disk) -> Result<File, BaseError> {
        let path = self.pool.with_added_extension("bases");
        let failed = |source| BaseError::Host {
            act: format!("lock {} to make disk {} ready", path.display(), disk.serial),
            source,
        };
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
        Ok(file)
    }

    fn image_path(&self, path: &Path) -> PathBuf {
        self.folder.map_or_else(|| path.to_owned(), |folder| folder.join(path))
    }

    fn image_name(&self, disk: &scenario::Disk, path: &Path) -> Result<String, BaseError> {
        let links = self.image_links(disk, path)?;
        let digest = digest_of(&links).map_err(|error| self.unreadable(disk, path, error))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        Ok(named(&stem, &digest))
    }

    fn made_name(&self, disk: &scenario::Disk, making: &Making) -> String {
        let mut digest = blake3::Hasher::new();
        digest.update(b"kiln base: made, 1\n");
        digest.update(&disk.size.map_or(0, ByteLen::get).to_le_bytes());
        let plan = self.plan;
        let texts = [
            making.filesystem.as_deref().unwrap_or(""),
            making.prepare.as_deref().unwrap_or(""),
            &self.equipment.image.key,
            &plan.kernel.digest,
            &plan.kernel_parameters.join(" "),
        ];
        for text in texts {
            digest.update(&(text.len() as u64).to_le_bytes());
            digest.update(text.as_bytes());
        }
        named(&plan.scenario, &digest)
    }

    fn unreadable(&self, disk: &scenario::Disk, path: &Path, source: std::io::Error) -> BaseError {
        BaseError::Image {
            scenario: self.source.to_owned(),
            line: disk.line,
            serial: disk.serial.clone(),
            path: path.to_owned(),
            source,
        }
    }

    fn import(
        &self,
        store: &Store,
        disk: &scenario::Disk,
        path: &Path,
        name: &str,
        stop: &StopToken,
    ) -> Result<(), BaseError> {
        self.import_links(store, disk, self.image_links(disk, path)?, name, stop)
    }

    /// The file of a disk's image, and the files it stands on.
    fn image_links(&self, disk: &scenario::Disk, path: &Path) -> Result<Vec<Link>, BaseError> {
        let path = self.image_path(path);
        chain::find(&path, None, Allow::Beside).map_err(|error| match error {
            Qcow2Error::Open { source, .. } => self.unreadable(disk, &path, source),
            error => {
                let mut why = error.to_string();
                let mut cause = std::error::Error::source(&error);
                while let Some(error) = cause {
                    why = format!("{why}: {error}");
                    cause = error.source();
                }
                self.unfit(disk, hostile::line(&why).into_owned())
            }
        })
    }

    /// Imports an open file, to be called `label`.
    pub(crate) fn import_file(
        &self,
        store: &Store,
        disk: &scenario::Disk,
        file: File,
        label: &str,
        name: &str,
        stop: &StopToken,
    ) -> Result<(), BaseError> {
        let link = Link { path: label.into(), file, format: chain::Format::Raw };
        self.import_links(store, disk, vec![link], name, stop)
    }

    fn import_links(
        &self,
        store: &Store,
        disk: &scenario::Disk,
        links: Vec<Link>,
        name: &str,
        stop: &StopToken,
    ) -> Result<(), BaseError> {
        let (mut files, mut named) = (Vec::new(), VecDeque::new());
        for link in links {
            files.push(link.file.into());
            let format = match link.format {
                chain::Format::Raw => Format::Raw,
                chain::Format::Qcow2 => Format::Qcow2,
            };
            named.push_back(BackingImage { file: link.path.display().to_string(), format });
        }
        let Some(first) = named.pop_front() else { return Ok(()) };
        let request = Request::Import {
            name: name.to_owned(),
            format: Some(first.format),
            file: first.file,
            backing: named.into(),
            snapshot: None,
        };
        let enough = Stop::new();
        let until = enough.clone();
        let mut on_progress = |_| {
            if stop.urgency() > Urgency::GoOn {
                until.stop();
            }
        };
        let imported = store.ask_with(request, files, &mut on_progress, &enough);
        imported.map(|_| ()).map_err(|error| self.pool_trouble(disk, error))
    }

    /// Boots the scenario's machine with one empty disk, makes the disk what it shall be, and keeps it.
    fn prepare(
        &self,
        disk: &scenario::Disk,
        making: &Making,
        name: &str,
        stop: &StopToken,
    ) -> Result<(), BaseError> {
        let serial = || disk.serial.clone();
        let machine = |source| match source {
            ShellError::Interrupted => BaseError::Interrupted,
            source => BaseError::Machine { serial: serial(), source },
        };
        let host = |act: &str| {
            let act = act.to_owned();
            move |source| BaseError::Host { act, source }
        };
        let folder = tempfile::tempdir().map_err(host("make a temporary folder"))?;
        // Nobody sees the run that this machine belongs to; its name only has to be one.
        let run: RunId = "20000101-000000-0000"
            .parse()
            .map_err(|error| host("name the preparation")(std::io::Error::other(error)))?;
        let size = disk.size.map_or(0, ByteLen::get);
        let empty = Disk { serial: serial(), size, base: None, persistent: None };
        let places = self.equipment.places(
            run,
            folder.path().to_owned(),
            Some(self.pool.to_owned()),
            vec![empty],
        );
        let mut spec = self.plan.job_spec(&places)?;
        spec.stages.clear();
        spec.keep_disks = KeepDisks::Never;
        let shell = Shell::open(&spec, self.access, &mut |_: Event| {}, stop).map_err(machine)?;
        let filesystem = making.filesystem.as_deref().unwrap_or("none");
        let commands = making.prepare.as_deref().unwrap_or(":");
        let command = ["sh", "-ec", MAKE, filesystem, commands].map(str::to_owned);
        let mut environment = spec.environment.clone();
        let path = format!("/dev/disk/by-id/virtio-{}", disk.serial);
        environment.push(("DISK".to_owned(), path));
        let mut session = shell.start(&command, &environment, None).map_err(machine)?;
        session.input().close().map_err(machine)?;
        let deadline = Instant::now() + PATIENCE;
        let mut said = Vec::new();
        let how = loop {
            if stop.urgency() > Urgency::GoOn {
                return Err(BaseError::Interrupted);
            }
            if Instant::now() > deadline {
                break format!("it took longer than {} minutes", PATIENCE.as_secs() / 60);
            }
            match session.next(Duration::from_millis(200)).map_err(machine)? {
                Some(ShellEvent::Output(bytes)) => {
                    said.extend(bytes);
                    let surplus = said.len().saturating_sub(KEPT_OUTPUT);
                    said.drain(..surplus);
                }
                Some(ShellEvent::Exited(0)) => {
                    let kept = shell.keep_disks(|_| (name.to_owned(), READY.to_owned()));
                    kept.map_err(|error| self.pool_trouble(disk, error))?;
                    return Ok(());
                }
                Some(ShellEvent::Exited(status)) => break format!("exit status {status}"),
                Some(ShellEvent::Killed(signal)) => break format!("killed by signal {signal}"),
                None => {}
            }
        };
        Err(BaseError::Commands { serial: serial(), how, last: last_lines(&said) })
    }

    /// Of bases with the same beginning only the latest stay; what is shared with clones costs nobody anything.
    pub(crate) fn forget_old(&self, store: &Store, name: &str) {
        let Some((prefix, _)) = name.rsplit_once(':') else { return };
        let prefix = format!("{prefix}:");
        let Ok(Reply::Disks { disks }) = store.ask(Request::List) else { return };
        let mut alike: Vec<_> =
            disks.into_iter().filter(|disk| disk.name.starts_with(&prefix)).collect();
        alike.sort_by_key(|disk| std::cmp::Reverse(disk.created));
        for old in alike.into_iter().skip(KEPT_BASES).filter(|old| old.name != name) {
            // One that is in use is left for the next time.
            let _ = store.ask(Request::Remove { names: vec![old.name], snapshots: true });
        }
    }
}

/// `base:STEM:DIGEST`, of what names in a pool may hold.
pub(crate) fn named(stem: &str, digest: &blake3::Hasher) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let stem: String = stem.chars().map(|c| if allowed(c) { c } else { '-' }).take(48).collect();
    let digest = digest.finalize().to_hex();
    format!("{BASE}{stem}:{}", &digest[..32])
}

fn last_lines(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let text = hostile::without_sequences(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    let shown: Vec<String> = last
        .iter()
        .map(|line| format!("    {}", hostile::one_line(line.trim_end(), 200)))
        .collect();
    shown.join("\n")
}

/// Which files these are, and as of when.
fn digest_of(links: &[Link]) -> std::io::Result<blake3::Hasher> {
    let mut digest = blake3::Hasher::new();
    digest.update(b"kiln base: image, 1\n");
    for link in links {
        let found = link.file.metadata()?;
        for number in [found.dev(), found.ino(), found.size()] {
            digest.update(&number.to_le_bytes());
        }
        for number in [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()] {
            digest.update(&number.to_le_bytes());
        }
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_another_one_when_a_file_it_stands_on_changed() {
        let folder = tempfile::tempdir().expect("a folder");
        let links = || {
            ["top", "below"].map(|name| {
                let path = folder.path().join(name);
                let file = File::open(&path).expect("it was written");
                Link { path, file, format: chain::Format::Raw }
            })
        };
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("a file");
        };
        let name = || named("image", &digest_of(&links()).expect("they are files"));
        ["top", "below"].into_iter().for_each(|name| write(name, "1"));
        let first = name();
        assert_eq!(name(), first);
        write("below", "22");
        assert_ne!(name(), first);
    }

    #[test]
    fn a_base_is_named_so_that_a_pool_takes_it_whatever_the_image_is_called() {
        let digest = blake3::Hasher::new();
        let name = named("my disk@home/\u{e4}", &digest);
        assert!(name.starts_with("base:my-disk-home--:"), "{name}");
        assert!(named(&"x".repeat(300), &digest).len() < 128);
    }

    #[test]
    fn what_a_failed_preparation_printed_is_bounded_and_harmless() {
        let mut said = b"\x1b[31mred\x1b[0m\n\n".repeat(50);
        said.extend(b"mkfs.ext4: not found\n");
        let last = last_lines(&said);
        assert_eq!(last.lines().count(), LAST_LINES);
        assert!(last.ends_with("    mkfs.ext4: not found") && !last.contains('\x1b'), "{last}");
    }
}
