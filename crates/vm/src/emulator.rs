//! Finding QEMU, and asking which one it is.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::VmError;
use crate::lifeline;

/// What a program of this name on the PATH is taken for.
const NAME: &str = "qemu-system-x86_64";
/// Where distributions without that name keep theirs.
const ELSEWHERE: &[&str] = &["/usr/libexec/qemu-kvm", "/usr/bin/qemu-kvm"];
/// The oldest that was tried.
const OLDEST: [u32; 3] = [7, 2, 0];
/// How long it may take to say its version.
const PATIENCE: Duration = Duration::from_secs(30);

/// A QEMU that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emulator {
    path: PathBuf,
    version: [u32; 3],
}

impl Emulator {
    /// The one at `named`, else the first on the PATH. Its answer is remembered while the program lives.
    ///
    /// # Errors
    /// When there is none, it is none, or it is too old; each error names the cure.
    pub fn find(named: Option<&Path>) -> Result<Emulator, VmError> {
        let path = match named {
            Some(path) => path.to_owned(),
            None => on_the_path().ok_or(VmError::NoQemu)?,
        };
        let version = version_of(&path)?;
        if version < OLDEST {
            let version = Version(version).to_string();
            return Err(VmError::OldQemu { path, version, oldest: Version(OLDEST).to_string() });
        }
        Ok(Emulator { path, version })
    }

    #[cfg(test)]
    pub(crate) fn for_test() -> Emulator {
        Emulator::for_test_of(OLDEST)
    }

    #[cfg(test)]
    pub(crate) fn for_test_of(version: [u32; 3]) -> Emulator {
        Emulator { path: "/q/qemu".into(), version }
    }

    /// The program.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Major, minor, micro.
    pub fn version(&self) -> [u32; 3] {
        self.version
    }
}

/// `/usr/bin/qemu-system-x86_64 (7.2.22)`.
impl fmt::Display for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.path.display(), Version(self.version))
    }
}

struct Version([u32; 3]);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, micro] = self.0;
        write!(f, "{major}.{minor}.{micro}")
    }
}

/// Versions by program and the time it was last changed.
type Known = HashMap<(PathBuf, SystemTime), [u32; 3]>;

fn on_the_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(NAME))
        .chain(ELSEWHERE.iter().map(PathBuf::from))
        .find(|candidate| candidate.is_file())
}

fn version_of(path: &Path) -> Result<[u32; 3], VmError> {
    static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
    let changed = fs::metadata(path).and_then(|data| data.modified()).map_err(|source| {
        VmError::Io { act: "find the emulator", path: path.to_owned(), source }
    })?;
    let key = (path.to_owned(), changed);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    if let Some(version) = known.get(&key) {
        return Ok(*version);
    }
    let version = ask(path)?;
    known.insert(key, version);
    Ok(version)
}

fn ask(path: &Path) -> Result<[u32; 3], VmError> {
    let failed = |source| VmError::Io { act: "start the emulator", path: path.to_owned(), source };
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let child = lifeline::spawn(command, Vec::new()).map_err(failed)?;
    let stdout = child.take_stdout();
    let ended = child.wait(Some(Instant::now() + PATIENCE)).map_err(failed)?;
    let mut said = Vec::new();
    if let (Some(stdout), Some(_)) = (stdout, ended) {
        stdout.take(4096).read_to_end(&mut said).map_err(failed)?;
    }
    let said = String::from_utf8_lossy(&said);
    parse_version(&said).ok_or_else(|| VmError::NotQemu {
        path: path.to_owned(),
        said: said.lines().next().unwrap_or("").chars().take(100).collect(),
    })
}

/// From `QEMU emulator version 7.2.22 (Debian …)`.
fn parse_version(said: &str) -> Option<[u32; 3]> {
    let (_, rest) = said.lines().next()?.split_once("emulator version ")?;
    let number = rest.split([' ', '(']).next()?;
    let mut parts = number.split('.').map(|part| part.parse::<u32>().ok());
    let version = [parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)];
    Some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_first_line() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright";
        assert_eq!(parse_version(debian), Some([7, 2, 22]));
        assert_eq!(parse_version("QEMU emulator version 10.1.0\n"), Some([10, 1, 0]));
        assert_eq!(parse_version("GNU bash, version 5.2"), None);
        assert_eq!(parse_version("QEMU emulator version x"), None);
    }

    #[test]
    fn a_program_that_is_no_emulator_is_named() {
        let error = Emulator::find(Some(Path::new("/bin/true"))).unwrap_err();
        assert!(error.to_string().starts_with("/bin/true is not QEMU"), "{error}");
    }

    #[test]
    fn a_missing_emulator_is_named() {
        let error = Emulator::find(Some(Path::new("/nonexistent/qemu"))).unwrap_err();
        assert_eq!(error.to_string(), "cannot find the emulator /nonexistent/qemu");
    }
}
