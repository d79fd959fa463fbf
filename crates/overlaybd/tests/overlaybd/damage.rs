//! Rules broken one at a time: each is refused, with the file, the place and the rule; and whatever is
//! broken, nothing panics and no wrong bytes are given out.

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteOffset};
use kiln_overlaybd::{
    Config, Flaw, Layer, LayerError, NewUpper, Sealing, Stack, Upper, ZFile, check,
};

use crate::files::{
    committed, disk, input, kept, large, layer, options, replayed, sha256, stack, whole,
};
use crate::golden::TAR;

/// An uncompressed layer of 1 MiB.
pub(crate) fn plain() -> Vec<u8> {
    let new = NewUpper { virtual_size: 1 << 20, ..NewUpper::default() };
    committed(&replayed("d_tar/l0.ops", &new).disk, &Sealing::default())
}

/// The compressed layer in the tar.
fn zfile() -> Vec<u8> {
    kept("d_tar/pax.tar")[1536..1536 + 45088].to_vec()
}

pub(crate) fn refusal(name: &str, bytes: &[u8]) -> String {
    match layer(name, bytes) {
        Err(error) => kiln_overlaybd::Flaw::Unreadable(error).to_string(),
        Ok(_) => panic!("{name} was opened"),
    }
}

pub(crate) fn put(bytes: &mut [u8], at: usize, patch: &[u8]) {
    bytes[at..at + patch.len()].copy_from_slice(patch);
}

pub(crate) fn checksummed(bytes: &mut [u8]) {
    // The digest of a ZFile's header, as its page defines it.
    let mut state = 0u32;
    bytes[28..32].fill(0);
    for byte in &bytes[..512] {
        state ^= u32::from(*byte);
        for _ in 0..8 {
            state = if state & 1 == 1 { state >> 1 ^ 0x82f6_3b78 } else { state >> 1 };
        }
    }
    put(bytes, 28, &state.to_le_bytes());
}

#[test]
fn every_broken_rule_of_a_layer_is_named_with_its_place() {
    let sound = plain();
    let trailer = sound.len() - 4096;
    let index =
        usize::try_from(u64::from_le_bytes(*sound[trailer + 32..].first_chunk().unwrap())).unwrap();
    let huge = u64::MAX.to_le_bytes();
    let entry = |start: u64, len: u64, at: u64, zeroed: u64| {
        let words = [start | len << 50, at | zeroed << 55];
        words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()
    };
    let cases: [(&str, usize, Vec<u8>, usize, &str); 16] = [
        ("no magic", 0, vec![0], 0, "no magic of an LSMT file"),
        ("second magic", 9, vec![0], 0, "no magic of an LSMT file"),
        ("header is a trailer", 28, vec![6], 28, "has a trailer's flags"),
        ("no trailer", trailer, vec![0], trailer, "in the trailer; was this layer never sealed?"),
        ("trailer is a header", trailer + 28, vec![7], trailer + 28, "has a header's flags"),
        ("trailer of an index", trailer + 28, vec![4], trailer + 28, "belongs to an index"),
        (
            "not sealed",
            trailer + 28,
            vec![2],
            trailer + 28,
            "does not say that the layer is sealed",
        ),
        ("huge index", trailer + 40, huge.to_vec(), trailer + 40, "is larger than 1000000"),
        (
            "too many",
            trailer + 40,
            vec![0, 2],
            trailer + 32,
            "do not lie between header and trailer",
        ),
        ("index nowhere", trailer + 32, huge.to_vec(), trailer + 32, "do not lie between"),
        ("index in header", trailer + 32, vec![0; 8], trailer + 32, "do not lie between"),
        ("unsorted", index, entry(2000, 4, 8, 0), index + 16, "starts at sector"),
        ("in the header", index, entry(0, 1, 7, 0), index, "outside of the data"),
        ("behind the data", index, entry(0, 1, 1 << 40, 1), index, "outside of the data"),
        ("data behind the data", index, entry(0, 1, 1 << 40, 0), index, "outside of the data"),
        ("overlapping", index, entry(0, 16383, 8, 1), index + 16, "within or before the last one"),
    ];
    for (name, at, patch, place, rule) in cases {
        let mut bytes = sound.clone();
        put(&mut bytes, at, &patch);
        let told = refusal(name, &bytes);
        assert!(told.starts_with(&format!("{name} is damaged at byte {place}: ")), "{told}");
        assert!(told.contains(rule), "{told}");
    }
    for len in [0, 1, 511, 4095, 4096, 8191, 8192, sound.len() / 2, sound.len() - 1] {
        let told = refusal("cut", &sound[..len]);
        assert!(told.starts_with("cut is damaged at byte "), "{len}: {told}");
    }
}

#[test]
fn every_broken_rule_of_a_zfile_is_named_with_its_place() {
    let sound = zfile();
    let index = u64::from_le_bytes(*sound[40..].first_chunk().unwrap());
    let cases: [(&str, usize, Vec<u8>, u64, &str); 9] = [
        ("a trailer's flags", 32, vec![0x1a], 32, "has a trailer's flags"),
        ("no data", 32, vec![0x19], 32, "holds no data"),
        ("minilzo", 76, vec![0], 76, "neither 1 (lz4) nor 2 (zstd)"),
        ("odd block size", 72, vec![1], 72, "no power of two"),
        ("large block size", 72, vec![0, 0, 2], 72, "no power of two up to 65536"),
        ("index behind the end", 40, vec![0xff; 8], 40, "does not lie between"),
        ("too few blocks", 48, vec![1], 48, "hold less than"),
        ("huge table", 48, vec![0xff; 8], 40, "does not lie between"),
        ("dictionary", 84, vec![0xff, 0xff], 40, "does not lie between"),
    ];
    for (name, at, patch, place, rule) in cases {
        let mut bytes = sound.clone();
        put(&mut bytes, at, &patch);
        checksummed(&mut bytes);
        let told = refusal(name, &bytes);
        assert!(told.starts_with(&format!("{name} is damaged at byte {place}: ")), "{told}");
        assert!(told.contains(rule), "{told}");
    }
    // Without digests nothing stands between a lie and the rules about entries.
    let table = usize::try_from(index).unwrap();
    for (entry, rule) in
        [(0u32, "cannot take 0 bytes"), (4, "cannot take 4"), (u32::MAX, "cannot take")]
    {
        let mut bytes = sound.clone();
        put(&mut bytes, 32, &[0x0b]);
        put(&mut bytes, table + 8, &entry.to_le_bytes());
        let told = refusal("entry", &bytes);
        assert!(told.contains(rule) && told.contains(&format!("byte {}", table + 8)), "{told}");
    }
    let mut bytes = sound.clone();
    put(&mut bytes, 32, &[0x0b]);
    for block in 0..15 {
        put(&mut bytes, table + block * 4, &5000u32.to_le_bytes());
    }
    assert!(refusal("group", &bytes).contains("overflow a group of 16 blocks"));
    let mut bytes = sound.clone();
    put(&mut bytes, 32, &[0x0b]);
    put(&mut bytes, table, &40_000u32.to_le_bytes());
    assert!(refusal("long", &bytes).contains("behind the start of the jump table"));
}

#[test]
fn a_block_that_unpacks_to_more_than_a_block_is_refused_in_bounded_memory() {
    let bomb = vec![0u8; 64 << 20];
    for (algo, packed) in [
        (1, lz4::block::compress(&bomb[..16 << 20], None, false).unwrap()),
        (2, zstd::bulk::compress(&bomb, 3).unwrap()),
    ] {
        // One block of 64 KiB that holds all of it; without digests nothing else is wrong.
        let mut file = vec![0; 512];
        put(&mut file, 0, b"ZFile\0\x01\0tuji.yyf@Alibaba");
        put(&mut file, 32, &[0x0b]);
        put(&mut file, 40, &(512 + packed.len() as u64).to_le_bytes());
        put(&mut file, 48, &[1]);
        put(&mut file, 56, &65536u64.to_le_bytes());
        put(&mut file, 72, &65536u32.to_le_bytes());
        put(&mut file, 76, &[algo]);
        let table = u32::try_from(packed.len()).unwrap().to_le_bytes();
        let file = [file, packed, table.to_vec()].concat();
        let opened = ZFile::open(input("bomb", &file), options().cache, 1);
        let told = match opened {
            Err(error) => error.to_string(),
            Ok(zfile) => {
                let disk = kiln_block::ReadOnly(zfile);
                disk.read_at(ByteOffset::ZERO, &mut [0; 4096]).unwrap_err().to_string()
            }
        };
        assert!(told.contains("bomb"), "{told}");
        assert!(told.contains("byte 512") || told.contains("is damaged at byte "), "{told}");
        assert!(told.contains("malformed") || told.contains("cannot take"), "{told}");
    }
    // A disk of an exabyte in a file of a few bytes.
    let mut bytes = zfile();
    put(&mut bytes, 32, &[0x0b]);
    put(&mut bytes, 56, &(1u64 << 60).to_le_bytes());
    assert!(refusal("exabyte", &bytes).contains("hold less than"));
}

#[test]
fn images_damaged_elsewhere_are_refused_where_others_refuse_them() {
    for (name, rule) in [
        ("hdr_reserved_byte", "the digest is"),
        ("hdr_digest", "the digest is"),
        ("index_byte", "the jump table's CRC is"),
        ("trunc_block", "does not lie between"),
        ("block0_byte", "block 0 at byte 512: its CRC is 39c761ba, its bytes give 47f3488f"),
    ] {
        let told = refusal(name, &kept(&format!("z_bad/{name}.zf")));
        assert!(told.contains(rule), "{name}: {told}");
    }
    for name in ["trailer_byte", "truncated"] {
        let bytes = kept(&format!("z_bad/{name}.zf"));
        assert_eq!(sha256(&whole(&disk(name, &bytes))), TAR, "a complete header needs no trailer");
    }
    let layers = [
        "index_disordered",
        "moffset_out_of_range",
        "index_size_huge",
        "trailer_not_sealed",
        "magic",
    ];
    for name in layers {
        let Some(path) = large(&format!("z_bad/{name}.lsmt")) else { continue };
        let input = kiln_overlaybd::Input::open(&path).unwrap();
        assert!(
            matches!(Layer::open(input, &options()), Err(LayerError::Damaged { .. })),
            "{name}"
        );
    }
}

#[test]
fn a_block_with_a_wrong_crc_fails_alone_and_is_found_by_a_check() {
    let mut bytes = zfile();
    // The block of the disk's last data; those before it stay readable, also by a reader that
    // reads ahead.
    let disk_of = |bytes: &[u8]| stack(vec![layer("blocks", bytes).unwrap()]);
    let sound = disk_of(&bytes);
    let table = usize::try_from(u64::from_le_bytes(*bytes[40..].first_chunk().unwrap())).unwrap();
    let lens: Vec<usize> = bytes[table..table + 42 * 4]
        .chunks(4)
        .map(|entry| u32::from_le_bytes(*entry.first_chunk().unwrap()) as usize)
        .collect();
    let twentieth = 512 + lens[..20].iter().sum::<usize>();
    bytes[twentieth + 5] ^= 1;
    let damaged = disk_of(&bytes);
    let (mut refused, mut at) = (0, 0);
    let mut good = vec![0; 512];
    let mut read = vec![0; 512];
    while at < sound.size().get() {
        sound.read_at(ByteOffset::new(at), &mut good).unwrap();
        match damaged.read_at(ByteOffset::new(at), &mut read) {
            Ok(()) => assert!(read == good, "wrong bytes at {at}"),
            Err(error) => {
                let told = error.to_string();
                assert!(
                    told.contains(&format!(
                        "damaged at byte {at}: blocks, block 20 at byte {twentieth}: its CRC is"
                    )),
                    "{told}"
                );
                refused += 1;
            }
        }
        at += 512;
    }
    assert!((1..=8).contains(&refused), "{refused} sectors of one block");
    let flaws = check(input("blocks", &bytes), &options(), 10);
    assert!(matches!(&flaws[..], [Flaw::Lost(_)]), "{flaws:?}");
}

#[test]
fn a_tar_that_lies_is_refused_or_read_as_far_as_it_goes() {
    let sound = kept("d_tar/pax.tar");
    let mut bytes = sound.clone();
    put(&mut bytes, 512, b"99 size=45088\n");
    assert!(refusal("record", &bytes).contains("record of 99 bytes"));
    let mut bytes = sound.clone();
    put(&mut bytes, 512, b"14 size=4508x\n");
    assert!(refusal("number", &bytes).contains("pax size is not a number"));
    let mut bytes = sound.clone();
    put(&mut bytes, 1024 + 257, b"USTAR");
    assert!(refusal("member", &bytes).contains("byte 1024: after the pax record"));
    let mut bytes = sound.clone();
    put(&mut bytes, 512, b"14 size=99999\n");
    assert_eq!(sha256(&whole(&disk("larger", &bytes))), TAR);
    // A wrong checksum makes it no tar, and what is not a tar must be a layer.
    let mut bytes = sound;
    bytes[0] ^= 1;
    assert!(refusal("sum", &bytes).contains("no magic of an LSMT file"));
}

#[test]
fn nothing_panics_and_a_sound_header_never_gives_wrong_bytes() {
    let mut dice = Dice::seeded(5);
    let packed = zfile();
    let wanted = whole(&disk("sound", &packed));
    for _ in 0..400 {
        let mut bytes = packed.clone();
        let at = usize::try_from(dice.below(bytes.len() as u64)).unwrap();
        bytes[at] ^= u8::try_from(1 + dice.below(255)).unwrap();
        let Ok(layer) = layer("flipped", &bytes) else { continue };
        let disk = stack(vec![layer]);
        let mut read = vec![0; 1 << 20];
        if disk.read_at(ByteOffset::ZERO, &mut read).is_ok() {
            assert!(read == wanted, "a flipped bit at {at} went through");
        }
    }
    let plain = plain();
    for _ in 0..400 {
        let mut bytes = plain.clone();
        let meta = dice.below(8192);
        let at = if meta < 4096 { meta } else { bytes.len() as u64 - 8192 + meta };
        bytes[usize::try_from(at).unwrap()] ^= u8::try_from(1 + dice.below(255)).unwrap();
        let Ok(layer) = layer("flipped", &bytes) else { continue };
        if let Ok(stack) = Stack::new(vec![layer]) {
            let mut read = vec![0; 4096];
            let _ = kiln_block::ReadOnly(stack).read_at(ByteOffset::ZERO, &mut read);
        }
    }
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_with_its_name() {
    for (text, rule) in [
        ("", "EOF"),
        ("{}", "neither a lower nor an upper"),
        (r#"{"lowers": [{}]}"#, "lowers[0] has no file, no dir and no digest"),
        (r#"{"lowers": [{"file": 1}]}"#, "line 1"),
        (r#"{"upper": {"data": "d"}}"#, "upper has data and no index"),
        (r#"{"lowers": [{"targetFile": "t"}]}"#, "no file that refers to it"),
        (r#"{"lowers": [{"targetFile": "t", "gzipIndex": "g"}]}"#, "unpack it"),
    ] {
        let told = Config::parse(text, "config.v1.json").unwrap_err().to_string();
        assert!(told.starts_with("config.v1.json: ") && told.contains(rule), "{told}");
    }
    let many = format!(r#"{{"lowers": [{}]}}"#, vec![r#"{"file": "l"}"#; 256].join(","));
    assert!(Config::parse(&many, "c").unwrap_err().to_string().contains("more than 255"));
}

#[test]
fn files_that_are_no_upper_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("sealed"), plain()).unwrap();
    let told = Upper::open(&path("sealed"), None).unwrap_err().to_string();
    assert!(told.contains("sealed layer"), "{told}");
    std::fs::write(path("short"), b"LSMT").unwrap();
    assert!(Upper::open(&path("short"), None).unwrap_err().to_string().contains("too short"));
    let new = NewUpper { virtual_size: 1 << 20, ..NewUpper::default() };
    drop(Upper::create_log(&path("data"), &path("idx"), &new).unwrap());
    let told = Upper::open(&path("data"), None).unwrap_err().to_string();
    assert!(told.contains("needs its index file"), "{told}");
    let other = NewUpper { uuid: "2e2e2e2d-1111-4222-8333-00000000012d".parse().unwrap(), ..new };
    drop(Upper::create_log(&path("data2"), &path("idx2"), &other).unwrap());
    let told = Upper::open(&path("data"), Some(&path("idx2"))).unwrap_err().to_string();
    assert!(told.contains("they are no pair"), "{told}");
    let told = Upper::create_log(&path("data"), &path("idx3"), &other).unwrap_err().to_string();
    assert!(told.starts_with("cannot create "), "{told}");
    // An index that speaks of data that is not there.
    let mut index = std::fs::read(path("idx")).unwrap();
    index.extend((1u64 << 50).to_le_bytes());
    index.extend(8u64.to_le_bytes());
    std::fs::write(path("idx"), index).unwrap();
    let told = Upper::open(&path("data"), Some(&path("idx"))).unwrap_err().to_string();
    assert!(told.contains("damaged at byte 4096: the entry speaks of sectors 8 to 9"), "{told}");
}
