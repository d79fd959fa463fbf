//! More rules broken one at a time: those of trailers of ZFiles, of blocks, of tars, of uppers, and of layers over a tar. Each
//! refusal names the file, the place and the rule.

use std::io::{Cursor, Write as _};

use kiln_block::{BlockDevice, ByteLen, ByteOffset, ReadOnly};
use kiln_overlaybd::{
    Codec, Config, Layer, NewUpper, Packing, Stack, Trace, Upper, ZFile, ZFileWriter, check,
};

use crate::damage::{checksummed, plain, put, refusal};
use crate::files::{input, kept, layer, options};

/// The layer of 1 MiB as a ZFile whose trailer says everything.
fn trailer_only() -> Vec<u8> {
    let packing = Packing { complete_header: false, ..Packing::default() };
    let mut out = ZFileWriter::new(Cursor::new(Vec::new()), packing).unwrap();
    out.write_all(&plain()).unwrap();
    out.finish().unwrap().0.into_inner()
}

#[test]
fn every_broken_rule_of_a_zfiles_trailer_is_named_with_its_place() {
    let sound = trailer_only();
    assert!(layer("sound", &sound).is_ok());
    let trailer = sound.len() - 512;
    // Where, what, whether the digest is made right again, at which byte of the trailer it is found, and what is said.
    let cases: [(&str, usize, u8, bool, usize, &str); 8] = [
        ("no magic", 0, 0, false, 0, "does not start with the magic of a ZFile"),
        ("reserved byte", 100, 1, false, 28, "the digest is"),
        ("a header", 32, 0x17, true, 32, "has no trailer's flags"),
        ("not sealed", 32, 0x12, true, 32, "has no trailer's flags"),
        ("no data", 32, 0x14, true, 32, "holds no data"),
        ("packed table", 32, 0x36, true, 32, "a compressed jump table was never defined"),
        ("minilzo", 76, 0, true, 76, "neither 1 (lz4) nor 2 (zstd)"),
        ("table CRC", 64, 0xa5, true, 64, "the jump table's CRC is"),
    ];
    for (name, at, byte, again, place, rule) in cases {
        let mut bytes = sound.clone();
        bytes[trailer + at] = byte;
        if again {
            checksummed(&mut bytes[trailer..]);
        }
        let told = refusal(name, &bytes);
        let place = trailer + place;
        assert!(told.starts_with(&format!("{name} is damaged at byte {place}: ")), "{told}");
        assert!(told.contains(rule), "{told}");
    }
    let told = refusal("cut", &sound[..600]);
    assert!(told.starts_with("cut is damaged at byte 512: the ZFile ends before its"), "{told}");
    // Without its trailer there is something else at its end.
    let told = refusal("shorter", &sound[..trailer]);
    assert!(told.starts_with("shorter is damaged at byte "), "{told}");
}

/// A ZFile of one block, without digests or CRCs, and what it says it unpacks to.
fn one_block(codec: Codec, block: &[u8], size: u32) -> Vec<u8> {
    let mut file = vec![0; 512];
    put(&mut file, 0, b"ZFile\0\x01\0tuji.yyf@Alibaba");
    put(&mut file, 32, &[0x0b]);
    put(&mut file, 40, &(512 + block.len() as u64).to_le_bytes());
    put(&mut file, 48, &[1]);
    put(&mut file, 56, &u64::from(size).to_le_bytes());
    put(&mut file, 72, &65536u32.to_le_bytes());
    put(&mut file, 76, &[if codec == Codec::Lz4 { 1 } else { 2 }]);
    file.extend(block);
    file.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
    file
}

#[test]
fn a_block_that_unpacks_to_anything_but_its_size_is_named_with_its_place() {
    let content = vec![7; 5000];
    for (codec, packed) in [
        (Codec::Lz4, lz4::block::compress(&content, None, false).unwrap()),
        (Codec::Zstd, zstd::bulk::compress(&content, 3).unwrap()),
    ] {
        let read = |size: u32, block: &[u8]| {
            let file = one_block(codec, block, size);
            let zfile = ZFile::open(input("block", &file), options().cache, 1).unwrap();
            let disk = ReadOnly(zfile);
            let mut bytes = vec![0; size as usize];
            disk.read_at(ByteOffset::ZERO, &mut bytes).map(|()| bytes)
        };
        assert!(read(5000, &packed).unwrap() == content);
        for (size, block, rule) in [
            (5001, &packed[..], "unpacks to 5000 bytes, not to 5001"),
            (4999, &packed[..], "malformed"),
            (65536, &packed[..], "unpacks to 5000 bytes, not to 65536"),
            (5000, &packed[..packed.len() - 1], "malformed"),
        ] {
            let told = read(size, block).unwrap_err().to_string();
            assert!(told.starts_with("damaged at byte 0: block, block 0 at byte 512: "), "{told}");
            // A block that is cut may be found to be so, or to give too little.
            assert!(told.contains(rule) || told.contains("unpacks to"), "{codec:?} {told}");
        }
    }
}

#[test]
fn a_file_that_ends_within_its_blocks_or_its_table_is_refused() {
    let sound = kept("d_tar/pax.tar")[1536..1536 + 45088].to_vec();
    let table = usize::try_from(u64::from_le_bytes(*sound[40..].first_chunk().unwrap())).unwrap();
    for len in [513, 600, table - 1, table, table + 1, table + 4 * 42 - 1] {
        let told = refusal("cut", &sound[..len]);
        assert!(told.starts_with("cut is damaged at byte 40: a jump table of "), "{len}: {told}");
    }
    for len in [1, 24, 511] {
        assert!(refusal("cut", &sound[..len]).starts_with("cut is damaged at byte "), "{len}");
    }
}

/// Makes the checksum of a tar header right.
fn sealed(tar: &mut [u8], at: usize) {
    put(tar, at + 148, b"        ");
    let sum: u32 = tar[at..at + 512].iter().map(|byte| u32::from(*byte)).sum();
    put(tar, at + 148, format!("{sum:06o}\0 ").as_bytes());
}

/// A name, bytes and where they go, which header's checksum that asks for, and the place and rule that are told.
type Lie<'a> = (&'a str, usize, &'a [u8], usize, usize, &'a str);

#[test]
fn every_lie_of_a_tar_is_named_with_its_place() {
    let pax = kept("d_tar/pax.tar");
    let cases: [Lie<'_>; 5] = [
        ("long record", 124, b"00000001001\0", 0, 124, "the pax record is larger than 512 bytes"),
        ("no number", 124, b"00000000zzz\0", 0, 124, "the pax record is larger than 512 bytes"),
        ("no length", 512, b"size=45088\n\0\0", 0, 512, "a pax record starts with no length"),
        ("no newline", 512, b"14 size=450881", 0, 512, "does not end in a newline"),
        ("no member", 1024, &[0; 512], 0, 1024, "after the pax record there is no tar header"),
    ];
    for (name, at, patch, header, place, rule) in cases {
        let mut bytes = pax.clone();
        put(&mut bytes, at, patch);
        sealed(&mut bytes, header);
        let told = refusal(name, &bytes);
        assert!(told.starts_with(&format!("{name} is damaged at byte {place}: ")), "{told}");
        assert!(told.contains(rule), "{told}");
    }
    let mut bytes = kept("d_tar/ustar.tar");
    put(&mut bytes, 124, b"zzzzzzzzzzzz");
    sealed(&mut bytes, 0);
    let told = refusal("ustar", &bytes);
    assert!(told.starts_with("ustar is damaged at byte 124: the tar member's size is"), "{told}");
    // A size that is too small cuts the layer, which says what it lacks; no size is too large to be looked at.
    let mut bytes = kept("d_tar/ustar.tar");
    put(&mut bytes, 124, b"00000001000\0");
    sealed(&mut bytes, 0);
    let told = refusal("small", &bytes);
    assert!(told.starts_with("small is damaged at byte 552: a jump table of "), "{told}");
    for huge in [
        &b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..],
        b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut bytes = kept("d_tar/ustar.tar");
        put(&mut bytes, 124, huge);
        sealed(&mut bytes, 0);
        // Read as far as it goes, or refused; never beyond the file.
        let _ = layer("huge", &bytes);
    }
    let mut bytes = pax;
    put(&mut bytes, 512, b"29 size=18446744073709551615\n");
    put(&mut bytes, 124, format!("{:>11o} ", 29).as_bytes());
    sealed(&mut bytes, 0);
    assert!(layer("huge", &bytes).is_ok(), "it is read as far as it goes");
}

#[test]
fn sizes_that_no_disk_has_are_no_reason_to_panic() {
    let mut bytes = plain();
    let trailer = bytes.len() - 4096;
    for size in [0u64, 1, 511, 513, 1 << 40, 1 << 63, u64::MAX] {
        put(&mut bytes, trailer + 48, &size.to_le_bytes());
        let disk = ReadOnly(Stack::new(vec![layer("size", &bytes).unwrap()]).unwrap());
        assert_eq!(BlockDevice::size(&disk), ByteLen::new(size));
        let mut sector = [0; 512];
        let end = ByteOffset::new(size);
        assert!(disk.read_at(end, &mut sector[..1]).is_err(), "{size}");
        if size >= 512 {
            disk.read_at(ByteOffset::ZERO, &mut sector).unwrap();
            disk.read_at(ByteOffset::new(size - 512), &mut sector).unwrap();
        }
        let found = BlockDevice::extents(&disk, ByteOffset::ZERO, ByteLen::new(size)).unwrap();
        let covered: u64 = found.iter().map(|extent| extent.len.get()).sum();
        assert_eq!(covered, size);
        let trace = Trace::parse("0 4096\n18446744073709547519 4096\n", "t").unwrap();
        let records = trace.to_layers(&disk.0);
        Trace::of_layers(&records, "t", &disk.0).unwrap();
        check(input("size", &bytes), &options(), 10);
    }
}

#[test]
fn a_layer_over_a_tar_that_is_too_short_names_the_entry() {
    let tar = kept("p_turbooci/layer.tar");
    let meta = input("ext4.fs.meta", &kept("p_turbooci/ext4.fs.meta"));
    let told = Layer::open_over(meta, input("tar", &tar[..1024]), &options());
    let told = told.unwrap_err().to_string();
    assert!(told.starts_with("ext4.fs.meta (unpacked) is damaged at byte "), "{told}");
    assert!(told.contains("outside of the data"), "{told}");
}

#[test]
fn files_of_uppers_in_each_others_place_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let new = NewUpper { virtual_size: 1 << 20, ..NewUpper::default() };
    drop(Upper::create_log(&path("data"), &path("idx"), &new).unwrap());
    let refused = |data: &str, index: Option<&str>| {
        let index = index.map(&path);
        Upper::open(&path(data), index.as_deref()).unwrap_err().to_string()
    };
    let told = refused("idx", Some("data"));
    assert!(
        told.contains("idx is damaged at byte 28: the flags are not those of an upper's data"),
        "{told}"
    );
    std::fs::copy(path("data"), path("other")).unwrap();
    let told = refused("data", Some("other"));
    assert!(
        told.contains("other is damaged at byte 28: the flags are not those of an upper's index"),
        "{told}"
    );
    let mut index = std::fs::read(path("idx")).unwrap();
    index[3] ^= 1;
    std::fs::write(path("idx"), &index).unwrap();
    let told = refused("data", Some("idx"));
    assert!(told.contains("idx is damaged at byte 0: there is no magic of an LSMT file"), "{told}");
    // A sparse upper that was cut.
    drop(Upper::create_sparse(&path("sparse"), &new).unwrap());
    let mut header = std::fs::read(path("sparse")).unwrap();
    put(&mut header, 48, &u64::MAX.to_le_bytes());
    std::fs::write(path("sparse"), header).unwrap();
    let told = refused("sparse", None);
    assert!(told.contains("sparse is damaged at byte 48: a disk of "), "{told}");
}

#[test]
fn a_configuration_that_cannot_be_one_is_refused_before_it_is_read_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.v1.json");
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Config::load(&path).unwrap_err().to_string()
    };
    let told = refused(&[b' '; (4 << 20) + 1]);
    assert!(told.ends_with("config.v1.json: it is larger than 4194304 bytes"), "{told}");
    assert!(refused(b"\xff\xfe{}").contains("config.v1.json"));
    let deep = "[".repeat(100_000);
    assert!(refused(format!(r#"{{"lowers": {deep}"#).as_bytes()).contains("config.v1.json: "));
    let told = refused(br#"{"lowers": [{"digest": "sha256:0", "size": -1}]}"#);
    assert!(told.contains("config.v1.json: invalid value"), "{told}");
}
