//! Images that other tools wrote read to the bytes those tools say are in them.

use kiln_block::{BlockDevice, ByteOffset};
use kiln_overlaybd::{Codec, Image, Input, Layer, OpenOptions, Stack, check};

use crate::files::{disk, input, kept, large, layer, legacy, options, sha256, stack, whole};

pub(crate) const SINGLE: &str = "4f33584b0d35b562eb625242856510f83ba7790770109c736d5aacc8e5d5ad8f";
pub(crate) const STACK: &str = "3b160f0d8549f89875ee94ed3996aec98e7948795a26dd4ec57bf7591fdb2f71";
pub(crate) const TAR: &str = "a0fb501a16a112d293a71221da93cf68a818ecd9c5f4cc3ab5228292dc2cf6b1";
pub(crate) const LOG: &str = "560b2ef675062743a80d7accbd79742dd76260a14cc53b9271e770d22ccd6a35";

#[test]
fn layers_in_tars_of_both_kinds_read_to_their_digest() {
    for name in ["d_tar/pax.tar", "d_tar/ustar.tar"] {
        let disk = disk(name, &kept(name));
        assert_eq!(sha256(&whole(&disk)), TAR, "{name}");
        assert!(disk.0.layers()[0].is_in_tar(), "{name}");
    }
}

#[test]
fn a_layer_sealed_and_committed_elsewhere_reads_to_its_digest() {
    let name = "f_rw/log.commit_sealed.zf";
    assert_eq!(sha256(&whole(&disk(name, &kept(name)))), LOG);
}

#[test]
fn an_ext4_image_of_three_layers_reads_to_its_digests() {
    let digests = [
        "a626133c8e16fcf87fe8b54ada5275fb5308c81b41328064c31bbe5ea3b1345c",
        "ee4217ef06e2ecae837be0e71e1b2b3f0135ee24b10e010b73dd39a5b26c30d1",
        "d89786867f257fba737ef0cce09d9826c8a15b4d5e503a90ce3ad22cc5000e27",
    ];
    for (count, wanted) in (1..).zip(digests) {
        let names = ["e_ext4/l0.obd", "e_ext4/l1.obd", "e_ext4/l2.obd"];
        let layers = names[..count].iter().map(|name| layer(name, &kept(name)).unwrap());
        let stack = stack(layers.collect());
        assert_eq!(stack.0.chain_mismatches(), []);
        assert_eq!(sha256(&whole(&stack)), wanted, "{count} layers");
    }
}

#[test]
fn a_layer_over_the_tar_it_was_made_from_reads_what_is_in_the_tar() {
    let tar = input("layer.tar", &kept("p_turbooci/layer.tar"));
    let meta = input("ext4.fs.meta", &kept("p_turbooci/ext4.fs.meta"));
    let layer = Layer::open_over(meta, tar, &options()).unwrap();
    let remote = layer.segments().iter().filter(|segment| segment.source == 1).count();
    assert_eq!((layer.segments().len(), remote), (20, 6));
    let stack = stack(vec![layer]);
    assert_eq!(
        sha256_of_long(&stack),
        "391161a97ecdfe0dc0a4e56bdd0191c57569e87c219a982e38ab4c6278534fae"
    );
}

/// The digest of a disk too large for memory.
fn sha256_of_long(disk: &dyn BlockDevice) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    let mut bytes = vec![0; 1 << 20];
    for at in (0..disk.size().get()).step_by(1 << 20) {
        disk.read_at(ByteOffset::new(at), &mut bytes).unwrap();
        hash.update(&bytes);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn an_image_from_before_there_were_digests_reads_with_garbage_in_its_header() {
    use sha2::{Digest, Sha256};
    let disk = disk("ext4_64", &legacy());
    assert_eq!(disk.size().get(), 64 << 30);
    assert_eq!(disk.0.segments().len(), 8323);
    let mut start = vec![0; 64 << 20];
    disk.read_at(ByteOffset::ZERO, &mut start).unwrap();
    let start: String = Sha256::digest(&start).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(start, "a7405d1545c7bdb63e3d5233a1ce3e34a2564eb8269bfb125202168fb1bdc596");
}

#[test]
fn what_makes_a_layer_is_told() {
    let layer = layer("pax.tar", &kept("d_tar/pax.tar")).unwrap();
    let zfile = layer.zfile().unwrap();
    assert_eq!(
        (zfile.codec(), zfile.block_size(), zfile.has_checksums()),
        (Codec::Lz4, 4096, true)
    );
    assert_eq!(layer.uuid().unwrap().to_string(), "C9C9C9C9-1111-4222-8333-0000000000C9");
    assert_eq!((layer.parent(), layer.virtual_size()), (None, 1 << 20));
    assert!(check(input("pax.tar", &kept("d_tar/pax.tar")), &options(), 10).is_empty());
}

#[test]
fn a_layer_on_the_wrong_one_is_reported_and_can_be_refused() {
    let open = |name: &str| layer(name, &kept(name)).unwrap();
    let wrong = Stack::new(vec![open("c_stack/l1.obd"), open("c_stack/l3.obd")]).unwrap();
    let mismatches = wrong.chain_mismatches();
    assert_eq!(mismatches.len(), 1);
    let error = wrong.require_chain().unwrap_err().to_string();
    assert!(error.starts_with("layer 1 (c_stack/l3.obd) belongs on 67676767"), "{error}");
    let right = Stack::new(vec![open("c_stack/l1.obd"), open("c_stack/l2.obd")]).unwrap();
    right.require_chain().unwrap();
}

#[test]
fn large_images_read_to_their_digests() {
    let singles = [
        ("a_single/l0.lsmt", SINGLE),
        ("b_zfile/commit_lz4_4k.zf", SINGLE),
        ("b_zfile/commit_zstd_64k.zf", SINGLE),
        ("b_zfile/tool_lz4_16k.zf", SINGLE),
        ("b_zfile/tool_zstd_4k.zf", SINGLE),
        ("b_zfile/lib_algo1_bs4096_crc0_ow0_lvl0.zf", SINGLE),
        ("b_zfile/lib_algo1_bs65536_crc1_ow1_lvl0.zf", SINGLE),
        ("g_merge/merged.zf", STACK),
        ("g_merge/merged.lsmt", STACK),
        ("d_tar/t_without_z.obd", TAR),
        ("f_rw/log.committed", LOG),
        ("f_rw/log.sealed", LOG),
        ("f_rw/loggc.committed", LOG),
        ("f_rw/loggc.sealed", LOG),
        (
            "f_rw/sparse.committed",
            "85a70d9cd6079fb63fa66ab32a7a0708e60eebc9aad14212c18bd836b868066e",
        ),
        (
            "k_index_256/n256.lsmt",
            "8999b6fd9c0702e5c87b8c21ff39372062b6c230b5e173278dcea34418151a1b",
        ),
        (
            "k_index_256/n257.lsmt",
            "8d626ceb80be4113b0222d3dbfbb77fc02a0034560d34ffece68b655ea44d035",
        ),
    ];
    for (name, wanted) in singles {
        let Some(path) = large(name) else { continue };
        let layer = Layer::open(Input::open(&path).unwrap(), &OpenOptions::default()).unwrap();
        assert_eq!(sha256(&whole(&stack(vec![layer]))), wanted, "{name}");
    }
    let names = ["l0", "l1", "l2", "l3", "l4"].map(|name| large(&format!("c_stack/{name}.obd")));
    let open = |path| Layer::open(Input::open(path).unwrap(), &options()).unwrap();
    if let Some(paths) = names.iter().map(Option::as_deref).collect::<Option<Vec<_>>>() {
        let stack = stack(paths.into_iter().map(open).collect());
        assert_eq!(stack.0.segments().len(), 62);
        assert_eq!(sha256(&whole(&stack)), STACK);
        stack.0.require_chain().unwrap();
    }
}

#[test]
fn an_image_opens_by_its_configuration_and_says_so_in_its_result_file() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["l0.obd", "l1.obd", "l2.obd"] {
        std::fs::write(folder.path().join(name), kept(&format!("e_ext4/{name}"))).unwrap();
    }
    let dir = folder.path().join("second");
    std::fs::create_dir(&dir).unwrap();
    std::fs::rename(folder.path().join("l1.obd"), dir.join("overlaybd.commit")).unwrap();
    let config = folder.path().join("config.v1.json");
    let text = r#"{"repoBlobUrl": "", "lowers": [{"file": "l0.obd"}, {"dir": "second"},
        {"file": "l2.obd"}], "resultFile": "result", "download": {"enable": false}}"#;
    std::fs::write(&config, text).unwrap();
    let image = Image::open(&config, &options()).unwrap();
    assert_eq!(image.stack().unwrap().layers().len(), 3);
    assert_eq!(std::fs::read_to_string(folder.path().join("result")).unwrap(), "success");
    let disk = image.into_device();
    assert!(disk.is_read_only());
    assert_eq!(
        sha256(&whole(&*disk)),
        "d89786867f257fba737ef0cce09d9826c8a15b4d5e503a90ce3ad22cc5000e27"
    );
    std::fs::write(folder.path().join("l2.obd"), b"nothing").unwrap();
    let error = Image::open(&config, &options()).unwrap_err().to_string();
    assert!(error.contains("l2.obd") && error.contains("header"), "{error}");
    let told = std::fs::read_to_string(folder.path().join("result")).unwrap();
    assert_eq!(told, error);
}
