//! Preparing an appliance: the names of packages, and their configuration as it was before anybody edited it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flate2::write::GzEncoder;

use super::SuperminError;
use super::output::Output;
use super::root::real;
use crate::base::is_readable;
use crate::cache::modified_from_environment;
use crate::kernel::{DebError, Limits, read_deb};
use crate::packages::{Closure, Manager, PackageError, System};

/// What is to be prepared.
#[derive(Clone, Debug)]
pub struct PrepareRequest {
    /// Names of packages.
    pub packages: Vec<String>,
    /// The directory that is made, or replaced.
    pub output: PathBuf,
    /// Whether configuration is taken as it is here now, instead of from packages fetched for that.
    pub use_installed: bool,
    /// A configuration file for the program that fetches packages.
    pub packager_config: Option<PathBuf>,
    /// The directory taken for `/`.
    pub system: PathBuf,
}

/// What came of preparing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// How many packages the appliance will have, with what those named need.
    pub packages: usize,
    /// How many files of configuration are in it.
    pub config: usize,
    /// What a person may want to know.
    pub notes: Vec<String>,
}

/// A file of an archive.
struct Member {
    path: PathBuf,
    mode: u32,
    modified: u64,
    bytes: Vec<u8>,
}

/// Prepares an appliance. `tell` is given a line now and then.
pub fn prepare(
    request: &PrepareRequest,
    tell: &mut dyn FnMut(&str),
) -> Result<Prepared, SuperminError> {
    let installed = System::read(&request.system)?;
    let (there, missing): (Vec<&str>, Vec<&str>) =
        request.packages.iter().map(String::as_str).partition(|name| installed.has(name));
    if there.is_empty() {
        return Err(SuperminError::NoPackage { names: request.packages.clone() });
    }
    let mut notes: Vec<String> =
        missing.iter().map(|name| format!("package {name} is not installed")).collect();
    let names: BTreeSet<&str> = there.iter().copied().collect();
    let mut closure = installed.closure(there.iter().copied())?;
    notes.append(&mut closure.notes);
    tell(&format!("after resolving dependencies there are {} packages", closure.packages.len()));
    let members = if request.use_installed {
        as_installed(&closure, &request.system, &mut notes)?
    } else {
        as_packaged(&closure, installed.manager(), request, tell)?
    };
    tell(&format!("there are {} config files", members.len()));
    let output = Output::begin(&request.output)?;
    let list = output.path().join("packages");
    let text: String = names.iter().map(|name| format!("{name}\n")).collect();
    fs::write(&list, text).map_err(|error| SuperminError::host("write", &list, error))?;
    if !members.is_empty() {
        let base = output.path().join("base.tar.gz");
        archive(&members, &base).map_err(|error| SuperminError::host("write", &base, error))?;
    }
    output.publish()?;
    Ok(Prepared { packages: closure.packages.len(), config: members.len(), notes })
}

fn as_installed(
    closure: &Closure,
    system: &Path,
    notes: &mut Vec<String>,
) -> Result<Vec<Member>, SuperminError> {
    let mut members = Vec::new();
    let mut unreadable = 0;
    for path in closure.config.keys() {
        let from = real(system, path);
        // Removed by whoever keeps this system, which is no reason to fail.
        let Ok(meta) = fs::symlink_metadata(&from) else { continue };
        if !meta.is_file() {
            continue;
        }
        if !is_readable(&from, meta.mode()) {
            unreadable += 1;
            continue;
        }
        let bytes = fs::read(&from).map_err(|error| SuperminError::host("read", &from, error))?;
        let modified = u64::try_from(meta.mtime()).unwrap_or(0);
        members.push(Member { path: path.clone(), mode: meta.mode() & 0o7777, modified, bytes });
    }
    if unreadable > 0 {
        notes.push(format!("{unreadable} config files that this user may not read are left out"));
    }
    Ok(members)
}

/// Fetches the packages and takes their configuration from them.
fn as_packaged(
    closure: &Closure,
    manager: Manager,
    request: &PrepareRequest,
    tell: &mut dyn FnMut(&str),
) -> Result<Vec<Member>, SuperminError> {
    if manager != Manager::Dpkg {
        let said = "only Debian packages are fetched; give --use-installed to take the \
                    configuration of this system"
            .to_owned();
        return Err(PackageError::Program { program: manager.name().to_owned(), said }.into());
    }
    let owners: BTreeSet<&str> = closure.config.values().map(String::as_str).collect();
    if owners.is_empty() {
        return Ok(Vec::new());
    }
    tell(&format!("downloading {} packages", owners.len()));
    let folder = tempfile::Builder::new()
        .prefix("kiln-supermin-")
        .tempdir()
        .map_err(|error| SuperminError::host("write to", &std::env::temp_dir(), error))?;
    let mut command = Command::new("apt-get");
    if let Some(config) = &request.packager_config {
        command.arg("-c").arg(config);
    }
    let failed =
        |said: String| SuperminError::Program { program: "apt-get download".to_owned(), said };
    let done = command
        .args(["-q", "-q", "download"])
        .args(&owners)
        .current_dir(folder.path())
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty());
        let last = last.unwrap_or("it did not say why");
        return Err(failed(format!("{last}; --use-installed needs no network")));
    }
    let modified = modified_from_environment().into();
    let mut members = Vec::new();
    let entries = fs::read_dir(folder.path())
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(|error| SuperminError::host("list", folder.path(), error))?;
    for entry in entries {
        let path = entry.path();
        if path.extension().is_none_or(|ending| ending != "deb") {
            continue;
        }
        let mut each = |file: &crate::kernel::DebFile, from: &mut dyn io::Read| {
            let path = Path::new("/").join(&file.path);
            if closure.config.contains_key(&path) {
                let mut bytes = Vec::new();
                from.take(file.size).read_to_end(&mut bytes)?;
                // Of what is in the package only the bytes differ from what is installed.
                let mode = fs::symlink_metadata(real(&request.system, &path))
                    .map_or(0o644, |meta| meta.mode() & 0o7777);
                members.push(Member { path, mode, modified, bytes });
            }
            Ok(())
        };
        let deb = File::open(&path).map_err(|error| SuperminError::host("read", &path, error))?;
        let read = read_deb(io::BufReader::new(deb), Limits::default(), &mut each);
        read.map_err(|error: DebError| SuperminError::Input { path, why: error.to_string() })?;
    }
    members.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(members)
}

/// Writes a compressed archive of root's files, the same for the same files.
fn archive(members: &[Member], path: &Path) -> io::Result<()> {
    let latest = std::env::var_os("SOURCE_DATE_EPOCH").map(|_| modified_from_environment().into());
    let packed = GzEncoder::new(File::create(path)?, flate2::Compression::default());
    let mut tar = tar::Builder::new(packed);
    for member in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(member.bytes.len() as u64);
        header.set_mode(member.mode);
        header.set_mtime(latest.map_or(member.modified, |latest: u64| member.modified.min(latest)));
        let name = Path::new(".").join(member.path.strip_prefix("/").unwrap_or(&member.path));
        tar.append_data(&mut header, name, &member.bytes[..])?;
    }
    tar.into_inner()?.finish()?;
    Ok(())
}
