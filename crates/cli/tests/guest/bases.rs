//! Guests with something below what their manifests name singly: archives, container images, packages, files by pattern.

use std::path::Path;
use std::process::Command;

use crate::room::Room;

/// Something of everything, and a program of this host over it.
const SCENARIO: &str = r#"
name = "layered"
[guest]
include = ["base"]
bases = [{ source = "rootfs.tar.gz" }, { source = "saved.tar", image = "tool:1" }]
packages = ["?debianutils"]
host_files = ["?/usr/lib/os-releas[e]"]
exclude = ["/usr/share/doc", "/usr/share/man", "/usr/share/locale", "/srv/excluded"]
[vm]
memory = "256M"
boot_timeout = "4m"
[[stages]]
name = "looks"
run = '''
set -e
grep '^overlay / ' /proc/mounts
test "$(cat /srv/name)" = layer
test "$(stat -c %u:%g:%a /srv/own)" = 7:8:640
test ! -e /srv/gone
test ! -e /srv/excluded
test $(wc -l </srv/large) = 100000
test "$(sort -u /srv/large)" = "in an archive"
bash -c 'echo over the base'
'''
"#;

/// What this host has besides.
const PACKAGES: &str = r#"
[[stages]]
name = "packages"
run = "command -v run-parts && grep -q ^ID= /usr/lib/os-release"
"#;

#[test]
fn a_guest_lives_on_archives_and_packages_of_which_nothing_was_copied() {
    let room = Room::new();
    let tar = |arguments: &[&str]| {
        let status = Command::new("tar").args(arguments).current_dir(room.path()).status();
        assert!(status.expect("tar is everywhere").success());
    };
    for folder in ["lower/srv", "upper/srv"] {
        std::fs::create_dir_all(room.path().join(folder)).unwrap();
    }
    room.write("lower/srv/name", "archive\n");
    room.write("lower/srv/own", "whose\n");
    room.write("lower/srv/gone", "");
    room.write("lower/srv/excluded", "");
    room.write("lower/srv/large", &"in an archive\n".repeat(100_000));
    room.write("upper/srv/name", "layer\n");
    room.write("upper/srv/.wh.gone", "");
    let manifest = r#"[{"RepoTags": ["tool:1"], "Layers": ["layer.tar"]}, {"RepoTags": ["other:1"], "Layers": []}]"#;
    room.write("manifest.json", manifest);
    let owned = ["--owner=7", "--group=8", "--mode=u=rw,g=r,o="];
    tar(&[
        &["-C", "lower", "--no-recursion", "-czf", "rootfs.tar.gz"],
        &owned[..],
        &["srv/name", "srv/own", "srv/gone", "srv/excluded", "srv/large"],
    ]
    .concat());
    tar(&["-C", "upper", "-cf", "layer.tar", "srv/name", "srv/.wh.gone"]);
    tar(&["-cf", "saved.tar", "manifest.json", "layer.tar"]);
    let has_packages = Path::new("/var/lib/dpkg/info/debianutils.list").exists();
    let stages = if has_packages { PACKAGES } else { "" };
    room.write("layered.toml", &format!("{SCENARIO}{stages}"));
    room.run(&["run", "layered.toml", "--root", "disk"])
        .exits(0)
        .complains(&["the root is a disk of", "none of which is written anywhere"]);
    room.nothing_is_left();

    // The same as an initramfs, found by what it holds.
    let built = room.run(&["image", "build", "layered.toml"]).exits(0).stdout;
    let listed = room.run(&["image", "inspect", built.trim()]).exits(0).stdout;
    assert!(listed.contains("srv/large") && !listed.contains("srv/gone"), "{listed}");
    let text = std::fs::read_to_string(room.path().join("layered.toml")).unwrap();
    room.write("layered.toml", &text.replace("tool:1", "tool:2"));
    room.run(&["run", "layered.toml"]).exits(101).complains(&[
        "saved.tar",
        "(tool:1, other:1)",
        "name one of them",
    ]);
}
