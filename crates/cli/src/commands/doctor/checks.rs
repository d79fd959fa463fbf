//! The checks, each a question to the machine. None takes longer than a few seconds, none changes anything but caches.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Check, serving};
use crate::embedded;
use crate::session::Session;

/// The oldest QEMU Kiln is tested with.
const OLDEST_QEMU: (u32, u32) = (7, 2);
/// Below this much free space a run is likely to fail, and below the second it is in danger.
const NEEDED_SPACE: u64 = 256 << 20;
const GOOD_SPACE: u64 = 4 << 30;
/// How long a program may take to say its version.
const PATIENCE: Duration = Duration::from_secs(10);

/// Programs that the shipped scenarios bring into the guest, and the Debian package of each.
const TOOLS: &[(&str, &str)] = &[
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("fio", "fio"),
];

/// All of them, what is necessary first.
pub(super) fn all(session: &Session) -> Vec<Check> {
    vec![
        qemu(session),
        kvm(session),
        guest(session),
        kernel(session),
        space("cache", session.home.cache(), "kiln image prune"),
        space(
            "runs",
            session.home.data(),
            "remove old runs there, or move everything with KILN_HOME",
        ),
        tools(),
        git(),
        serving::fuse(),
        serving::ublk(),
        serving::nbd(),
    ]
}

fn qemu(session: &Session) -> Check {
    let configured = session.config.path("vm.qemu");
    let cure =
        format!("{} (or name one with --qemu)", install("qemu-system-x86", "qemu-system-x86-core"));
    let Some(path) = configured.or_else(|| on_path("qemu-system-x86_64")) else {
        return Check::missing("qemu", "qemu-system-x86_64 is not on the PATH", cure);
    };
    let Some(said) = first_line(Command::new(&path).arg("--version")) else {
        let found = format!("{} does not say its version", path.display());
        return Check::missing("qemu", found, cure);
    };
    match version_in(&said) {
        Some(version) if version >= OLDEST_QEMU => {
            Check::ok("qemu", format!("{}.{} at {}", version.0, version.1, path.display()))
        }
        Some((major, minor)) => {
            let found = format!("{} is {major}.{minor}, tested are 7.2 and newer", path.display());
            Check::limited("qemu", found, cure)
        }
        None => Check::missing("qemu", format!("{} is no QEMU: {said}", path.display()), cure),
    }
}

fn kvm(session: &Session) -> Check {
    let verdict = kiln_vm::probe::kvm(Some(session.home.cache()));
    if verdict.is_usable() {
        return Check::ok("kvm", verdict.to_string());
    }
    let found = format!("{verdict}; TCG will be used, which takes several times as long");
    let cure = verdict.cure().unwrap_or("run on a machine whose /dev/kvm works");
    Check::limited("kvm", found, cure)
}

fn guest(session: &Session) -> Check {
    match session.config.path("guest.executable") {
        Some(path) if path.is_file() => Check::ok("guest", format!("{}", path.display())),
        Some(path) => Check::missing(
            "guest",
            format!("KILN_GUEST names {}, which is not there", path.display()),
            "make guest",
        ),
        None if embedded::has_guest() => Check::ok("guest", "built in"),
        None => Check::missing(
            "guest",
            "no guest executable is built in",
            "run `make guest` in Kiln's source tree and build again, or set KILN_GUEST to one",
        ),
    }
}

fn kernel(session: &Session) -> Check {
    let choice = session.config.text("run.kernel");
    match crate::commands::kernel::find(session, choice) {
        Ok(kernel) => {
            let modules = if kernel.modules.is_some() { "" } else { ", without modules" };
            let found = format!("{} ({}){modules}", kernel.release, kernel.image.display());
            Check::ok("kernel", found)
        }
        Err(error) => {
            // The cure in the error's own text would be said twice.
            let text = error.to_string();
            let found = text.split(". ").next().unwrap_or(&text).to_owned();
            Check::missing("kernel", found, "kiln kernel fetch debian")
        }
    }
}

fn space(name: &'static str, folder: &Path, cure: &str) -> Check {
    // The folder may not exist yet: what counts is where it will be made.
    let Some(existing) = folder.ancestors().find(|folder| folder.is_dir()) else {
        return Check::missing(name, format!("{} is nowhere", folder.display()), cure);
    };
    if rustix::fs::access(existing, rustix::fs::Access::WRITE_OK).is_err() {
        let found = format!("{} may not be written", existing.display());
        return Check::missing(name, found, "move everything with KILN_HOME=/some/folder");
    }
    let free = match rustix::fs::statvfs(existing) {
        Ok(space) => space.f_bavail.saturating_mul(space.f_frsize),
        Err(error) => {
            return Check::limited(name, format!("{}: {error}", existing.display()), cure);
        }
    };
    let found = format!("{} has {} MiB free", folder.display(), free >> 20);
    match free {
        GOOD_SPACE.. => Check::ok(name, found),
        NEEDED_SPACE.. => Check::limited(name, format!("{found}, which will not last long"), cure),
        _ => Check::missing(name, format!("{found}, too little for a run"), cure),
    }
}

fn tools() -> Check {
    let missing: Vec<_> = TOOLS.iter().filter(|(program, _)| on_path(program).is_none()).collect();
    if missing.is_empty() {
        let all: Vec<&str> = TOOLS.iter().map(|(program, _)| *program).collect();
        return Check::ok("tools", all.join(", "));
    }
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    let found =
        format!("no {}: the shipped scenarios that use them cannot run", programs.join(", "));
    let packages = packages.join(" ");
    Check::limited("tools", found, install(&packages, &packages))
}

fn git() -> Check {
    let cure = || install("git", "git");
    match on_path("git") {
        None => Check::limited("git", "not found: `kiln publish` cannot run", cure()),
        Some(path) => match first_line(Command::new(&path).arg("--version")) {
            Some(said) => Check::ok("git", said),
            None => Check::limited("git", format!("{} does not run", path.display()), cure()),
        },
    }
}

/// The command that installs packages here.
pub(super) fn install(debian: &str, fedora: &str) -> String {
    if on_path("apt-get").is_none() && on_path("dnf").is_some() {
        return format!("sudo dnf install {fedora}");
    }
    format!("sudo apt-get install {debian}")
}

/// A program on the PATH, or where distributions keep those of root.
pub(super) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| {
            file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
        })
}

/// What a program says first, if it says it in time and ends well.
fn first_line(command: &mut Command) -> Option<String> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let deadline = Instant::now() + PATIENCE;
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status.success(),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            _ => break false,
        }
    };
    if !ended {
        // Fails only for a child that has ended meanwhile.
        let _ = child.kill();
        let _ = child.wait();
        return None;
    }
    let mut said = Vec::new();
    child.stdout.take()?.take(4096).read_to_end(&mut said).ok()?;
    let line = String::from_utf8_lossy(&said).lines().next()?.trim().to_owned();
    (!line.is_empty()).then_some(line)
}

/// The first `N.N` of a text.
fn version_in(text: &str) -> Option<(u32, u32)> {
    text.split(|c: char| !c.is_ascii_digit() && c != '.').find_map(|word| {
        let mut parts = word.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        assert_eq!(version_in("QEMU emulator version 7.2.19 (Debian 1:7.2+dfsg-7)"), Some((7, 2)));
        assert_eq!(version_in("QEMU emulator version 10.0"), Some((10, 0)));
        assert_eq!(version_in("hello"), None);
    }

    #[test]
    fn a_program_that_says_nothing_or_fails_has_no_first_line() {
        assert_eq!(
            first_line(Command::new("/bin/sh").args(["-c", "echo hi; echo ho"])),
            Some("hi".into())
        );
        assert_eq!(first_line(Command::new("/bin/sh").args(["-c", "echo hi; exit 1"])), None);
        assert_eq!(first_line(&mut Command::new("/no/such/program")), None);
    }

    #[test]
    fn every_state_but_ok_names_its_cure() {
        let folder = tempfile::tempdir().unwrap();
        let check = space("runs", &folder.path().join("not/yet/there"), "make room");
        assert_eq!(check.cure.is_none(), check.state == super::super::State::Ok, "{check:?}");
    }
}
