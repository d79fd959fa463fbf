//! The verdict on KVM, kept until the host boots again or changes its kernel.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::KvmVerdict;

/// Grows when the probe learns new instructions: older verdicts are then asked for again.
const FORMAT: u32 = 1;
/// More than this is no file of ours.
const MAX_FILE: u64 = 64 << 10;

#[derive(Serialize, Deserialize)]
struct Kept {
    format: u32,
    host: String,
    verdict: KvmVerdict,
}

fn file(folder: &Path) -> PathBuf {
    folder.join("kvm-verdict.json")
}

/// Boot, kernel and processor: what the verdict depends on.
fn host() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let kernel = fs::read_to_string("/proc/version").ok()?;
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find(|line| line.starts_with("model name")).unwrap_or("");
    Some(format!("{} / {} / {model}", boot.trim(), kernel.trim()))
}

/// The verdict of this host since its boot, if one is there.
pub(super) fn load(folder: &Path) -> Option<KvmVerdict> {
    let path = file(folder);
    if fs::metadata(&path).ok()?.len() > MAX_FILE {
        return None;
    }
    let kept: Kept = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (kept.format == FORMAT && kept.host == host()?).then_some(kept.verdict)
}

/// Keeps a verdict; readers see the old file or the new one, never half of it.
pub(super) fn store(folder: &Path, verdict: &KvmVerdict) -> io::Result<()> {
    let Some(host) = host() else {
        return Ok(());
    };
    fs::create_dir_all(folder)?;
    let text = serde_json::to_vec(&Kept { format: FORMAT, host, verdict: verdict.clone() })?;
    let fresh = folder.join(format!(".kvm-verdict.{}", std::process::id()));
    let written = fs::File::create(&fresh)
        .and_then(|mut out| out.write_all(&text))
        .and_then(|()| fs::rename(&fresh, file(folder)));
    if written.is_err() {
        // Best effort: the error that matters is on its way.
        let _ = fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_holds_for_this_boot_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let verdict = KvmVerdict::Unusable { reason: "SSE".into() };
        assert_eq!(load(folder.path()), None);
        store(folder.path(), &verdict).unwrap();
        assert_eq!(load(folder.path()), Some(verdict));
        let text = fs::read_to_string(file(folder.path())).unwrap();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let other = text.replace(boot.trim(), "00000000-0000-0000-0000-000000000000");
        fs::write(file(folder.path()), other).unwrap();
        assert_eq!(load(folder.path()), None);
        fs::write(file(folder.path()), "{").unwrap();
        assert_eq!(load(folder.path()), None);
    }
}
