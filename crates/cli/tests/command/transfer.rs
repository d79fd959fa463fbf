//! `kiln disk import` and `export` of images, `send` and `receive`: disks from and to other places.

use std::fs::File;
use std::process::{Command, Stdio};

use crate::kiln::Kiln;

const MIB: usize = 1 << 20;

/// Bytes with zeros among them.
fn content(seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; 6 * MIB];
    for (at, len) in [(0, 70_000), (MIB, 4096), (3 * MIB - 100, 900_000)] {
        for (n, byte) in (0_u32..).zip(&mut bytes[at..at + len]) {
            *byte = (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0] ^ seed;
        }
    }
    bytes
}

fn qemu(kiln: &Kiln, program: &str, arguments: &[&str]) {
    let ended = Command::new(program)
        .args(arguments)
        .current_dir(kiln.folder())
        .output()
        .expect("qemu-img is installed (package qemu-utils)");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{program} {arguments:?}: {said}");
}

fn do_all(kiln: &Kiln, commands: &[&str]) {
    for line in commands {
        let words: Vec<&str> = line.split(' ').collect();
        kiln.run(&words).exits(0);
    }
}

#[test]
fn an_image_comes_in_and_goes_out_as_qemu_knows_it() {
    let kiln = Kiln::new();
    kiln.write("raw.img", content(0));
    qemu(&kiln, "qemu-img", &["convert", "-c", "-O", "qcow2", "raw.img", "in.qcow2"]);
    // What it is decides, not what it is called.
    std::fs::rename(kiln.folder().join("in.qcow2"), kiln.folder().join("in.bin")).unwrap();
    let imported = kiln.run(&["disk", "import", "in.bin", "base"]).exits(0).stdout;
    assert!(imported.starts_with("imported base, 6M"), "{imported}");
    kiln.run(&["disk", "verify", "base", "raw.img"]).exits(0);
    for arguments in [
        vec!["disk", "export", "base", "out.qcow2"],
        vec!["disk", "export", "base", "out.qcow2", "--compress", "zstd"],
        vec!["disk", "export", "base", "out.qcow2", "--compress", "deflate"],
    ] {
        kiln.run(&arguments).exits(0);
        qemu(&kiln, "qemu-img", &["check", "-f", "qcow2", "out.qcow2"]);
        qemu(&kiln, "qemu-img", &["compare", "-F", "qcow2", "-f", "raw", "raw.img", "out.qcow2"]);
    }
    // The image itself is a disk's bytes as well, if somebody says so.
    do_all(&kiln, &["disk import in.bin itself --from-format raw", "disk verify itself in.bin"]);
    kiln.run(&["disk", "import", "raw.img", "no", "--from-format", "qcow2"])
        .exits(2)
        .complains(&["raw.img is not a qcow2 image"]);
    let raw = ["disk", "export", "base", "out.img", "--compress", "zstd"];
    kiln.run(&raw).exits(2).complains(&["only a qcow2 image in a file can be compressed"]);
    kiln.run(&["disk", "own", "--leave"]).exits(0);
}

#[test]
fn an_image_goes_through_a_pipe() {
    let kiln = Kiln::new();
    kiln.write("raw.img", content(1));
    do_all(&kiln, &["disk import raw.img base"]);
    for (format, name) in [("raw", "out.img"), ("qcow2", "out.qcow2")] {
        let mut sender = kiln
            .command(&["disk", "export", "base", "-", "--to-format", format])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut from = sender.stdout.take().unwrap();
        let mut to = File::create(kiln.folder().join(name)).unwrap();
        std::io::copy(&mut from, &mut to).unwrap();
        assert!(sender.wait().unwrap().success());
        qemu(&kiln, "qemu-img", &["compare", "-f", "raw", "-F", format, "raw.img", name]);
    }
    qemu(&kiln, "qemu-img", &["check", "-f", "qcow2", "out.qcow2"]);
    kiln.run(&["disk", "own", "--leave"]).exits(0);
}

#[test]
fn a_backing_file_is_read_where_it_may_be() {
    let kiln = Kiln::new();
    kiln.write("images/base.img", content(2));
    kiln.write("secret", vec![b's'; MIB]);
    let create = |backing: &str, name: &str| {
        let words = ["create", "-f", "qcow2", "-u", "-b", backing, "-F", "raw", name, "6M"];
        qemu(&kiln, "qemu-img", &words);
    };
    create("base.img", "images/over.qcow2");
    create("../secret", "images/thief.qcow2");
    qemu(&kiln, "qemu-io", &["-f", "qcow2", "-c", "write -P 9 5M 64k", "images/over.qcow2"]);
    qemu(&kiln, "qemu-img", &["convert", "-O", "raw", "images/over.qcow2", "over.img"]);
    do_all(&kiln, &["disk import images/over.qcow2 over", "disk verify over over.img"]);
    let import = ["disk", "import", "images/thief.qcow2", "thief"];
    kiln.run(&import).exits(2).complains(&["\"../secret\"".trim_matches('"'), "--backing any"]);
    kiln.run(&["disk", "import", "images/over.qcow2", "no", "--backing", "no"])
        .exits(2)
        .complains(&["backing files are not to be opened"]);
    kiln.run(&["disk", "import", "images/thief.qcow2", "thief", "--backing", "any"]).exits(0);
    let listed = kiln.run(&["disk", "ls"]).exits(0).stdout;
    assert!(!listed.contains("no "), "{listed}");
    kiln.run(&["disk", "own", "--leave"]).exits(0);
}

#[test]
fn a_snapshot_inside_an_image_becomes_a_disk() {
    let kiln = Kiln::new();
    kiln.write("before.img", content(3));
    qemu(&kiln, "qemu-img", &["convert", "-O", "qcow2", "before.img", "machine.qcow2"]);
    qemu(&kiln, "qemu-img", &["snapshot", "-c", "before", "machine.qcow2"]);
    qemu(&kiln, "qemu-io", &["-f", "qcow2", "-c", "write -P 1 0 1M", "machine.qcow2"]);
    do_all(
        &kiln,
        &["disk import machine.qcow2 old --snapshot before", "disk verify old before.img"],
    );
    kiln.run(&["disk", "import", "machine.qcow2", "no", "--snapshot", "after"])
        .exits(2)
        .complains(&["has no snapshot \"after\""]);
    kiln.run(&["disk", "own", "--leave"]).exits(0);
}

#[test]
fn snapshots_are_sent_whole_then_as_what_changed_through_a_pipe_and_in_a_file() {
    let (here, there) = (Kiln::new(), Kiln::new());
    here.write("one.img", content(4));
    here.write("two.img", content(5));
    do_all(&here, &["disk import one.img base", "disk snap base one"]);
    let mut sender = here
        .command(&["disk", "send", "base@one", "--compress"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let from = sender.stdout.take().unwrap();
    let mut receiver = there.command(&["disk", "receive"]);
    let received = receiver.stdin(from).output().unwrap();
    let said = String::from_utf8_lossy(&received.stderr);
    assert!(received.status.success(), "{said}");
    assert!(sender.wait().unwrap().success());
    let text = String::from_utf8_lossy(&received.stdout);
    assert!(text.starts_with("received base@one, 6M"), "{text}");
    std::fs::copy(here.folder().join("one.img"), there.folder().join("one.img")).unwrap();
    do_all(&there, &["disk verify base@one one.img", "disk verify base one.img"]);
    // What changed since, in a file, and only onto what it changed from.
    do_all(&here, &["disk resize base 7M", "disk snap base two"]);
    let output = there.folder().join("changes");
    let output = output.display().to_string();
    let words = ["disk", "send", "base@two", "--from", "base@one", "--output", &output];
    assert_eq!(here.run(&words).exits(0).stdout.trim(), output);
    there
        .run(&["disk", "receive", "other", "--input", "changes"])
        .exits(2)
        .complains(&["no disk \"other\""]);
    do_all(&there, &["disk create other --size 7M", "disk snap other one"]);
    there
        .run(&["disk", "receive", "other", "--input", "changes"])
        .exits(2)
        .complains(&["what changed since \"one\" of disk \"base\""]);
    do_all(&there, &["disk receive --input changes", "disk verify"]);
    let stat = there.run(&["disk", "stat", "base", "--format", "json"]).exits(0).json();
    assert_eq!(stat["size"], 7 * MIB);
    there.run(&["disk", "receive", "--input", "one.img"]).exits(2).complains(&["not a stream"]);
    for kiln in [&here, &there] {
        kiln.run(&["disk", "own", "--leave"]).exits(0);
    }
}

#[test]
fn a_stream_that_was_cut_off_goes_on_with_its_token() {
    let (here, there) = (Kiln::new(), Kiln::new());
    here.write("one.img", content(6));
    do_all(&here, &["disk import one.img base", "disk snap base one"]);
    let stream = there.folder().join("stream");
    let stream = stream.display().to_string();
    here.run(&["disk", "send", "base@one", "--output", &stream]).exits(0);
    let bytes = std::fs::read(&stream).unwrap();
    there.write("part", &bytes[..bytes.len() / 2]);
    let ended = there.run(&["disk", "receive", "--input", "part"]);
    let ended = ended.exits(103).complains(&["was received up to byte", "--resume"]);
    let listed = there.run(&["disk", "receive", "--unfinished", "--format", "json"]).exits(0);
    let listed = listed.json();
    assert_eq!(listed[0]["of"], "base@one");
    let token = listed[0]["token"].as_str().unwrap();
    assert!(ended.stderr.contains(token), "{}", ended.stderr);
    here.run(&["disk", "send", "base@one", "--resume", token, "--output", &stream]).exits(0);
    assert!(std::fs::read(&stream).unwrap().len() < bytes.len());
    std::fs::copy(here.folder().join("one.img"), there.folder().join("one.img")).unwrap();
    do_all(&there, &["disk receive --input stream", "disk verify base@one one.img", "disk verify"]);
    assert_eq!(
        there.run(&["disk", "receive", "--unfinished", "--format", "json"]).exits(0).json(),
        serde_json::json!([])
    );
    here.run(&["disk", "send", "base@one", "--resume", "x"])
        .exits(2)
        .complains(&["is not a token"]);
    for kiln in [&here, &there] {
        kiln.run(&["disk", "own", "--leave"]).exits(0);
    }
}
