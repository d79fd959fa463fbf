//! Disks of tar archives and of the layers of container images.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::process::Command;

use kiln_block::{BlockDevice as _, ByteOffset, ReadOnly};
use kiln_image::archive::Stretch;
use kiln_image::ext2::{Ext2Error, Options, Plan, Tree};
use proptest::prelude::*;

use super::reader::{self, File};
use super::{check, image};

type Disk = BTreeMap<Vec<u8>, File>;

fn disk(tree: Tree) -> Disk {
    let plan = Plan::new(tree, &Options::default()).unwrap();
    reader::read(&ReadOnly(plan))
}

fn names(disk: &Disk) -> Vec<String> {
    disk.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

struct Member<'m> {
    path: &'m str,
    kind: tar::EntryType,
    bytes: &'m [u8],
    link: &'m str,
}

fn file<'m>(path: &'m str, bytes: &'m str) -> Member<'m> {
    Member { path, kind: tar::EntryType::Regular, bytes: bytes.as_bytes(), link: "" }
}

fn link<'m>(path: &'m str, kind: tar::EntryType, link: &'m str) -> Member<'m> {
    Member { path, kind, bytes: b"", link }
}

fn folder(path: &str) -> Member<'_> {
    Member { path, kind: tar::EntryType::Directory, bytes: b"", link: "" }
}

/// Writes headers by hand, for a builder would not write some of them.
fn tar(members: &[Member<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for member in members {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..member.path.len()].copy_from_slice(member.path.as_bytes());
        header.set_entry_type(member.kind);
        header.set_mode(if member.kind.is_dir() { 0o755 } else { 0o640 });
        header.set_uid(70_000);
        header.set_gid(5);
        header.set_mtime(1_700_000_000);
        header.set_size(member.bytes.len() as u64);
        if !member.link.is_empty() {
            header.set_link_name_literal(member.link).unwrap();
        }
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(member.bytes);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Adds an archive, which has to stay for as long as the disk is read.
fn add(tree: &mut Tree, bytes: &[u8], layer: bool) -> Result<tempfile::NamedTempFile, Ext2Error> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    tree.add_tar(&Stretch::open(file.path()).unwrap(), layer)?;
    Ok(file)
}

#[test]
fn an_archive_becomes_a_disk_with_owners_links_and_times() {
    let bytes = tar(&[
        folder("./"),
        folder("./etc/"),
        file("./etc/name", "kiln\n"),
        link("./etc/again", tar::EntryType::Link, "./etc/name"),
        link("./sh", tar::EntryType::Symlink, "bin/dash"),
        file("deep/without/folders", "x"),
    ]);
    let mut tree = Tree::new();
    let _archive = add(&mut tree, &bytes, false).unwrap();
    let disk = disk(tree);
    let name = &disk[&b"/etc/name"[..]];
    assert_eq!(name.content, b"kiln\n");
    assert_eq!((name.uid, name.gid, name.mode, name.links), (70_000, 5, 0o100_640, 2));
    assert_eq!(name.modified, (1_700_000_000, 0));
    assert_eq!(disk[&b"/etc/again"[..]].inode, name.inode);
    assert_eq!(disk[&b"/sh"[..]].content, b"bin/dash");
    assert_eq!(disk[&b"/deep/without/folders"[..]].content, b"x");
}

#[test]
fn a_layer_takes_away_what_lies_below_and_keeps_its_own() {
    let lower =
        tar(&[file("a/gone", "1"), file("a/kept", "2"), file("b/old", "3"), file("c", "file")]);
    let upper = tar(&[
        file("a/.wh.gone", ""),
        file("b/new", "4"),
        file("b/.wh..wh..opq", ""),
        file("c/below", "5"),
    ]);
    let mut tree = Tree::new();
    let _lower = add(&mut tree, &lower, true).unwrap();
    let _upper = add(&mut tree, &upper, true).unwrap();
    let expected = ["", "/a", "/a/kept", "/b", "/b/new", "/c", "/c/below", "/lost+found"];
    assert_eq!(names(&disk(tree)), expected);
}

#[test]
fn a_path_through_a_link_lands_where_the_link_leads_within_the_disk() {
    let bytes = tar(&[
        folder("usr/bin"),
        link("bin", tar::EntryType::Symlink, "usr/bin"),
        link("up", tar::EntryType::Symlink, "/../../../etc"),
        file("bin/tool", "tool"),
        file("up/passwd", "guest"),
    ]);
    let mut tree = Tree::new();
    let _archive = add(&mut tree, &bytes, false).unwrap();
    let disk = disk(tree);
    assert_eq!(disk[&b"/usr/bin/tool"[..]].content, b"tool");
    assert_eq!(disk[&b"/etc/passwd"[..]].content, b"guest");
}

#[test]
fn what_leads_out_or_in_circles_or_nowhere_is_refused_by_name() {
    let circle = [
        link("a", tar::EntryType::Symlink, "b"),
        link("b", tar::EntryType::Symlink, "a"),
        file("a/x", ""),
    ];
    for (bytes, complaint) in [
        (tar(&[file("../out", "x")]), "leads out"),
        (tar(&circle), "in circles"),
        (tar(&[link("x", tar::EntryType::Link, "gone")]), "\"gone\", which is not there"),
        (tar(&[link("x", tar::EntryType::Link, "../gone")]), "which is not there"),
        (tar(&[link("x", tar::EntryType::new(b'Q'), "")]), "not supported"),
        (tar(&[file("long", &"x".repeat(4000))])[..2048].to_vec(), "cut off"),
    ] {
        let error = add(&mut Tree::new(), &bytes, true).unwrap_err().to_string();
        assert!(error.contains(complaint), "{error}");
    }
}

#[test]
fn an_archive_that_changes_is_noticed_when_the_disk_is_read() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&tar(&[super::archives::file("a", "before")])).unwrap();
    let mut tree = Tree::new();
    tree.add_tar(&Stretch::open(file.path()).unwrap(), false).unwrap();
    let plan = Plan::new(tree, &Options::default()).unwrap();
    file.write_all(b"more").unwrap();
    let out = tempfile::tempfile().unwrap();
    let error = plan.write(&out).unwrap_err().to_string();
    assert!(error.contains("changed since"), "{error}");
}

#[test]
fn what_tar_packs_of_a_directory_is_the_directory() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("d")).unwrap();
    fs::write(source.path().join("d/data"), vec![3; 100_000]).unwrap();
    fs::write(source.path().join(format!("{:0>200}", "long")), b"long name").unwrap();
    fs::hard_link(source.path().join("d/data"), source.path().join("same")).unwrap();
    let sparse = fs::File::create(source.path().join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    let set = rustix::fs::setxattr(
        source.path().join("d/data"),
        "user.note",
        b"here",
        rustix::fs::XattrFlags::empty(),
    );
    let attributes = set.is_ok();
    let work = tempfile::tempdir().unwrap();
    for (options, name) in [
        (&["--format=gnu", "--sparse"][..], "plain.tar"),
        (&["--format=pax", "--xattrs", "-z"][..], "packed.tar.gz"),
    ] {
        let path = work.path().join(name);
        let packed = Command::new("tar")
            .args(options)
            .args(["-cf"])
            .arg(&path)
            .arg("-C")
            .arg(source.path())
            .arg(".")
            .status();
        assert!(packed.unwrap().success());
        let (mut from_tar, mut from_folder) = (Tree::new(), Tree::new());
        from_tar.add_tar(&Stretch::open(&path).unwrap(), false).unwrap();
        from_folder.add_directory(source.path()).unwrap();
        let plan = Plan::new(from_tar, &Options::default()).unwrap();
        let file = image(&plan, work.path());
        check(&file);
        let (a, b) = (reader::read(&ReadOnly(plan)), disk(from_folder));
        assert_eq!(names(&a), names(&b));
        for (path, file) in &a {
            assert_eq!(file.content, b[path].content, "{}", String::from_utf8_lossy(path));
            assert_eq!(file.modified.0, b[path].modified.0);
            assert_eq!((file.mode, file.uid), (b[path].mode, b[path].uid));
        }
        if attributes && name.starts_with("packed") {
            let said = super::debugfs(&file, "ea_list /d/data");
            assert!(said.contains("user.note"), "{said}");
        }
    }
}

#[test]
fn an_archive_of_rubbish_is_an_error() {
    for bytes in [&b"nothing like it"[..], &[0xff; 4096][..]] {
        assert!(add(&mut Tree::new(), bytes, false).is_err());
    }
}

/// Gives each header the sum of its bytes, which a reader asks for first.
fn seal(bytes: &mut [u8], headers: &[usize]) {
    for at in headers {
        let block = &mut bytes[*at..at + 512];
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    /// Some bytes of headers are others: that is an error, or a disk that can be read to its end.
    #[test]
    fn a_damaged_archive_is_an_error_or_a_disk(
        damage in prop::collection::vec((0_usize..6, 0_usize..512, any::<u8>()), 1..12),
        layer: bool,
    ) {
        let mut bytes = tar(&[
            folder("a"),
            file("a/b", "content"),
            link("a/c", tar::EntryType::Link, "a/b"),
            link("d", tar::EntryType::Symlink, "a"),
            file("d/.wh.b", ""),
            file("e", &"e".repeat(600)),
        ]);
        let headers = [0, 512, 1536, 2048, 2560, 3072];
        for (header, at, byte) in damage {
            bytes[headers[header] + at] = byte;
        }
        seal(&mut bytes, &headers);
        let mut tree = Tree::new();
        if let Ok(_archive) = add(&mut tree, &bytes, layer)
            && let Ok(plan) = Plan::new(tree, &Options::default())
        {
            let disk = ReadOnly(plan);
            let mut block = vec![0; 1 << 16];
            let size = disk.size().get().min(1 << 22);
            for at in (0..size).step_by(1 << 16) {
                let len = usize::try_from(size - at).unwrap().min(1 << 16);
                disk.read_at(ByteOffset::new(at), &mut block[..len]).unwrap();
            }
        }
    }
}

/// Changes the header of an archive's first member.
fn with_header(mut bytes: Vec<u8>, change: impl FnOnce(&mut tar::Header)) -> Vec<u8> {
    let mut header = tar::Header::new_old();
    header.as_mut_bytes().copy_from_slice(&bytes[..512]);
    change(&mut header);
    header.set_cksum();
    bytes[..512].copy_from_slice(header.as_bytes());
    bytes
}

#[test]
fn a_time_before_1970_survives_in_the_form_of_gnu_tar() {
    let bytes = with_header(tar(&[file("old", "")]), |header| {
        header.as_mut_bytes()[136..148].copy_from_slice(&[&[0xff; 11][..], &[0xfb]].concat());
    });
    let mut tree = Tree::new();
    let _archive = add(&mut tree, &bytes, false).unwrap();
    assert_eq!(disk(tree)[&b"/old"[..]].modified, (-5, 0));
}

#[test]
fn what_no_disk_can_say_is_refused_by_name() {
    let refused = |bytes: &[u8]| {
        let mut tree = Tree::new();
        let _archive = add(&mut tree, bytes, false).unwrap();
        Plan::new(tree, &Options::default()).unwrap_err().to_string()
    };
    let nowhere = tar(&[link("link", tar::EntryType::Symlink, "")]);
    assert_eq!(refused(&nowhere), "ext2 cannot hold /link: the link's target is no path");
    let device = |major, minor| {
        with_header(tar(&[link("device", tar::EntryType::Char, "")]), |header| {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        })
    };
    for bytes in [device(4096, 0), device(0, 1 << 20)] {
        let says = "ext2 cannot hold /device: its device's number is beyond 4095:1048575";
        assert_eq!(refused(&bytes), says);
    }
    let kind = tar::EntryType::XHeader;
    let record = Member { path: "record", kind, bytes: b"12 path=b\0c\n", link: "" };
    let named = tar(&[record, file("name", "")]);
    assert_eq!(refused(&named), "ext2 cannot hold /: a name in it has a NUL byte");
}
