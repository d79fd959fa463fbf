//! Layers that a kernel writes and reads.

use std::fs;
use std::path::Path;

use crate::room::Room;

/// What this host's kernel may lack, the guest's has: `ublk_drv`, with our server beside it in the guest.
#[test]
fn a_kernel_reads_overlaybd_images_over_ublk_and_writes_layers_of_them() {
    let room = Room::new();
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let text = fs::read_to_string(scenarios.join("overlaybd-ublk.toml")).unwrap();
    let text = text.replace("/usr/local/bin/kiln", env!("CARGO_BIN_EXE_kiln"));
    let data = scenarios.join("../crates");
    room.write("overlaybd-ublk.toml", &text.replace("../crates", data.to_str().unwrap()));
    let scripts = room.path().join("overlaybd-ublk");
    fs::create_dir(&scripts).unwrap();
    for script in ["elsewhere.sh", "seven-layers.sh", "one-layer.sh"] {
        fs::copy(scenarios.join("overlaybd-ublk").join(script), scripts.join(script)).unwrap();
    }
    let ended = room.run(&["run", "overlaybd-ublk.toml"]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    let outcomes = room.outcomes();
    assert_eq!(outcomes, ["elsewhere: passed", "seven-layers: passed", "one-layer: passed"]);
    room.nothing_is_left();
}

/// One entry of a tar.
enum Entry<'a> {
    Folder,
    File(&'a [u8]),
    Link(&'a str),
    HardLink(&'a str),
    Device(u32, u32),
}

fn archive(entries: &[(&str, Entry<'_>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, entry) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o751);
        header.set_uid(1234);
        header.set_gid(5678);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        let (kind, bytes, target): (_, &[u8], _) = match entry {
            Entry::Folder => (tar::EntryType::Directory, &[], None),
            Entry::File(bytes) => (tar::EntryType::Regular, bytes, None),
            Entry::Link(target) => (tar::EntryType::Symlink, &[], Some(target)),
            Entry::HardLink(target) => (tar::EntryType::Link, &[], Some(target)),
            Entry::Device(major, minor) => {
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
                (tar::EntryType::Char, &[], None)
            }
        };
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        match target {
            Some(target) => tar.append_link(&mut header, name, target).unwrap(),
            None => {
                if name.ends_with("with-attribute") {
                    let attribute = ("SCHILY.xattr.user.colour", b"blue".as_slice());
                    tar.append_pax_extensions([attribute]).unwrap();
                }
                tar.append_data(&mut header, name, bytes).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}

/// Runs debugfs of e2fsprogs, a reader that shares no code with us.
fn debugfs(image: &Path, command: &str) -> String {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut debugfs = std::process::Command::new("debugfs");
    let output = debugfs.env("PATH", path).args(["-R", command]).arg(image).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_layer_applied_to_others_holds_little_more_than_what_it_changes() {
    let room = Room::new();
    let many: Vec<(String, Vec<u8>)> =
        (0..200).map(|n| (format!("many/{n}"), vec![b'a' + n % 26; 3000])).collect();
    let mut base = vec![
        ("etc", Entry::Folder),
        ("etc/kept", Entry::File(b"kept")),
        ("etc/gone", Entry::File(b"gone")),
        ("etc/changed", Entry::File(b"as it was")),
        ("cache", Entry::Folder),
        ("cache/old", Entry::File(b"old")),
        ("run", Entry::Link("/var/run")),
        ("var", Entry::Folder),
        ("var/run", Entry::Folder),
        ("many", Entry::Folder),
    ];
    base.extend(many.iter().map(|(name, bytes)| (name.as_str(), Entry::File(bytes))));
    fs::write(room.path().join("base.tar"), archive(&base)).unwrap();
    let change = archive(&[
        ("etc/.wh.gone", Entry::File(b"")),
        ("etc/changed", Entry::File(b"as it is now")),
        ("cache/.wh..wh..opq", Entry::File(b"")),
        ("cache/new", Entry::File(b"new")),
        ("run/through-a-link", Entry::File(b"inside")),
        ("etc/with-attribute", Entry::File(b"blue")),
        ("etc/twice", Entry::HardLink("etc/kept")),
        ("etc/null", Entry::Device(1, 3)),
    ]);
    fs::write(room.path().join("change.tar"), change).unwrap();
    let run = |words: &[&str]| {
        let ended = room.run(words);
        assert_eq!(ended.code, 0, "{words:?}: {}{}", ended.stdout, ended.stderr);
        ended.stdout
    };
    run(&["layer", "apply", "base.tar", "--free", "8M", "--output", "base.obd"]);
    run(&["layer", "apply", "change.tar", "base.obd", "--output", "top.obd", "--compress", "none"]);
    run(&["layer", "verify", "base.obd", "top.obd"]);
    let told = run(&["layer", "inspect", "top.obd", "--format", "json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let data = told["data"].as_u64().unwrap();
    assert!((512..64 << 10).contains(&data), "six small changes are {data} bytes");
    let base = run(&["layer", "inspect", "base.obd", "--format", "json"]);
    let base: serde_json::Value = serde_json::from_str(&base).unwrap();
    assert_eq!(told["parent"], base["uuid"]);
    run(&["layer", "convert", "--to", "raw", "--output", "all.img", "base.obd", "top.obd"]);
    let image = room.path().join("all.img");
    let holds =
        |path: &str, content: &str| assert_eq!(debugfs(&image, &format!("cat {path}")), content);
    holds("/etc/kept", "kept");
    holds("/etc/twice", "kept");
    holds("/etc/changed", "as it is now");
    holds("/etc/gone", "");
    holds("/cache/old", "");
    holds("/cache/new", "new");
    holds("/var/run/through-a-link", "inside");
    holds("/many/7", &"h".repeat(3000));
    let stat = debugfs(&image, "stat /etc/changed");
    let wanted = ["Mode:  0751", "User:  1234", "Group:  5678", "mtime: 0x3b9aca00"];
    assert!(wanted.iter().all(|part| stat.contains(part)), "{stat}");
    assert!(debugfs(&image, "stat /etc/null").contains("Type: character"));
    assert!(debugfs(&image, "ea_get /etc/with-attribute user.colour").contains("blue"));
    let mut fsck = std::process::Command::new("/sbin/e2fsck");
    let fsck = fsck.args(["-f", "-n"]).arg(&image).output().unwrap();
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
    let names = fs::read_dir(room.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with(".kiln")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A journal would be another copy of all that changes.
#[test]
fn a_small_change_of_a_file_system_with_a_journal_makes_a_small_layer() {
    let room = Room::new();
    let tree = room.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for n in 0..200 {
        fs::write(tree.join(n.to_string()), vec![b'a' + n % 26; 3000]).unwrap();
    }
    let mut mke2fs = std::process::Command::new("/sbin/mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-b", "4096", "-d"]).arg(&tree);
    let made = mke2fs.arg(room.path().join("base.img")).arg("64M").output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let names = ["1", "60", "120", "199", "new", "newer"];
    let change = archive(&names.map(|name| (name, Entry::File(b"as it is now"))));
    fs::write(room.path().join("change.tar"), change).unwrap();
    let run = |words: &[&str]| {
        let ended = room.run(words);
        assert_eq!(ended.code, 0, "{words:?}: {}{}", ended.stdout, ended.stderr);
        ended.stdout
    };
    run(&["layer", "convert", "--to", "overlaybd", "--output", "base.obd", "base.img"]);
    run(&["layer", "apply", "change.tar", "base.obd", "--output", "top.obd", "--compress", "none"]);
    let told = run(&["layer", "inspect", "top.obd", "--format", "json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let data = told["data"].as_u64().unwrap();
    assert!((512..64 << 10).contains(&data), "six small changes are {data} bytes");
    run(&["layer", "convert", "--to", "raw", "--output", "all.img", "base.obd", "top.obd"]);
    let image = room.path().join("all.img");
    for name in names {
        assert_eq!(debugfs(&image, &format!("cat /{name}")), "as it is now", "{name}");
    }
    assert_eq!(debugfs(&image, "cat /2"), "c".repeat(3000));
    let mut fsck = std::process::Command::new("/sbin/e2fsck");
    let fsck = fsck.args(["-f", "-n"]).arg(&image).output().unwrap();
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
}
