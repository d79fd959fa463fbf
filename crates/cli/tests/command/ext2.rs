//! `kiln image ext2`: a file system from directories, archives, images and packages.

use crate::kiln::{Kiln, ended};

#[test]
fn directories_become_a_file_system_the_same_every_time() {
    let kiln = Kiln::new();
    kiln.write("base/etc/hostname", "base\n");
    kiln.write("over/etc/hostname", "over\n");
    let make = |output: &str| {
        let arguments = ["image", "ext2", "base", "over", "--output", output, "--label", "root"];
        let mut command = kiln.command(&arguments);
        command.args(["--free", "2M", "--format", "json"]).env("SOURCE_DATE_EPOCH", "1700000000");
        ended(&mut command).exits(0).json()
    };
    let (first, second) = (make("one.img"), make("two.img"));
    assert_eq!(first["entries"], 4, "root, lost+found, etc, hostname");
    assert_eq!(first["bytes"], second["bytes"]);
    let read = |name: &str| std::fs::read(kiln.folder().join(name)).expect("it was written");
    let image = read("one.img");
    assert!(image == read("two.img"), "byte-identical");
    assert_eq!(first["bytes"], image.len());
    assert_eq!(image[1080..1082], [0x53, 0xef], "the magic of ext2");
    assert_eq!(&image[1144..1148], b"root");
    let holds = |text: &[u8]| image.windows(text.len()).any(|window| window == text);
    assert!(holds(b"over\n") && !holds(b"base\n"), "the later directory wins");
    let left: Vec<_> = std::fs::read_dir(kiln.folder())
        .expect("the folder is there")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(left.is_empty(), "nothing is left beside the output: {left:?}");
}

/// A tool of e2fsprogs; it is often outside of an ordinary user's path.
fn tool(name: &str) -> std::process::Command {
    let found =
        ["/usr/sbin", "/sbin", "/usr/bin"].map(|place| std::path::Path::new(place).join(name));
    let found = found.iter().find(|path| path.is_file());
    std::process::Command::new(found.unwrap_or_else(|| panic!("{name}: run script/bootstrap")))
}

#[test]
fn extents_change_how_blocks_are_found_and_nothing_else() {
    use std::os::unix::fs::FileExt as _;
    let kiln = Kiln::new();
    kiln.write("tree/etc/hostname", "name\n");
    kiln.write("tree/large", "large ".repeat(200_000));
    for number in 0..600 {
        kiln.write(&format!("tree/many/{number:0>100}"), number.to_string());
    }
    let path = |name: &str| kiln.folder().join(name);
    std::os::unix::fs::symlink("x".repeat(100), path("tree/link")).expect("a link");
    // More runs than an inode has room for.
    let holes = std::fs::File::create(path("tree/holes")).expect("a file");
    for at in 0..400 {
        holes.write_all_at(b"data", at * 8192).expect("room");
    }
    kiln.run(&["image", "ext2", "tree", "--output", "tables.img"]).exits(0);
    kiln.run(&["image", "ext2", "tree", "--extents", "--output", "extents.img"]).exits(0);
    let output = tool("e2fsck").arg("-fn").arg(path("extents.img")).output().expect("e2fsck");
    let said = String::from_utf8_lossy(&output.stdout);
    let quiet = |line: &str| line.starts_with("Pass ") || line.contains(" files (");
    assert!(output.status.success() && said.lines().all(quiet), "{said}");
    let features = tool("dumpe2fs").arg("-h").arg(path("extents.img")).output().expect("dumpe2fs");
    let features = String::from_utf8_lossy(&features.stdout).into_owned();
    let line = features.lines().find(|line| line.starts_with("Filesystem features:"));
    let line = line.expect("it has features");
    assert!(line.contains(" extent ") && !line.contains("journal"), "{line}");
    let same = kiln.run(&["image", "diff", "tables.img", "extents.img", "--times"]).exits(0);
    assert_eq!(same.stdout, "");
    kiln.run(&["image", "verify", "tables.img", "extents.img"]).exits(0);
    let copy = path("copy").display().to_string();
    let request = format!("dump /large {copy}");
    tool("debugfs").args(["-R", &request]).arg(path("extents.img")).output().expect("debugfs");
    let read = |name: &str| std::fs::read(path(name)).expect("it is there");
    assert!(read("copy") == read("tree/large"), "another reader agrees");
}

#[test]
fn a_source_that_is_neither_directory_nor_archive_is_the_callers_slip_and_leaves_no_output() {
    let kiln = Kiln::new();
    kiln.write("file", "");
    for (source, says) in
        [("file", "is no directory, no tar archive"), ("nowhere", "there is no nowhere")]
    {
        kiln.run(&["image", "ext2", source, "--output", "out.img"]).exits(2).complains(&[says]);
    }
    assert!(!kiln.folder().join("out.img").exists());
    let mut command = kiln.command(&["image", "ext2", ".", "--output", "/nowhere/out.img"]);
    command.env("SOURCE_DATE_EPOCH", "yesterday");
    ended(&mut command).exits(2).complains(&["SOURCE_DATE_EPOCH", "yesterday"]);
}

#[test]
fn archives_and_saved_images_become_a_file_system() {
    let kiln = Kiln::new();
    kiln.write("rootfs/name", "from the archive\n");
    kiln.write("above/name", "from the layer\n");
    kiln.write("saved/manifest.json", r#"[{"RepoTags": ["tool:1"], "Layers": ["layer.tar"]}]"#);
    let tar = |arguments: &[&str]| {
        let mut command = std::process::Command::new("tar");
        let status = command.args(arguments).current_dir(kiln.folder()).status();
        assert!(status.expect("tar is everywhere").success());
    };
    tar(&["-C", "rootfs", "-czf", "rootfs.tar.gz", "."]);
    tar(&["-C", "above", "-cf", "saved/layer.tar", "name"]);
    tar(&["-C", "saved", "-cf", "saved.tar", "manifest.json", "layer.tar"]);
    let holds = |text: &str| {
        let image = std::fs::read(kiln.folder().join("out.img")).expect("it was written");
        image.windows(text.len()).any(|window| window == text.as_bytes())
    };
    kiln.run(&["image", "ext2", "rootfs.tar.gz", "--output", "out.img"]).exits(0);
    assert!(holds("from the archive\n"));
    kiln.run(&["image", "ext2", "rootfs.tar.gz", "saved.tar", "--output", "out.img"]).exits(0);
    assert!(holds("from the layer\n") && !holds("from the archive\n"));
    kiln.run(&["image", "ext2", "saved.tar", "--image", "tool:2", "--output", "out.img"])
        .exits(2)
        .complains(&["(tool:1)", "name one of them"]);
}

#[test]
fn an_unknown_package_is_the_callers_slip() {
    let kiln = Kiln::new();
    if std::path::Path::new("/var/lib/dpkg/status").exists() {
        kiln.run(&["image", "ext2", "--package", "no-such-thing", "--output", "out.img"])
            .exits(2)
            .complains(&["package no-such-thing is not installed"]);
    } else {
        kiln.run(&["image", "ext2", "--package", "bash", "--output", "out.img"])
            .complains(&["dpkg"]);
    }
    kiln.run(&["image", "ext2", "--output", "out.img"]).exits(2);
}

#[test]
fn files_programs_and_packages_lie_over_sources_and_what_is_excluded_stays_out() {
    let kiln = Kiln::new();
    let folder = kiln.folder().display().to_string();
    kiln.write("base/etc/name", "from the base\n");
    kiln.write("base/etc/unwanted", "unwanted\n");
    kiln.write("host/one.conf", "of the host\n");
    kiln.write("host/other.txt", "of another kind\n");
    let pattern = format!("{folder}/host/*.conf");
    let arguments = [
        ["image", "ext2", "base", "--host-files"].as_slice(),
        &[&pattern, "--host-files", "?/nowhere/*", "--binary", "sh", "--binary", "?no-such-thing"],
        &["--exclude", "*/unwanted", "--output", "out.img"],
    ]
    .concat();
    kiln.run(&arguments).exits(0).complains(&[
        "/nowhere/* left out: it names nothing on this host",
        "no-such-thing left out",
    ]);
    kiln.run(&["image", "verify", "out.img"]).exits(0);
    kiln.run(&["image", "ext2", "base", "--output", "base.img"]).exits(0);
    let added = kiln.run(&["image", "diff", "base.img", "out.img"]).exits(102).stdout;
    let host = format!("+ {folder}/host/one.conf\n");
    assert!(added.contains(&host) && !added.contains("other.txt"), "{added}");
    assert!(added.contains("- /etc/unwanted\n"), "{added}");
    assert!(added.lines().any(|line| line.starts_with('+') && line.ends_with("/sh")), "{added}");
    assert!(added.contains("/libc.so") || added.contains("/ld-"), "its libraries, too: {added}");
    kiln.run(&["image", "ext2", "--host-files", "etc/passwd", "--output", "out.img"])
        .exits(2)
        .complains(&["etc/passwd", "is not an absolute path"]);
    kiln.run(&["image", "ext2", "--host-files", "/nowhere/*", "--output", "out.img"])
        .exits(2)
        .complains(&["/nowhere/* names nothing on this host", "?/nowhere/*"]);
}

#[test]
fn images_are_compared_entry_by_entry_and_checked() {
    let kiln = Kiln::new();
    kiln.write("one/etc/name", "one\n");
    kiln.write("two/etc/name", "two\n");
    kiln.write("two/etc/more", "");
    for name in ["one", "two"] {
        let output = format!("{name}.img");
        kiln.run(&["image", "ext2", name, "--output", &output]).exits(0);
    }
    let found = kiln.run(&["image", "diff", "one.img", "two.img"]).exits(102);
    assert_eq!(found.stdout, "+ /etc/more\n~ /etc/name: content\n");
    assert_eq!(kiln.run(&["image", "diff", "one.img", "one.img", "--times"]).exits(0).stdout, "");
    let sound = kiln.run(&["image", "verify", "one.img", "two.img"]).exits(0);
    assert_eq!(sound.stdout, "sound one.img\nsound two.img\n");
    let path = kiln.folder().join("two.img");
    let mut bytes = std::fs::read(&path).expect("it was written");
    bytes[1036] ^= 1;
    std::fs::write(&path, bytes).expect("a file");
    let damaged = kiln.run(&["image", "verify", "one.img", "two.img"]).exits(102).stdout;
    assert!(damaged.contains("damaged two.img\n  ") && damaged.contains("superblock"), "{damaged}");
    kiln.run(&["image", "verify", "no-such-key"]).exits(2).complains(&["kiln image ls"]);
}
