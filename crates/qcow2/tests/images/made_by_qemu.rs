//! Reading what `qemu-img` and `qemu-io` made, with every option that changes the layout.

use kiln_block::testing::{Abilities, conforms};
use kiln_block::{ByteOffset, FileDevice};
use kiln_qcow2::chain::{self, Allow, Format};
use kiln_qcow2::{Image, Qcow2Error};
use std::sync::Arc;

use crate::{assert_holds, open, qemu_img, run, scattered};

const MIB: usize = 1 << 20;

#[test]
fn images_with_every_option_read_like_the_disks_they_were_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = scattered(5 * MIB + 512 * 7, 1);
    std::fs::write(folder.path().join("raw"), &bytes).unwrap();
    let mut rows: Vec<String> = Vec::new();
    for cluster in ["512", "1k", "4k", "16k", "64k", "512k", "2M"] {
        rows.push(format!("compat=1.1,cluster_size={cluster}"));
    }
    for cluster in ["16k", "64k", "2M"] {
        rows.push(format!("extended_l2=on,cluster_size={cluster}"));
    }
    for other in [
        "compat=0.10",
        "compat=0.10,cluster_size=512",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "refcount_bits=64",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
    ] {
        rows.push(other.to_owned());
    }
    let mut all: Vec<(Vec<&str>, String)> = Vec::new();
    for row in &rows {
        all.push((vec![], row.clone()));
        if !row.contains("prealloc") && !row.contains("refcount_bits=1") {
            all.push((vec!["-c"], row.clone()));
        }
    }
    for cluster in ["4k", "64k", "2M"] {
        all.push((vec!["-c"], format!("compression_type=zstd,cluster_size={cluster}")));
    }
    all.push((vec!["-c"], "compression_type=zstd,extended_l2=on".to_owned()));
    for (flags, options) in &all {
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
        args.extend(flags);
        args.extend(["raw", "image.qcow2"]);
        qemu_img(folder.path(), &args);
        let disk = open(&folder.path().join("image.qcow2"));
        assert_holds(&*disk, &bytes, &format!("{options} {flags:?}"));
        conforms(&*disk, Abilities { granularity: 1, writable: false });
    }
}

#[test]
fn what_was_written_discarded_and_zeroed_afterwards_is_read_like_qemu_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    for options in ["cluster_size=64k", "cluster_size=64k,extended_l2=on", "cluster_size=4k"] {
        std::fs::write(folder.path().join("raw"), scattered(4 * MIB, 2)).unwrap();
        qemu_img(
            folder.path(),
            &["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "raw", "image.qcow2"],
        );
        let steps = [
            "write -P 0x31 4k 2k",
            "write -P 0x32 70000 100",
            "write -z 128k 64k",
            "write -z -u 256k 4k",
            "discard 512k 256k",
            "write -P 0x33 600k 3k",
            "write -z 1M 1000",
            "write -P 0x34 3M 512k",
            "discard 3200k 128k",
            "write -z 3300k 5k",
        ];
        let mut args = vec!["-f", "qcow2"];
        for step in &steps {
            args.extend(["-c", step]);
        }
        args.push("image.qcow2");
        run("qemu-io", &args, folder.path());
        qemu_img(folder.path(), &["convert", "-f", "qcow2", "-O", "raw", "image.qcow2", "raw"]);
        let bytes = std::fs::read(folder.path().join("raw")).unwrap();
        assert_holds(&*open(&folder.path().join("image.qcow2")), &bytes, options);
    }
}

#[test]
fn a_chain_of_images_reads_as_one_disk() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("base.raw"), scattered(3 * MIB, 3)).unwrap();
    std::fs::create_dir(at.join("sub")).unwrap();
    let create = |backing: &str, format: &str, options: &str, name: &str, size: &str| {
        let args =
            ["create", "-f", "qcow2", "-b", backing, "-F", format, "-o", options, name, size];
        qemu_img(at, &args);
    };
    // Each is larger than what it stands on; the paths count from the image's folder.
    create("../base.raw", "raw", "cluster_size=4k", "sub/one.qcow2", "4M");
    create("sub/one.qcow2", "qcow2", "extended_l2=on", "two.qcow2", "6M");
    create("two.qcow2", "qcow2", "compat=0.10", "three.qcow2", "5M");
    let write = |steps: &[&str], name: &str| {
        let mut args = vec!["-f", "qcow2"];
        steps.iter().for_each(|step| args.extend(["-c", step]));
        args.push(name);
        run("qemu-io", &args, at);
    };
    write(&["write -P 1 0 10k", "write -P 2 3500k 20k", "write -z 100k 64k"], "sub/one.qcow2");
    write(&["write -P 3 4k 2k", "write -P 4 5M 1k", "discard 1M 200k"], "two.qcow2");
    write(&["write -P 5 4M 300k", "write -P 6 64k 1k"], "three.qcow2");
    qemu_img(at, &["convert", "-f", "qcow2", "-O", "raw", "three.qcow2", "expected"]);
    let bytes = std::fs::read(at.join("expected")).unwrap();
    let links = chain::find(&at.join("three.qcow2"), None, Allow::Beside).unwrap();
    let formats: Vec<Format> = links.iter().map(|link| link.format).collect();
    assert_eq!(formats, [Format::Qcow2, Format::Qcow2, Format::Qcow2, Format::Raw]);
    let disk = chain::assemble(links, None, &Arc::default()).unwrap();
    assert_holds(&*disk, &bytes, "chain");
}

#[test]
fn snapshots_inside_an_image_are_listed_and_read_by_name_and_by_id() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let path = at.join("image.qcow2");
    qemu_img(at, &["create", "-f", "qcow2", "image.qcow2", "2M"]);
    let write = |step: &str| run("qemu-io", &["-f", "qcow2", "-c", step, "image.qcow2"], at);
    let mut states = Vec::new();
    for (pattern, name) in [(1, "first"), (2, "with space"), (3, "third")] {
        write(&format!("write -P {pattern} {}k 300k", pattern * 200));
        qemu_img(at, &["snapshot", "-c", name, "image.qcow2"]);
        qemu_img(at, &["convert", "-f", "qcow2", "-O", "raw", "image.qcow2", "raw"]);
        states.push((name, std::fs::read(at.join("raw")).unwrap()));
    }
    qemu_img(at, &["resize", "-f", "qcow2", "image.qcow2", "3M"]);
    write("write -P 9 0 3M");
    let image = || {
        let device = Arc::new(FileDevice::open(&path, true).unwrap());
        Image::open("image.qcow2", device).unwrap()
    };
    let listed: Vec<String> = image().snapshots().iter().map(|it| it.name.clone()).collect();
    assert_eq!(listed, ["first", "with space", "third"]);
    for (number, (name, bytes)) in states.iter().enumerate() {
        let by_name = image().disk(Some(name), None, Arc::default()).unwrap();
        assert_holds(&by_name, bytes, name);
        let by_id = chain::open_disk(&path, None, Allow::Nothing, Some(&(number + 1).to_string()));
        assert_holds(&*by_id.unwrap(), bytes, name);
    }
    assert_holds(&*open(&path), &vec![9; 3 * MIB], "the disk as it is");
    let error = image().disk(Some("fourth"), None, Arc::default()).unwrap_err();
    assert_eq!(error.to_string(), "image.qcow2 has no snapshot \"fourth\"");
}

#[test]
fn a_backing_file_elsewhere_is_opened_only_where_that_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let (inside, outside) = (folder.path().join("inside"), folder.path().join("outside"));
    std::fs::create_dir(&inside).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), vec![b's'; MIB]).unwrap();
    std::os::unix::fs::symlink(outside.join("secret"), inside.join("link")).unwrap();
    let path = inside.join("image.qcow2");
    for (name, allowed) in [("../outside/secret", false), ("link", false)] {
        qemu_img(
            &inside,
            &["create", "-f", "qcow2", "-u", "-b", name, "-F", "raw", "image.qcow2", "1M"],
        );
        for allow in [Allow::Nothing, Allow::Beside] {
            let error = chain::find(&path, None, allow).unwrap_err();
            assert!(matches!(error, Qcow2Error::Backing { .. }), "{name} {allowed}: {error}");
        }
        let disk = chain::open_disk(&path, None, Allow::Anything, None).unwrap();
        assert_holds(&*disk, &vec![b's'; MIB], name);
    }
    for name in ["nbd://localhost/x", "json:{\"driver\":\"null-co\"}", "/dev/null", "none"] {
        qemu_img(
            &inside,
            &["create", "-f", "qcow2", "-u", "-b", name, "-F", "raw", "image.qcow2", "1M"],
        );
        let error = chain::find(&path, None, Allow::Anything).unwrap_err();
        println!("{error}");
        let device = Arc::new(FileDevice::open(&path, true).unwrap());
        let error = Image::open("it", device).unwrap().disk(None, None, Arc::default());
        assert!(matches!(error, Err(Qcow2Error::NeedsBacking { .. })));
    }
}

#[test]
fn images_that_stand_on_each_other_or_on_too_many_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let create = |backing: &str, name: &str| {
        qemu_img(at, &["create", "-f", "qcow2", "-u", "-b", backing, "-F", "qcow2", name, "1M"]);
    };
    create("b.qcow2", "a.qcow2");
    create("a.qcow2", "b.qcow2");
    let error = chain::find(&at.join("a.qcow2"), None, Allow::Beside).unwrap_err();
    assert!(error.to_string().contains("stands on it in turn"), "{error}");
    create("./self.qcow2", "self.qcow2");
    let error = chain::find(&at.join("self.qcow2"), None, Allow::Beside).unwrap_err();
    assert!(error.to_string().contains("stands on it in turn"), "{error}");
    // Copies, so that each is a file of its own.
    create("next-1", "next-0");
    let template = std::fs::read(at.join("next-0")).unwrap();
    let name_at = template.windows(6).position(|bytes| bytes == b"next-1").unwrap();
    for number in 0..70_u8 {
        let mut bytes = template.clone();
        bytes[name_at..name_at + 6].copy_from_slice(format!("n{:05}", number + 1).as_bytes());
        std::fs::write(at.join(format!("n{number:05}")), bytes).unwrap();
    }
    let error = chain::find(&at.join("n00000"), None, Allow::Beside).unwrap_err();
    assert!(error.to_string().contains("64 files above it"), "{error}");
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let refused = |args: &[&str], part: &str| {
        qemu_img(at, args);
        let error = chain::find(&at.join("image.qcow2"), None, Allow::Beside);
        let error = match error {
            Ok(links) => chain::assemble(links, None, &Arc::default()).map(|_| ()).unwrap_err(),
            Err(error) => error,
        };
        assert!(error.to_string().contains(part), "{error}");
    };
    refused(
        &["create", "-f", "qcow2", "-o", "data_file=data.raw", "image.qcow2", "1M"],
        "its data is in another file, \"data.raw\"",
    );
}

#[test]
fn the_dirty_bit_is_told_and_does_not_stop_a_reader() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    qemu_img(at, &["create", "-f", "qcow2", "image.qcow2", "1M"]);
    let mut bytes = std::fs::read(at.join("image.qcow2")).unwrap();
    for (bits, dirty, corrupt) in [(0, false, false), (1, true, false), (2, false, true)] {
        bytes[79] = bits;
        std::fs::write(at.join("image.qcow2"), &bytes).unwrap();
        let device = Arc::new(FileDevice::open(&at.join("image.qcow2"), true).unwrap());
        let image = Image::open("it", device).unwrap();
        assert_eq!((image.info().dirty, image.info().corrupt), (dirty, corrupt));
        let disk = image.disk(None, None, Arc::default()).unwrap();
        let mut sector = [1; 512];
        kiln_block::BlockDevice::read_at(&disk, ByteOffset::ZERO, &mut sector).unwrap();
        assert_eq!(sector, [0; 512]);
    }
}
