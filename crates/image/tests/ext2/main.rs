//! The ext2 writer, held to other readers: e2fsck, debugfs, and the kernel where it may mount.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod archives;
mod debugged;
mod everything;
mod extents;
mod extremes;
mod faithful;
mod listed;
mod reader;
mod round_trip;
mod virtual_disk;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_image::ext2::{Options, Plan, Tree};

/// Plans a disk of one directory.
fn plan(source: &Path, options: &Options) -> Plan {
    let mut tree = Tree::new();
    tree.add_directory(source).unwrap();
    Plan::new(tree, options).unwrap()
}

/// Writes a plan and has it checked.
fn image(plan: &Plan, folder: &Path) -> PathBuf {
    let path = folder.join("image");
    let written = plan.write(&File::create(&path).unwrap()).unwrap();
    assert_eq!(written.size.get(), path.metadata().unwrap().len());
    check(&path);
    path
}

/// A tool of e2fsprogs; it is often outside of an ordinary user's path.
fn tool(name: &str) -> Command {
    let places = ["/usr/sbin", "/sbin", "/usr/bin"];
    let found = places.iter().map(|place| Path::new(place).join(name)).find(|path| path.is_file());
    Command::new(found.unwrap_or_else(|| panic!("{name} is needed: run script/bootstrap")))
}

/// e2fsck has nothing to say. Its status alone would hide wrong counts in the superblock.
fn check(image: &Path) {
    check_from(image, &[]);
}

/// The same, for which e2fsck is told where to begin.
fn check_from(image: &Path, place: &[&str]) {
    let output = tool("e2fsck").arg("-fn").args(place).arg(image).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints: Vec<&str> = said
        .lines()
        .filter(|line| !line.starts_with("Pass ") && !line.contains(" files ("))
        .collect();
    let errors = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = errors.lines().filter(|line| !line.starts_with("e2fsck 1.")).collect();
    assert!(
        output.status.success() && complaints.is_empty() && errors.is_empty(),
        "e2fsck of {}: {:?}\n{said}\n{errors:?}",
        image.display(),
        output.status
    );
}

/// What debugfs answers.
fn debugfs(image: &Path, request: &str) -> String {
    let output = tool("debugfs").arg("-R").arg(request).arg(image).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether the tests that take minutes and gigabytes are wanted.
fn long() -> bool {
    std::env::var_os("KILN_LONG").is_some()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
