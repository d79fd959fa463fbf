//! `kiln layer`: layers made, read back, checked and refused, by the program.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use kiln_block::{BlockDevice as _, ByteOffset};
use kiln_overlaybd::{Upper, Writable};

use crate::kiln::Kiln;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../overlaybd/tests/data");

fn read(kiln: &Kiln, name: &str) -> Vec<u8> {
    std::fs::read(kiln.folder().join(name)).expect("it is there")
}

/// 16 MiB with bytes that do not compress, text, zeros that take space, and holes.
fn image(kiln: &Kiln) {
    let path = kiln.write("disk.img", "");
    let file = std::fs::File::options().write(true).open(path).expect("it was written");
    file.set_len(16 << 20).expect("it can be sparse");
    let mut state = 1_u64;
    let random: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(200_000)
    .collect();
    file.write_all_at(&random, 512).expect("it can be written");
    file.write_all_at(&[b'k'; 100_000], (5 << 20) + 7).expect("it can be written");
    file.write_all_at(&[0; 1 << 20], 8 << 20).expect("it can be written");
    file.write_all_at(b"end", (16 << 20) - 3).expect("it can be written");
}

fn nothing_is_left(kiln: &Kiln) {
    let names = std::fs::read_dir(kiln.folder()).expect("the folder is there");
    let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let left: Vec<String> = names.filter(|name| name.starts_with(".kiln")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_raw_image_comes_back_byte_for_byte_with_its_holes() {
    let kiln = Kiln::new();
    image(&kiln);
    for how in ["none", "lz4", "zstd"] {
        let to = ["layer", "convert", "--to", "overlaybd", "--output", "l.obd", "disk.img"];
        let how = ["--compress", how, "--block-size", "16K", "--tar"];
        kiln.run(&[&to[..], &how[..]].concat()).exits(0);
        kiln.run(&["layer", "verify", "l.obd"]).exits(0);
        let len = read(&kiln, "l.obd").len();
        assert!(len < 400_000, "zeros and holes are left out: {len}");
        kiln.run(&["layer", "convert", "--to", "raw", "--output", "b.img", "l.obd"]).exits(0);
        assert!(read(&kiln, "disk.img") == read(&kiln, "b.img"), "{how:?}");
        let blocks = std::fs::metadata(kiln.folder().join("b.img")).expect("it is there").blocks();
        assert!(blocks * 512 < 1 << 20, "{blocks} sectors");
    }
    let json = kiln.run(&["layer", "inspect", "l.obd", "--format", "json"]).exits(0).json();
    assert_eq!(json["kinds"], serde_json::json!(["tar", "ZFile", "LSMT"]));
    assert_eq!(json["virtual_size"], 16 << 20);
    assert_eq!(json["compression"]["codec"], "zstd");
    assert_eq!(json["compression"]["block_size"], 16384);
    nothing_is_left(&kiln);
}

#[test]
fn layers_of_other_tools_merge_into_one_that_reads_the_same() {
    let kiln = Kiln::new();
    let layers = ["l0", "l1", "l2"].map(|name| format!("{DATA}/e_ext4/{name}.obd"));
    let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
    let run = |start: &[&str], layers: &[&str]| kiln.run(&[start, layers].concat()).exits(0);
    run(&["layer", "verify"], &layers);
    run(&["layer", "merge", "--output", "one.obd", "--compress", "zstd"], &layers);
    run(&["layer", "convert", "--to", "raw", "--output", "a.img"], &layers);
    run(&["layer", "convert", "--to", "raw", "--output", "b.img"], &["one.obd"]);
    let image = read(&kiln, "a.img");
    assert!(image == read(&kiln, "b.img"));
    assert_eq!(image[1080..1082], [0x53, 0xef], "the magic of ext4");
    let lowers = layers.iter().map(|file| serde_json::json!({"file": file}));
    let lowers: Vec<_> = lowers.collect();
    kiln.write("config.v1.json", serde_json::json!({"lowers": lowers}).to_string());
    let inspect = ["layer", "inspect", "config.v1.json", "--format", "json"];
    let json = kiln.run(&inspect).exits(0).json();
    assert_eq!(json["layers"].as_array().map(Vec::len), Some(3));
    let text = kiln.run(&["layer", "inspect", "config.v1.json"]).exits(0).stdout;
    assert!(text.contains("l2.obd\n  kinds"), "{text}");
}

#[test]
fn an_upper_is_made_committed_and_sealed() {
    let kiln = Kiln::new();
    let uuid = "0B0B0B0B-1111-4222-8333-00000000000B";
    let create = ["layer", "create", "u.data", "u.index", "--size", "1M", "--uuid", uuid];
    kiln.run(&create).exits(0);
    kiln.run(&create).exits(2).complains(&["u.index"]);
    kiln.run(&["layer", "create", "s.data", "--sparse", "--size", "1M"]).exits(0);
    for (data, index) in [("u.data", Some("u.index")), ("s.data", None)] {
        let index = index.map(|name| kiln.folder().join(name));
        let upper = Upper::open(&kiln.folder().join(data), index.as_deref()).expect("it opens");
        let disk = Writable::new(upper, None).expect("it has a size");
        disk.write_at(ByteOffset::new(8192), &[7; 4096]).expect("it can be written");
        disk.flush().expect("it can be flushed");
    }
    let before = [read(&kiln, "u.data"), read(&kiln, "u.index"), read(&kiln, "s.data")];
    kiln.run(&["layer", "commit", "s.data", "--output", "s.obd"]).exits(0);
    kiln.run(&["layer", "commit", "u.data", "u.index", "--output", "u.obd"]).exits(0);
    let after = [read(&kiln, "u.data"), read(&kiln, "u.index"), read(&kiln, "s.data")];
    assert!(before == after, "a commit leaves the upper as it is");
    let json = kiln.run(&["layer", "inspect", "u.obd", "--format", "json"]).exits(0).json();
    assert_eq!((&json["uuid"], &json["segments"]), (&uuid.into(), &1.into()));
    kiln.run(&["layer", "seal", "u.data", "u.index"]).exits(0);
    for layer in ["u.obd", "s.obd", "u.data"] {
        kiln.run(&["layer", "convert", "--to", "raw", "--output", "u.img", layer]).exits(0);
        let image = read(&kiln, "u.img");
        assert_eq!(image.len(), 1 << 20, "{layer}");
        let rest = image[..8192].iter().chain(&image[12288..]);
        assert!(image[8192..12288] == [7; 4096] && rest.copied().all(|byte| byte == 0), "{layer}");
    }
    kiln.run(&["layer", "seal", "u.data", "u.index"]).exits(2).complains(&["sealed already"]);
    let said = kiln.run(&["layer", "verify", "u.data", "u.obd", "s.obd"]).exits(0).stdout;
    assert!(said.contains("note: it was sealed in place"), "{said}");
    nothing_is_left(&kiln);
}

#[test]
fn a_qcow2_image_and_layers_become_each_other() {
    let kiln = Kiln::new();
    image(&kiln);
    let convert = |to: &str, output: &str, from: &str, more: &[&str]| {
        let words = ["layer", "convert", "--to", to, "--output", output, from];
        kiln.run(&[&words[..], more].concat()).exits(0);
    };
    convert("qcow2", "a.qcow2", "disk.img", &[]);
    convert("overlaybd", "l.obd", "a.qcow2", &["--compress", "zstd"]);
    convert("qcow2", "b.qcow2", "l.obd", &["--compress", "zstd"]);
    assert!(read(&kiln, "b.qcow2").starts_with(b"QFI\xfb"));
    convert("overlaybd", "m.obd", "b.qcow2", &["--compress", "none"]);
    convert("raw", "b.img", "m.obd", &[]);
    assert!(read(&kiln, "disk.img") == read(&kiln, "b.img"));
    let to = ["layer", "convert", "--to", "qcow2", "--output", "o", "l.obd"];
    kiln.run(&[&to[..], &["--compress", "lz4"]].concat()).exits(2).complains(&["zstd"]);
    kiln.run(&[&to[..], &["--tar"]].concat()).exits(2);
    nothing_is_left(&kiln);
}

/// A tar of entries: a name, and bytes for a file.
fn archive(entries: &[(&str, Option<&[u8]>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_ustar();
        let kind =
            if bytes.is_some() { tar::EntryType::Regular } else { tar::EntryType::Directory };
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(bytes.map_or(0, |bytes| bytes.len() as u64));
        tar.append_data(&mut header, name, bytes.unwrap_or_default()).expect("it is in memory");
    }
    tar.into_inner().expect("it is in memory")
}

#[test]
fn archives_become_a_layer_with_a_file_system_in_which_whiteouts_hide() {
    let kiln = Kiln::new();
    kiln.write("a.tar", archive(&[("d", None), ("d/old", Some(b"old")), ("keep", Some(b"kept"))]));
    kiln.write("b.tar", archive(&[("d/.wh.old", Some(b"")), ("d/new", Some(b"new content"))]));
    let to = ["layer", "convert", "--to", "overlaybd", "--output", "l.obd", "--free", "1M"];
    kiln.run(&[&to[..], &["a.tar", "b.tar"]].concat()).exits(0);
    kiln.run(&["layer", "convert", "--to", "raw", "--output", "l.img", "l.obd"]).exits(0);
    let image = read(&kiln, "l.img");
    assert_eq!(image[1080..1082], [0x53, 0xef], "the magic of ext2");
    let holds = |what: &[u8]| image.windows(what.len()).any(|bytes| bytes == what);
    assert!(holds(b"new content") && holds(b"kept") && !holds(b"old"), "what shows is there");
    let mixed = ["layer", "convert", "--to", "raw", "--output", "o", "a.tar", "l.obd"];
    kiln.run(&mixed).exits(2).complains(&["no such thing"]);
    nothing_is_left(&kiln);
}

#[test]
fn damage_is_named_and_leaves_no_output() {
    let kiln = Kiln::new();
    let mut layer = std::fs::read(format!("{DATA}/c_stack/l1.obd")).expect("it is kept");
    layer[20_000] ^= 1;
    kiln.write("bad.obd", &layer);
    let good = format!("{DATA}/c_stack/l2.obd");
    let said = kiln.run(&["layer", "verify", "bad.obd", &good]).exits(102).stdout;
    assert!(said.contains("bad.obd: ") && said.contains("l2.obd: sound"), "{said}");
    let json = kiln.run(&["layer", "verify", "bad.obd", "--format", "json"]).exits(102).json();
    assert_eq!(json["layers"][0]["sound"], false);
    kiln.run(&["layer", "merge", "--output", "o.obd", "bad.obd"])
        .exits(102)
        .complains(&["bad.obd"]);
    kiln.run(&["layer", "convert", "--to", "raw", "--output", "o.obd", "bad.obd"])
        .exits(102)
        .complains(&["bad.obd"]);
    let config = |first: &str| {
        let lowers = [first, &good].map(|file| serde_json::json!({"file": file}));
        kiln.write("config.v1.json", serde_json::json!({"lowers": lowers}).to_string());
    };
    config("bad.obd");
    let said = kiln.run(&["layer", "verify", "config.v1.json"]).exits(102).stdout;
    assert!(said.contains("config.v1.json: ") && said.contains("bad.obd"), "{said}");
    config(&good);
    let said = kiln.run(&["layer", "verify", "config.v1.json"]).exits(0).stdout;
    assert!(said.contains("note: layer 1") && said.contains("config.v1.json: sound"), "{said}");
    kiln.write("cut.obd", &layer[..9000]);
    kiln.run(&["layer", "inspect", "cut.obd"]).exits(102).complains(&["cut.obd", "byte"]);
    assert!(!kiln.folder().join("o.obd").exists());
    nothing_is_left(&kiln);
}

#[test]
fn what_makes_no_sense_is_the_callers_slip() {
    let kiln = Kiln::new();
    kiln.write("odd.img", [1; 700]);
    kiln.write("disk.img", [1; 4096]);
    let layer = format!("{DATA}/c_stack/l2.obd");
    let to = ["layer", "convert", "--output", "o", "--to", "overlaybd"];
    let refused = |words: &[&str], says: &str| {
        kiln.run(&[&to[..], words].concat()).exits(2).complains(&[says]);
    };
    refused(&["odd.img"], "700 bytes");
    refused(&[&layer], "kiln layer merge");
    refused(&["disk.img", "disk.img"], "kiln layer merge");
    refused(&["disk.img", "--block-size", "5K"], "power of two");
    refused(&["gone.img"], "gone.img");
    kiln.run(&["layer", "verify", "gone.obd"]).exits(2);
    kiln.run(&["layer", "convert", "--to", "raw", "--tar", "--output", "o", &layer]).exits(2);
    assert!(!kiln.folder().join("o").exists());
}
