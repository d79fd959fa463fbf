//! Asking a Debian mirror directly, with curl. The mirror is trusted as far as HTTPS goes; its list
//! then vouches for the package.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::apt::run;
use super::packages::{self, Package, Part};
use super::{FetchError, Progress};
use crate::kernel::compression;

/// The mirror network of Debian itself.
pub(super) const DEBIAN: &str = "https://ftp.debian.org/debian";

/// Whose kernels are looked at: of the stable release, and those backported to it.
const SUITES: [&str; 2] = ["stable", "stable-backports"];

/// A list is some 50 MB.
const LIST_LIMIT: u64 = 1 << 30;

/// How often a download is begun; curl itself tries each three times.
const TRIES: u32 = 3;

/// A mirror, with the kernels it has.
pub(super) struct Mirror {
    pub(super) packages: Vec<Package>,
    url: String,
}

impl Mirror {
    pub(super) fn open(
        url: &str,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Mirror, FetchError> {
        progress(Progress::Asking(url));
        let mut mirror = Mirror { packages: Vec::new(), url: url.trim_end_matches('/').to_owned() };
        let mut first_error = None;
        for suite in SUITES {
            match mirror.list(suite) {
                Ok(packages) => mirror.packages.extend(packages),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        match first_error {
            Some(error) if mirror.packages.is_empty() => Err(error),
            _ => Ok(mirror),
        }
    }

    fn list(&self, suite: &str) -> Result<Vec<Package>, FetchError> {
        let url = format!("{}/dists/{suite}/main/binary-amd64/Packages.xz", self.url);
        let output = curl().arg(&url).output().map_err(|error| missing(&error))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let message = format!("{url}: {}", said.lines().last().unwrap_or("no message").trim());
            return Err(FetchError::Program { program: "curl", message });
        }
        let plain = compression::decompress(&output.stdout, LIST_LIMIT)
            .map_err(|source| FetchError::io("unpack", Path::new(&url), source))?;
        Ok(packages::parse(&String::from_utf8_lossy(&plain)))
    }

    pub(super) fn download(
        &mut self,
        part: &Part,
        deb: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), FetchError> {
        let url = format!("{}/{}", self.url, part.filename);
        let partial = deb.with_extension("part");
        let mut tries = 0;
        loop {
            // What an earlier call left is continued, unless it is already too much.
            if size(&partial) > part.size {
                let _ = fs::remove_file(&partial);
            }
            if size(&partial) < part.size {
                let mut command = curl();
                command.args(["--continue-at", "-", "--output"]).arg(&partial).arg(&url);
                let mut report = || {
                    let done = size(&partial);
                    progress(Progress::Downloading { package: &part.name, done, total: part.size });
                };
                let result = run(command, "curl", &mut report);
                if let Err(error) = result {
                    tries += 1;
                    if tries == TRIES {
                        return Err(error);
                    }
                    progress(Progress::Retrying(&error.to_string()));
                    continue;
                }
            }
            return fs::rename(&partial, deb).map_err(|e| FetchError::io("move", &partial, e));
        }
    }
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

/// curl, told to fail on errors, and to give up on a mirror that sends nothing.
fn curl() -> Command {
    let mut command = Command::new("curl");
    command
        .args(["--disable", "--fail", "--location", "--silent", "--show-error", "--globoff"])
        .args([
            "--retry",
            "3",
            "--connect-timeout",
            "20",
            "--speed-limit",
            "100",
            "--speed-time",
            "60",
        ])
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
}

fn missing(error: &std::io::Error) -> FetchError {
    match error.kind() {
        std::io::ErrorKind::NotFound => FetchError::NoTools,
        _ => FetchError::Program { program: "curl", message: error.to_string() },
    }
}
