//! `kiln supermin`: appliances of host files and packages, as directories; `tests/guest/appliance.rs` boots one.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::kiln::{Kiln, ended};

const BUILD: [&str; 9] =
    ["supermin", "--build", "-f", "chroot", "--if-newer", "supermin.d", "-o", "out", "--lock"];

/// Whether a build made something.
fn built(kiln: &Kiln) -> bool {
    let mut command = kiln.command(&BUILD);
    command.args(["lock", "--format", "json"]);
    ended(&mut command).exits(0).json()["built"].as_bool().expect("it says so")
}

#[test]
fn an_output_is_built_again_when_anything_it_was_made_of_has_changed() {
    let kiln = Kiln::new();
    let host = |name: &str| kiln.folder().join("host").join(name);
    kiln.write("host/one.conf", "first\n");
    let pattern = format!("{}/*.conf\n", kiln.folder().join("host").display());
    kiln.write("supermin.d/hostfiles", &pattern);
    kiln.write("base/etc/motd", "hello\n");
    let tar = Command::new("tar")
        .args(["-C", "base", "-czf", "supermin.d/base.tar.gz", "etc"])
        .current_dir(kiln.folder())
        .status();
    assert!(tar.expect("tar is everywhere").success());
    assert!(built(&kiln), "there was nothing");
    let out = |name: &str| {
        let path = kiln.folder().join("out").join(name.strip_prefix('/').unwrap_or(name));
        std::fs::read_to_string(path).expect("it was built")
    };
    let one = host("one.conf").display().to_string();
    assert_eq!((out("etc/motd").as_str(), out(&one).as_str()), ("hello\n", "first\n"));
    assert!(!built(&kiln), "nothing has changed");
    kiln.write("host/one.conf", "FIRST\n");
    assert!(built(&kiln), "a host file was edited");
    assert_eq!(out(&one), "FIRST\n");
    kiln.write("host/two.conf", "second\n");
    assert!(built(&kiln), "the wildcard matches one more");
    assert_eq!(out(&host("two.conf").display().to_string()), "second\n");
    kiln.write("supermin.d/hostfiles", format!("{pattern}# {pattern}").replace("# ", ""));
    assert!(built(&kiln), "a file in an input directory was edited");
    std::fs::remove_file(kiln.folder().join("out/.kiln-supermin")).expect("it was there");
    assert!(built(&kiln), "nothing says what it was made of");
    assert!(!built(&kiln));
    let left = std::fs::read_dir(kiln.folder()).expect("the folder is there").flatten();
    let left: Vec<_> = left
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(left.is_empty(), "nothing is left beside the output: {left:?}");
}

#[test]
fn a_program_called_supermin_is_this_command() {
    let kiln = Kiln::new();
    symlink(env!("CARGO_BIN_EXE_kiln"), kiln.folder().join("supermin")).expect("a link");
    kiln.write("hostfiles", "/etc/passwd\n");
    let supermin = |arguments: &[&str]| {
        let mut command = Command::new(kiln.folder().join("supermin"));
        command
            .args(arguments)
            .current_dir(kiln.folder())
            .env_clear()
            .env("KILN_HOME", kiln.home())
            .env("HOME", kiln.folder());
        ended(&mut command)
    };
    assert!(supermin(&["--version"]).exits(0).stdout.starts_with("supermin 5."));
    let drivers = supermin(&["--list-drivers"]).exits(0).stdout;
    assert!(drivers.contains("debian/dpkg\t") && drivers.contains("fedora/rpm\t"), "{drivers}");
    let arguments = ["--build", "--verbose", "--format", "chroot", "hostfiles", "-o", "out"];
    let said = supermin(&arguments).exits(0);
    assert_eq!(said.stdout, "", "progress is conversation");
    assert!(said.stderr.contains("supermin: build: visiting hostfiles type hostfiles"));
    let here = std::fs::read("/etc/passwd").expect("everybody has one");
    assert!(std::fs::read(kiln.folder().join("out/etc/passwd")).expect("it was built") == here);
}

#[test]
fn what_cannot_be_meant_is_refused_and_leaves_the_output_alone() {
    let kiln = Kiln::new();
    kiln.write("out/precious", "");
    kiln.write("cpio", "070701");
    kiln.write("packages", "no-such-package-anywhere\n");
    kiln.write("hostfiles", "/etc/passwd\n");
    let build = |more: &[&str]| {
        kiln.run(&[&["supermin", "--build", "-f", "chroot", "-o", "out"], more].concat())
    };
    kiln.run(&["supermin", "hostfiles", "-o", "out"]).exits(2).complains(&["--build"]);
    kiln.run(&["supermin", "--build", "hostfiles", "-o", "out"]).exits(2).complains(&["-f"]);
    kiln.run(&["supermin", "--names", "bash"]).exits(2).complains(&["supermin 4"]);
    build(&["--dtb", "*.dtb", "hostfiles"]).exits(2).complains(&["5.1.18"]);
    build(&[]).exits(2).complains(&["no appliance given"]);
    build(&["cpio"]).exits(2).complains(&["cannot use cpio", "make it a tar archive"]);
    build(&["gone"]).exits(2).complains(&["gone"]);
    build(&["hostfiles", "--lock", "out/lock"]).exits(2).complains(&["lies in the output"]);
    if Path::new("/var/lib/dpkg/status").exists() {
        build(&["packages"]).exits(2).complains(&["none of these packages is installed"]);
    }
    assert!(kiln.folder().join("out/precious").exists());
}

#[test]
fn an_appliance_that_travels_has_names_and_configuration() {
    let kiln = Kiln::new();
    if !Path::new("/var/lib/dpkg/status").exists() {
        return;
    }
    let arguments =
        ["supermin", "--prepare", "base-files", "dpkg", "--use-installed", "-o", "supermin.d"];
    let mut command = kiln.command(&arguments);
    command.args(["--format", "json"]).env("SOURCE_DATE_EPOCH", "1700000000");
    let told = ended(&mut command).exits(0).json();
    let names = std::fs::read_to_string(kiln.folder().join("supermin.d/packages"));
    assert_eq!(names.expect("it was prepared"), "base-files\ndpkg\n");
    assert!(told["config"].as_u64() > Some(0), "{told}");
    let archive = || std::fs::read(kiln.folder().join("supermin.d/base.tar.gz")).expect("base");
    let first = archive();
    ended(&mut command).exits(0);
    assert!(first == archive(), "byte-identical");
    let listed = Command::new("tar")
        .args(["-tf", "supermin.d/base.tar.gz"])
        .current_dir(kiln.folder())
        .output()
        .expect("tar is everywhere");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.lines().any(|line| line.ends_with("etc/debian_version")), "{listed}");
}
