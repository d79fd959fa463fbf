//! Asking the host's apt. Its own lists are used if they are there and know Debian kernels; else, or
//! when what they name is no longer on the mirror, apt fetches lists into a folder of ours, from the
//! sources the host is set up with. Neither needs root.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::packages::{self, Package, Part};
use super::{FetchError, FetchRequest, Progress};

/// How often a download is begun.
const TRIES: u32 = 3;

/// The host's apt, with the kernels it knows.
pub(super) struct Apt {
    pub(super) packages: Vec<Package>,
    work: PathBuf,
    private: bool,
}

impl Apt {
    /// None where there is no apt, or it knows no such kernel even with fresh lists.
    pub(super) fn open(
        work: &Path,
        request: &FetchRequest,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Option<Apt> {
        progress(Progress::Asking("apt"));
        let mut apt = Apt { packages: Vec::new(), work: work.to_owned(), private: false };
        apt.read_lists()?;
        let known = |apt: &Apt| {
            apt.packages.iter().any(|package| request.wants(&package.release, &package.version))
        };
        if request.refresh || !known(&apt) {
            apt.refresh(progress).ok()?;
        }
        known(&apt).then_some(apt)
    }

    /// The options that turn apt to lists of our own.
    fn options(&self) -> Vec<OsString> {
        let mut options: Vec<OsString> = Vec::new();
        let mut set = |key: &str, value: &Path| {
            let mut option = OsString::from(format!("{key}="));
            option.push(value);
            options.extend(["-o".into(), option]);
        };
        set("APT::Sandbox::User", Path::new("root"));
        set("Acquire::Retries", Path::new("3"));
        set("Acquire::http::Timeout", Path::new("30"));
        set("Acquire::https::Timeout", Path::new("30"));
        if self.private {
            let dir = self.work.join("apt");
            set("Dir::State", &dir.join("state"));
            set("Dir::Cache", &dir.join("cache"));
            set("Dir::State::status", Path::new("/var/lib/dpkg/status"));
        } else {
            // The host's lists, but not its caches: those may be root's to write.
            set("Dir::Cache::pkgcache", Path::new(""));
            set("Dir::Cache::srcpkgcache", Path::new(""));
        }
        options
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(self.options()).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// Reads the kernels of apt's lists. None if apt is not there, or fails.
    fn read_lists(&mut self) -> Option<()> {
        let mut names = String::new();
        for prefix in packages::PREFIXES {
            names += &output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        }
        let wanted: Vec<&str> = names.lines().filter(|name| name.ends_with("-amd64")).collect();
        if wanted.is_empty() {
            return Some(());
        }
        let shown = output(self.command("apt-cache").arg("show").args(wanted))?;
        self.packages = packages::parse(&shown);
        Some(())
    }

    /// Fetches lists into our own folder, and reads them.
    fn refresh(&mut self, progress: &mut dyn FnMut(Progress<'_>)) -> Result<(), FetchError> {
        progress(Progress::Asking("apt (fresh package lists)"));
        self.private = true;
        for dir in ["state/lists/partial", "cache/archives/partial"] {
            let dir = self.work.join("apt").join(dir);
            fs::create_dir_all(&dir).map_err(|e| FetchError::io("create", &dir, e))?;
        }
        let mut update = self.command("apt-get");
        update.args(["-q", "update"]).stdout(Stdio::null());
        // Some list may fail (a source that is gone): what the others say may do.
        let said = run(update, "apt-get", &mut || {});
        match self.read_lists() {
            Some(()) if !self.packages.is_empty() => Ok(()),
            _ => said.and(Err(FetchError::Program {
                program: "apt-get",
                message: "it knows no Debian kernels".to_owned(),
            })),
        }
    }

    pub(super) fn download(
        &mut self,
        part: &Part,
        deb: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), FetchError> {
        // apt names the file, and continues what lies under that name: a folder of its own.
        let dir = self.work.join("download");
        fs::create_dir_all(&dir).map_err(|e| FetchError::io("create", &dir, e))?;
        let mut tries = 0;
        loop {
            let mut command = self.command("apt-get");
            let name = format!("{}={}", part.name, part.version);
            command.args(["-q", "download", &name]).current_dir(&dir).stdout(Stdio::null());
            let mut report = || {
                let done = largest(&dir).map_or(0, |(_, size)| size).min(part.size);
                progress(Progress::Downloading { package: &part.name, done, total: part.size });
            };
            let result = run(command, "apt-get", &mut report);
            let found = largest(&dir).filter(|(_, size)| *size == part.size);
            match (result, found) {
                (Ok(()), Some((file, _))) => {
                    fs::rename(&file, deb).map_err(|e| FetchError::io("move", &file, e))?;
                    return fs::remove_dir_all(&dir).map_err(|e| FetchError::io("delete", &dir, e));
                }
                (result, _) => {
                    let error = result.err().unwrap_or_else(|| FetchError::Program {
                        program: "apt-get",
                        message: format!("{} did not arrive whole", part.name),
                    });
                    tries += 1;
                    if tries == TRIES {
                        return Err(error);
                    }
                    progress(Progress::Retrying(&error.to_string()));
                    // The host's lists may name a package that its mirror has replaced.
                    self.refresh(progress)?;
                }
            }
        }
    }
}

/// The largest file in a folder.
fn largest(dir: &Path) -> Option<(PathBuf, u64)> {
    let size = |path: PathBuf| Some((path.clone(), fs::metadata(path).ok()?.len()));
    let files = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let here = files(dir.to_owned()).chain(files(dir.join("partial")));
    here.filter(|e| e.file_type().is_ok_and(|kind| kind.is_file()))
        .filter_map(|e| size(e.path()))
        .max_by_key(|(_, size)| *size)
}

/// What a program printed, if it could be run and succeeded.
fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program to its end, calling `tick` a few times a second. What it says on stderr becomes
/// the error. A program is ended if this panics or the caller gives up.
pub(super) fn run(
    mut command: Command,
    program: &'static str,
    tick: &mut dyn FnMut(),
) -> Result<(), FetchError> {
    struct Reaped(Child);
    impl Drop for Reaped {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let failed = |message: String| FetchError::Program { program, message };
    let child = command.stderr(Stdio::piped()).spawn().map_err(|e| failed(e.to_string()))?;
    let mut child = Reaped(child);
    let stderr = child.0.stderr.take();
    let said = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = stderr.by_ref().take(64 << 10).read_to_end(&mut text);
            // The rest is thrown away, so that the program never waits for a reader.
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let status = loop {
        tick();
        match child.0.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => std::thread::sleep(Duration::from_millis(100)),
            Err(error) => return Err(failed(error.to_string())),
        }
    };
    if status.success() {
        return Ok(());
    }
    let said = said.join().unwrap_or_default();
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let end = lines[lines.len().saturating_sub(3)..].join("; ");
    Err(failed(if end.is_empty() { status.to_string() } else { end }))
}
