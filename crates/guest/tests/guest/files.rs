//! Files that the agent takes and gives.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use kiln_vm::agent::{AgentError, PullLimits};

use crate::process::{Guest, soon};

const NO_LIMITS: PullLimits = PullLimits { entries: 10_000, bytes: 1 << 30 };

#[test]
fn a_file_is_pushed_whole_with_its_mode_and_pulled_as_it_was() {
    let guest = Guest::start();
    let agent = guest.agent();
    let inside = tempfile::tempdir().unwrap();
    let here = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0_u32..500_000).flat_map(|n| n.wrapping_mul(7).to_le_bytes()).collect();
    let path = inside.path().join("new/folder/big.bin");
    let pushed = agent.push(&path, 0o750, &mut content.as_slice(), soon()).unwrap();
    assert_eq!(pushed, 2_000_000);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o750);
    assert!(fs::read(&path).unwrap() == content);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");

    let pattern = format!("{}/new/*/*.b?n", inside.path().display());
    let report = agent.pull(&[pattern], here.path(), NO_LIMITS, soon()).unwrap();
    assert_eq!(report.troubles, Vec::<String>::new());
    assert_eq!(report.files.len(), 1);
    assert_eq!(report.files[0].bytes, 2_000_000);
    assert!(fs::read(here.path().join(&report.files[0].path)).unwrap() == content);
}

#[test]
fn a_push_that_cannot_be_written_says_why_and_leaves_nothing() {
    let guest = Guest::start();
    let agent = guest.agent();
    let inside = tempfile::tempdir().unwrap();
    let blocked = inside.path().join("file");
    fs::write(&blocked, "x").unwrap();
    let content = vec![0; 3 << 20];
    let error =
        agent.push(&blocked.join("below"), 0o644, &mut content.as_slice(), soon()).unwrap_err();
    assert!(matches!(error, AgentError::Guest { .. }), "{error}");
    let error = agent.push(Path::new("relative"), 0o644, &mut &b"x"[..], soon()).unwrap_err();
    assert!(error.to_string().contains("relative"), "{error}");
    assert_eq!(fs::read_dir(inside.path()).unwrap().count(), 1);
}

#[test]
fn a_folder_is_pulled_with_all_it_holds_and_links_are_told_not_followed() {
    let guest = Guest::start();
    let agent = guest.agent();
    let inside = tempfile::tempdir().unwrap();
    let here = tempfile::tempdir().unwrap();
    fs::create_dir_all(inside.path().join("logs/deep")).unwrap();
    fs::write(inside.path().join("logs/a.log"), "a").unwrap();
    fs::write(inside.path().join("logs/.hidden"), "h").unwrap();
    fs::write(inside.path().join("logs/deep/b.log"), "").unwrap();
    symlink("/etc", inside.path().join("logs/etc")).unwrap();
    let base = inside.path().display().to_string();
    let patterns = [format!("{base}/logs"), format!("{base}/nothing*")];
    let report = agent.pull(&patterns, here.path(), NO_LIMITS, soon()).unwrap();
    let mut names: Vec<String> =
        report.files.iter().map(|file| file.path.display().to_string()).collect();
    names.sort();
    let relative = base.trim_start_matches('/');
    let expected = [".hidden", "a.log", "deep/b.log"].map(|name| format!("{relative}/logs/{name}"));
    assert_eq!(names, expected);
    assert_eq!(report.links, [(format!("{base}/logs/etc"), "/etc".to_owned())]);
    assert_eq!(report.troubles, [format!("nothing matches {base}/nothing*")]);
    assert!(!here.path().join(relative).join("logs/etc").exists());
    assert!(here.path().join(relative).join("logs/deep").is_dir());
}

#[test]
fn a_pull_stops_at_its_limits() {
    let guest = Guest::start();
    let agent = guest.agent();
    let inside = tempfile::tempdir().unwrap();
    let here = tempfile::tempdir().unwrap();
    for n in 0..10 {
        fs::write(inside.path().join(format!("{n}")), vec![b'x'; 1000]).unwrap();
    }
    let patterns = [format!("{}/*", inside.path().display())];
    let limits = PullLimits { entries: 100, bytes: 2500 };
    let report = agent.pull(&patterns, here.path(), limits, soon()).unwrap();
    assert!(report.truncated);
    let bytes: Vec<u64> = report.files.iter().map(|file| file.bytes).collect();
    assert_eq!(bytes, [1000, 1000, 500]);
    let limits = PullLimits { entries: 4, bytes: 1 << 20 };
    let report = agent.pull(&patterns, here.path(), limits, soon()).unwrap();
    assert_eq!((report.files.len(), report.truncated), (4, true));
    // A file without end is one that is too long.
    let endless = ["/dev/zero".to_owned(), "/proc/self/status".to_owned()];
    let report = agent.pull(&endless, here.path(), limits, soon()).unwrap();
    assert_eq!(report.files.len(), 1, "{report:?}");
    assert!(report.troubles[0].contains("/dev/zero"), "{report:?}");
}

#[test]
fn a_path_is_looked_at() {
    let guest = Guest::start();
    let agent = guest.agent();
    let inside = tempfile::tempdir().unwrap();
    fs::write(inside.path().join("f"), "12345").unwrap();
    let stat = agent.stat(&inside.path().join("f"), soon()).unwrap().unwrap();
    assert_eq!(stat.size, 5);
    assert!(agent.stat(&inside.path().join("g"), soon()).unwrap().is_none());
}
