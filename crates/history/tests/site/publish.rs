//! Publishing to bare repositories.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_history::{HistoryError, publish, site};
use kiln_model::outcome::Outcome;

use crate::fixture::{Place, failed};

fn git(at: &Path, args: &[&str]) -> String {
    let output = Command::new("git").current_dir(at).args(args).output().unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn bare(place: &Place) -> PathBuf {
    let path = place.path().join("remote.git");
    git(place.path(), &["init", "--quiet", "--bare", path.to_str().unwrap()]);
    path
}

fn site_of(place: &Place, run: &str, kernel: &str, outcome: Outcome) {
    place.record(run, "smoke", kernel, &[outcome]);
    site::build(&place.runs(), None, &place.site()).unwrap();
}

fn names(remote: &Path) -> String {
    git(remote, &["ls-tree", "-r", "--name-only", "pages"])
}

#[test]
fn a_site_is_one_commit_and_the_runs_before_it_stay() {
    let remote_place = Place::new();
    let remote = bare(&remote_place);
    let url = remote.to_str().unwrap();
    let (first, second) = (Place::new(), Place::new());
    site_of(&first, "20260101-000000-0001", "a", Outcome::Passed);
    site_of(&second, "20260102-000000-0002", "b", failed());

    let published = publish(&first.site(), url, "pages", first.path()).unwrap();
    assert!(published.new);
    assert_eq!(published.runs, 1);
    let published = publish(&second.site(), url, "pages", second.path()).unwrap();
    assert_eq!(published.runs, 2);
    let again = publish(&second.site(), url, "pages", second.path()).unwrap();
    assert!(!again.new, "nothing changed, so nothing is committed");

    assert_eq!(git(&remote, &["rev-list", "--count", "pages"]).trim(), "2");
    let names = names(&remote);
    for file in [
        "index.html",
        ".nojekyll",
        "runs/20260101-000000-0001/index.html",
        "runs/20260101-000000-0001/stage-1.html",
        "runs/20260102-000000-0002/index.html",
        "badges/smoke.svg",
    ] {
        assert!(names.lines().any(|name| name == file), "{file} is missing:\n{names}");
    }
    let index = git(&remote, &["show", "pages:index.html"]);
    assert!(index.contains("20260101-000000-0001") && index.contains("20260102-000000-0002"));
    assert!(index.contains("new failure"), "the overview is made from both");
}

#[test]
fn files_on_the_branch_that_are_not_the_sites_stay() {
    let place = Place::new();
    let remote = bare(&place);
    let work = place.path().join("work");
    git(place.path(), &["clone", "--quiet", remote.to_str().unwrap(), work.to_str().unwrap()]);
    fs::write(work.join("CNAME"), "kiln.example\n").unwrap();
    git(&work, &["checkout", "--quiet", "-b", "pages"]);
    git(&work, &["add", "CNAME"]);
    let identity = ["-c", "user.name=a", "-c", "user.email=a@b"];
    git(&work, &[&identity[..], &["commit", "--quiet", "-m", "x"]].concat());
    git(&work, &["push", "--quiet", "origin", "pages"]);
    site_of(&place, "20260101-000000-0001", "a", Outcome::Passed);
    // By the remote's name, from a checkout whose tree, index and branch must not notice.
    fs::write(work.join("edited"), "mine").unwrap();
    git(&work, &["add", "edited"]);
    let before = git(&work, &["status", "--porcelain=v2", "--branch"]);
    publish(&place.site(), "origin", "pages", &work).unwrap();
    assert_eq!(git(&work, &["status", "--porcelain=v2", "--branch"]), before);
    let names = names(&remote);
    assert!(names.contains("CNAME") && names.contains("index.html"), "{names}");
}

#[test]
fn somebody_who_pushes_first_loses_nothing() {
    let remote_place = Place::new();
    let remote = bare(&remote_place);
    let (first, second) = (Place::new(), Place::new());
    site_of(&first, "20260101-000000-0001", "a", Outcome::Passed);
    site_of(&second, "20260102-000000-0002", "b", Outcome::Passed);
    publish(&first.site(), remote.to_str().unwrap(), "pages", first.path()).unwrap();
    let rival = git(&remote, &["rev-parse", "pages"]);
    git(&remote, &["update-ref", "refs/kiln/rival", rival.trim()]);
    git(&remote, &["update-ref", "-d", "refs/heads/pages"]);
    // The branch appears after the second publisher looked: its first push meets it and is refused.
    let hook = remote.join("hooks/pre-receive");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    let script = "#!/bin/sh\nunset GIT_QUARANTINE_PATH\nif git rev-parse -q --verify refs/kiln/rival >/dev/null; then\n  git update-ref refs/heads/pages refs/kiln/rival && git update-ref -d refs/kiln/rival\nfi\n";
    fs::write(&hook, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&hook, mode).unwrap();
    let published =
        publish(&second.site(), remote.to_str().unwrap(), "pages", second.path()).unwrap();
    assert_eq!(published.runs, 2);
    assert_eq!(git(&remote, &["rev-parse", "pages~1"]), rival, "on top of theirs");
}

#[test]
fn what_cannot_be_published_is_said_with_its_reason() {
    let place = Place::new();
    let remote = bare(&place);
    let url = remote.to_str().unwrap();
    let error = publish(&place.site(), url, "pages", place.path()).unwrap_err();
    assert!(matches!(error, HistoryError::NoSite { .. }), "{error}");
    site_of(&place, "20260101-000000-0001", "a", Outcome::Passed);
    let error = publish(&place.site(), url, "a..b", place.path()).unwrap_err();
    assert!(matches!(error, HistoryError::Branch { .. }), "{error}");
    let error = publish(&place.site(), "/no/such/place.git", "pages", place.path()).unwrap_err();
    assert!(error.to_string().contains("/no/such/place.git"), "{error}");
    let error = publish(&place.site(), "--upload-pack=x", "pages", place.path()).unwrap_err();
    assert!(matches!(error, HistoryError::Git { .. }), "{error}");
}
