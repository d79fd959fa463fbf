//! What a user who is not root makes of files, some of which are not for everybody.

use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::kiln::{Ended, ended};

/// Nobody, on every system.
const NOBODY: u32 = 65_534;

/// A place with a secret in it, and a user who may not read that.
struct User {
    folder: TempDir,
    program: File,
}

impl User {
    fn new() -> User {
        // Where everybody gets to, whatever folder for temporary files the tests are given.
        let made = tempfile::Builder::new().prefix("kiln-").tempdir_in("/tmp");
        let made = made.expect("a temporary folder");
        let folder = made.path();
        fs::create_dir(folder.join("source")).expect("a folder");
        fs::write(folder.join("source/open"), "for everybody\n").expect("a file");
        let secret = folder.join("source/secret");
        fs::write(&secret, "not for everybody\n").expect("a file");
        fs::create_dir(folder.join("home")).expect("a folder");
        for (path, mode) in [("", 0o755), ("source", 0o755), ("source/open", 0o644)] {
            fs::set_permissions(folder.join(path), Permissions::from_mode(mode)).expect("ours");
        }
        fs::set_permissions(secret, Permissions::from_mode(0o000)).expect("ours");
        if is_root() {
            chown(folder.join("home"), Some(NOBODY), Some(NOBODY)).expect("root may");
        }
        let program = File::open(env!("CARGO_BIN_EXE_kiln")).expect("it was built");
        User { folder: made, program }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `kiln` as this user, in its home.
    fn run(&self, arguments: &[&str]) -> Ended {
        // The program may lie where nobody else gets to, so it is entered by its descriptor.
        let mut command = Command::new(format!("/proc/self/fd/{}", self.program.as_raw_fd()));
        command
            .args(arguments)
            .current_dir(self.path("home"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("KILN_HOME", self.path("home/kiln"))
            .stdin(Stdio::null());
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        ended(&mut command)
    }
}

/// The tests may run as somebody who may read everything.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn an_unreadable_file_of_a_directory_is_named_with_its_cure_and_of_a_pattern_left_out() {
    let user = User::new();
    let secret = user.path("source/secret").display().to_string();
    user.run(&["image", "ext2", "../source", "--output", "out.img"]).exits(101).complains(&[
        "this user may not read",
        &secret,
        "--exclude",
    ]);
    assert!(!user.path("home/out.img").exists(), "nothing is half written");
    user.run(&["image", "ext2", "../source", "--exclude", "/secret", "--output", "out.img"])
        .exits(0);
    let pattern = user.path("source/*").display().to_string();
    let arguments = ["image", "ext2", "--host-files", &pattern, "--output", "listed.img"];
    user.run(&arguments)
        .exits(0)
        .complains(&["1 file that this user may not read left out", &secret]);
    user.run(&["image", "verify", "out.img", "listed.img"]).exits(0);
}

#[test]
fn an_appliance_is_built_without_what_its_user_may_not_read() {
    let user = User::new();
    let pattern = user.path("source/*").display().to_string();
    fs::create_dir(user.path("supermin.d")).expect("a folder");
    fs::write(user.path("supermin.d/hostfiles"), format!("{pattern}\n")).expect("a file");
    let build = ["supermin", "--build", "-v", "-f", "chroot", "../supermin.d", "-o", "out"];
    user.run(&build).exits(0).complains(&["1 files that this user may not read are left out"]);
    let inside = |name: &str| {
        let path = user.path("source").join(name);
        user.path("home/out").join(path.strip_prefix("/").expect("it is absolute"))
    };
    assert!(inside("open").exists() && !inside("secret").exists());
    let hidden = user.path("supermin.d/packages");
    fs::write(&hidden, "bash\n").expect("a file");
    fs::set_permissions(&hidden, Permissions::from_mode(0o000)).expect("ours");
    user.run(&build).exits(101).complains(&[
        "cannot open",
        "supermin.d/packages",
        "Permission denied",
    ]);
}
