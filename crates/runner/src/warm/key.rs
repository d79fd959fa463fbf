//! What a saved machine is found by: a digest of all that went into it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kiln_model::event::Acceleration;
use kiln_model::job::{JobSpec, Stage};
use kiln_model::root::JobRoot;
use kiln_vm::VmSpec;

/// Grows when what is saved, or how a guest is made ready, changes.
const FORMAT: &str = "kiln warm machine, 2";

struct Digest(blake3::Hasher);

impl Digest {
    fn text(&mut self, text: &str) {
        self.0.update(&(text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
    }

    fn texts<'a>(&mut self, texts: impl Iterator<Item = &'a str>) {
        for text in texts {
            self.0.update(&[1]);
            self.text(text);
        }
        self.0.update(&[0]);
    }

    /// A file that is another one when any of this differs.
    fn file(&mut self, path: &Path) -> io::Result<()> {
        let found = fs::metadata(path)?;
        self.text(&path.to_string_lossy());
        for number in [found.dev(), found.ino(), found.size()] {
            self.0.update(&number.to_le_bytes());
        }
        for number in [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()] {
            self.0.update(&number.to_le_bytes());
        }
        Ok(())
    }

    /// A file of the image store is named for what it holds, and touched when it is used.
    fn image(&mut self, path: &Path) -> io::Result<()> {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if stem.len() == 64 && stem.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            self.text(stem);
            self.0.update(&fs::metadata(path)?.len().to_le_bytes());
            return Ok(());
        }
        self.file(path)
    }
}

/// The key of the same machine after a stage.
pub(super) fn of_prepared(ready: &str, job: &JobSpec, prepare: &Stage) -> String {
    let mut digest = Digest(blake3::Hasher::new());
    digest.text(ready);
    // Plain data with string keys: there is nothing in it that JSON could not say.
    digest.text(&serde_json::to_string(prepare).unwrap_or_default());
    for (name, value) in &job.environment {
        digest.text(name);
        digest.text(value);
    }
    digest.0.finalize().to_hex().to_string()
}

/// Which boot of this host it is.
pub(super) fn this_boot() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned())
}

/// The key of a job's machine at the moment at which it is ready, in hexadecimal. `bases` tells for each disk what it
/// starts as beyond its name.
pub(super) fn of_ready(job: &JobSpec, vm: &VmSpec, bases: &[String]) -> io::Result<String> {
    let mut digest = Digest(blake3::Hasher::new());
    digest.text(FORMAT);
    // What was written before a power cut may be anything.
    digest.text(&this_boot()?);
    digest.text(&vm.shape().map_err(io::Error::other)?);
    let emulator = &vm.emulator;
    digest.file(&fs::canonicalize(emulator.path())?)?;
    digest.texts(emulator.version().map(|part| part.to_string()).iter().map(String::as_str));
    if vm.acceleration == Acceleration::Kvm {
        // The guest has seen this host's processor and talked to this host's kernel.
        let cpu = fs::read_to_string("/proc/cpuinfo")?;
        let lasting = |line: &&str| !line.starts_with("cpu MHz") && !line.starts_with("bogomips");
        digest.texts(cpu.split("\n\n").next().unwrap_or_default().lines().filter(lasting));
        digest.text(&fs::read_to_string("/proc/version")?);
    }
    digest.text(&job.kernel.identity.release);
    digest.text(&job.kernel.identity.digest);
    digest.file(&job.kernel.boot)?;
    match &job.initramfs {
        Some(initramfs) => digest.image(initramfs)?,
        None => digest.text("no initramfs"),
    }
    match &job.root {
        JobRoot::Initramfs => digest.text("initramfs"),
        JobRoot::Plan { plan } => {
            digest.text("plan");
            digest.image(plan)?;
        }
        JobRoot::Disk => digest.text("disk"),
    }
    digest.texts(job.modules.iter().map(String::as_str));
    for (disk, base) in job.disks.iter().zip(bases) {
        digest.text(&disk.serial);
        digest.0.update(&disk.size.to_le_bytes());
        digest.text(disk.base.as_deref().unwrap_or(""));
        digest.text(base);
    }
    Ok(digest.0.finalize().to_hex().to_string())
}
