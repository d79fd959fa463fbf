//! Layers written from the same operations are byte for byte those that other tools wrote.

use std::io::{Cursor, Write};

use kiln_overlaybd::{Codec, NewUpper, Packing, Sealing, Uuid, ZFileWriter};

use crate::files::{committed, disk, kept, layer, replay, replayed, sha256, stack, whole};
use crate::naive;

fn uuid(text: &str) -> Uuid {
    text.parse().unwrap()
}

fn new(virtual_size: u64, id: &str, parent: &str) -> NewUpper {
    NewUpper { virtual_size, uuid: uuid(id), parent: uuid(parent), user_tag: Vec::new() }
}

const NIL: &str = "00000000-0000-0000-0000-000000000000";

fn packing(codec: Codec, block_size: u32) -> Packing {
    Packing { codec, block_size, ..Packing::default() }
}

/// The layer of the case with a user's tag.
fn single(tag: &[u8], id: &str, parent: &str, packing: Option<Packing>) -> Vec<u8> {
    let log = replayed("a_single/l0.ops", &new(4 << 20, NIL, NIL));
    let sealing = Sealing {
        uuid: uuid(id),
        parent: uuid(parent),
        user_tag: tag.to_vec(),
        packing,
        in_tar: false,
    };
    committed(&log.disk, &sealing)
}

/// The same layer, compressed by itself.
fn packed(packing: Packing) -> Vec<u8> {
    let mut out = ZFileWriter::new(Cursor::new(Vec::new()), packing).unwrap();
    out.write_all(&tagged()).unwrap();
    let (out, len) = out.finish().unwrap();
    assert_eq!(out.get_ref().len() as u64, len);
    out.into_inner()
}

fn tagged() -> Vec<u8> {
    let tag = format!("golden user tag {}", "x".repeat(48));
    let (id, parent) =
        ("0b0b0b0b-1111-4222-8333-00000000000b", "0c0c0c0c-1111-4222-8333-00000000000c");
    single(tag.as_bytes(), id, parent, None)
}

#[test]
fn an_uncompressed_layer_is_the_one_others_write() {
    let wanted = "f55fcf276e611d616ba33237e1260fbc13cc39f40925b9b7ab09a420206481d6";
    assert_eq!(sha256(&tagged()), wanted);
}

#[test]
fn a_layer_compressed_on_commit_is_the_one_others_write() {
    let id = "07070707-1111-4222-8333-000000000007";
    let lz4 = single(b"", id, NIL, Some(packing(Codec::Lz4, 4096)));
    assert_eq!(sha256(&lz4), "a85d9e24a0f72a212a02d7be359ea14a6dd3f2d836a4c6dfb53f1cff8515c041");
    let zstd = single(b"", id, NIL, Some(packing(Codec::Zstd, 65536)));
    assert_eq!(sha256(&zstd), "382d58c42b28ad0affb7e42b4b0b65f613f51ef73cebe6e74433f29e0b4e1d60");
}

#[test]
fn a_file_compressed_by_itself_is_the_one_others_write() {
    let trailer_only = |codec, block_size, checksums| Packing {
        codec,
        block_size,
        checksums,
        complete_header: false,
        threads: 2,
    };
    let cases = [
        (
            trailer_only(Codec::Lz4, 16384, true),
            "c8f4349343918bf69d739fe703d336a591d223c2c668b7309dffb1f1874caf44",
        ),
        (
            trailer_only(Codec::Zstd, 4096, true),
            "eb509053f61eb116bf762984da0b8e9b0f15862419d67ea5c618acdd9bfb0ff0",
        ),
        (
            trailer_only(Codec::Lz4, 4096, false),
            "9d3aeaf18d94bf941c1218947032248bde1216826bfdd7797ea6fe24f7dc1f57",
        ),
        (
            Packing { complete_header: true, ..trailer_only(Codec::Lz4, 65536, true) },
            "fd98de4842ef9c1b1af08abadcf4407d8b5567d337cb98a42ee01f39bda2d034",
        ),
    ];
    for (packing, wanted) in cases {
        let file = packed(packing);
        assert_eq!(sha256(&file), wanted, "{packing:?}");
        reads_to(&format!("{packing:?}"), &[file], crate::golden::SINGLE);
    }
}

/// That layers others could have written, byte for byte, hold what those say is in them: for the library, and for a reader
/// that knows nothing but the page of the format.
fn reads_to(name: &str, layers: &[Vec<u8>], wanted: &str) {
    let opened = layers.iter().map(|bytes| layer(name, bytes).unwrap()).collect();
    assert_eq!(sha256(&whole(&stack(opened))), wanted, "{name}");
    assert_eq!(sha256(&naive::read(layers)), wanted, "{name}, by its page");
}

#[test]
fn what_others_wrote_is_read_alike_by_the_library_and_by_the_page_of_the_format() {
    use crate::golden::{LOG, SINGLE, STACK, TAR};
    let id = "07070707-1111-4222-8333-000000000007";
    let single = |codec, size| single(b"", id, NIL, Some(packing(codec, size)));
    reads_to("l0.lsmt", &[tagged()], SINGLE);
    reads_to("commit_lz4_4k", &[single(Codec::Lz4, 4096)], SINGLE);
    reads_to("commit_zstd_64k", &[single(Codec::Zstd, 65536)], SINGLE);
    reads_to("c_stack", &stack_layers(), STACK);
    for name in ["d_tar/pax.tar", "d_tar/ustar.tar"] {
        reads_to(name, &[kept(name)], TAR);
    }
    reads_to("log.commit_sealed.zf", &[kept("f_rw/log.commit_sealed.zf")], LOG);
    let images = ["e_ext4/l0.obd", "e_ext4/l1.obd", "e_ext4/l2.obd"].map(kept);
    let image = "d89786867f257fba737ef0cce09d9826c8a15b4d5e503a90ce3ad22cc5000e27";
    reads_to("e_ext4", &images, image);
    for (name, wanted) in [
        ("n256", "8999b6fd9c0702e5c87b8c21ff39372062b6c230b5e173278dcea34418151a1b"),
        ("n257", "8d626ceb80be4113b0222d3dbfbb77fc02a0034560d34ffece68b655ea44d035"),
    ] {
        let log = replayed(&format!("k_index_256/{name}.ops"), &new(4 << 20, NIL, NIL));
        reads_to(name, &[committed(&log.disk, &Sealing::default())], wanted);
    }
}

/// What a file system tells of holes decides where a sparse upper's layer has entries, so its layers are compared
/// elsewhere by what they read as; the upper's own bytes are the same anywhere.
#[test]
fn a_sparse_upper_is_the_one_others_write() {
    let of_sparse = new(
        1 << 20,
        "2e2e2e2d-1111-4222-8333-00000000012d",
        "2f2f2f2e-1111-4222-8333-00000000012e",
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparse");
    let upper = kiln_overlaybd::Upper::create_sparse(&path, &of_sparse).unwrap();
    let disk = kiln_overlaybd::Writable::new(upper, None).unwrap();
    replay("f_rw/sparse.ops", &disk);
    drop(disk);
    let wanted = "42a665ddc856f2381d7324d2157fb1736150db6581fb28e6bcadb530528313d4";
    assert_eq!(sha256(&std::fs::read(&path).unwrap()), wanted);
}

#[test]
fn a_layer_in_a_tar_is_the_one_others_write() {
    let log = replayed("d_tar/l0.ops", &new(1 << 20, NIL, NIL));
    let plain =
        Sealing { uuid: uuid("c9c9c9c9-1111-4222-8333-0000000000c9"), ..Sealing::default() };
    let digest = "0d0c157a0eed96d45e1eb4e2fedc5d6566af0395f8c9487360eb8aab7f33242d";
    assert_eq!(sha256(&committed(&log.disk, &plain)), digest);
    let wrapped = Sealing { packing: Some(Packing::default()), in_tar: true, ..plain.clone() };
    assert!(committed(&log.disk, &wrapped) == kept("d_tar/pax.tar"));
    // Others ignore the wish for a tar here; a reader finds the layer in it all the same.
    let tar = committed(&log.disk, &Sealing { in_tar: true, ..plain });
    assert_eq!(&tar[1536..1540], b"LSMT");
    assert_eq!(sha256(&whole(&disk("plain.tar", &tar))), crate::golden::TAR);
}

fn stack_layers() -> Vec<Vec<u8>> {
    let ids = [
        NIL,
        "65656565-1111-4222-8333-000000000065",
        "66666666-1111-4222-8333-000000000066",
        "67676767-1111-4222-8333-000000000067",
        "68686868-1111-4222-8333-000000000068",
        "69696969-1111-4222-8333-000000000069",
    ];
    let packings = [
        None,
        Some(packing(Codec::Lz4, 4096)),
        Some(packing(Codec::Zstd, 4096)),
        Some(packing(Codec::Lz4, 4096)),
        Some(packing(Codec::Lz4, 65536)),
    ];
    let layers = packings.into_iter().enumerate().map(|(number, packing)| {
        let log = replayed(&format!("c_stack/l{number}.ops"), &new(4 << 20, NIL, NIL));
        let sealing = Sealing {
            uuid: uuid(ids[number + 1]),
            parent: uuid(ids[number]),
            user_tag: Vec::new(),
            packing,
            in_tar: number == 3,
        };
        committed(&log.disk, &sealing)
    });
    layers.collect()
}

#[test]
fn the_layers_of_a_stack_and_their_merger_are_those_others_write() {
    let layers = stack_layers();
    let wanted = "e53a69821b824a549ba1f8c616fc560249c1ec1476c6e65739f6c778a36fea0f";
    assert_eq!(sha256(&layers[0]), wanted);
    for (number, bytes) in layers.iter().enumerate().skip(1) {
        let name = format!("c_stack/l{number}.obd");
        assert!(*bytes == kept(&name), "{name}");
    }
    let stack = stack(layers.iter().map(|bytes| layer("layer", bytes).unwrap()).collect());
    assert_eq!(stack.0.segments().len(), 62);
    let read = sha256(&whole(&stack));
    assert_eq!(read, "3b160f0d8549f89875ee94ed3996aec98e7948795a26dd4ec57bf7591fdb2f71");
    let merge = |packing| {
        let sealing = Sealing { packing, ..Sealing::default() };
        stack.0.merge(Cursor::new(Vec::new()), &sealing).unwrap().out.into_inner()
    };
    let plain = merge(None);
    assert_eq!(sha256(&plain), "a4ed12105453ff9f7ffc713f97e03d9e52a9c1e6d1d4410bc6f4d688e5fb2e82");
    let packed = merge(Some(Packing { complete_header: false, ..Packing::default() }));
    assert_eq!(sha256(&packed), "226dbb00641c89d27b0a9512936fa60e9f6a61207cbecd39e8d21ea5fa5032e3");
    assert_eq!(sha256(&whole(&disk("merged", &packed))), read);
}

#[test]
fn indexes_of_a_full_page_and_of_one_entry_more_are_those_others_write() {
    let cases = [
        ("n256", "57fe003a6cb7f7c678050e8e7d83fb2997b61eecf41607251cf35e6404da5d54"),
        ("n257", "ec6d87b2aac86d61f9e69435a608441c35127016fccb97699f61388b11287cfd"),
    ];
    for (name, wanted) in cases {
        let log = replayed(&format!("k_index_256/{name}.ops"), &new(4 << 20, NIL, NIL));
        assert_eq!(sha256(&committed(&log.disk, &Sealing::default())), wanted, "{name}");
    }
}

#[test]
fn a_log_its_seal_and_its_commits_are_those_others_write() {
    let id = "2e2e2e2d-1111-4222-8333-00000000012d";
    let of_log = new(1 << 20, id, "2f2f2f2e-1111-4222-8333-00000000012e");
    let log = replayed("f_rw/log.ops", &of_log);
    let digest = "2e3534e949532047484e885e9f17b711cc1b59be6ec52724806a8a043187764c";
    assert_eq!(sha256(&log.data()), digest);
    assert!(log.index() == kept("f_rw/log.idx"));
    let commit = committed(&log.disk, &Sealing::default());
    let wanted = "857246f55ee7a4c6224b5ab1f3235c434dea85ac103e5e797cb99a05b8a0784b";
    assert_eq!(sha256(&commit), wanted);
    let (upper, _) = log.disk.into_parts().unwrap();
    upper.seal().unwrap();
    let sealed = std::fs::read(log.folder.path().join("data")).unwrap();
    assert_eq!(sealed.len(), 366_080);
    let end = 361_472 + 24 * 16;
    assert!(sealed[end..end + 128].iter().all(|byte| *byte == 0), "nothing of the heap is in it");
    let stack = stack(vec![layer("log.sealed", &sealed).unwrap()]);
    assert_eq!(stack.0.segments().len(), 24);
    let sealing = Sealing { packing: Some(Packing::default()), ..Sealing::default() };
    let merged = stack.0.merge(Cursor::new(Vec::new()), &sealing).unwrap();
    assert!(merged.out.into_inner() == kept("f_rw/log.commit_sealed.zf"));
}
