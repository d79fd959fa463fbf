//! Uppers above layers, opened again, cut short, and compared with a byte array.

use kiln_block::testing::{Abilities, Dice, conforms};
use kiln_block::{BlockDevice, ByteLen, ByteOffset};
use kiln_overlaybd::{NewUpper, Sealing, Upper, Writable};

use crate::files::{Log, committed, disk, kept, layer, replay, replayed, sha256, stack, whole};

fn one_mib() -> NewUpper {
    NewUpper { virtual_size: 1 << 20, ..NewUpper::default() }
}

fn sparse(folder: &tempfile::TempDir, lower: bool) -> Writable {
    let upper = Upper::create_sparse(&folder.path().join("sparse"), &one_mib()).unwrap();
    Writable::new(upper, lower.then(lower_stack)).unwrap()
}

/// The layer of 1 MiB that the uppers here lie on.
fn lower_stack() -> kiln_overlaybd::Stack {
    stack(vec![layer("lower", &kept("d_tar/pax.tar")).unwrap()]).0
}

#[test]
fn every_kind_of_disk_keeps_the_contract_of_disks() {
    let writable = Abilities { writable: true, ..abilities() };
    conforms(&Log::new(&one_mib(), None).disk, writable);
    let folder = tempfile::tempdir().unwrap();
    conforms(&sparse(&folder, false), writable);
    conforms(&disk("lower", &kept("d_tar/pax.tar")), abilities());
}

fn abilities() -> Abilities {
    Abilities { granularity: 1, writable: false }
}

#[test]
fn a_log_that_others_padded_reads_the_same() {
    let log = replayed(
        "f_rw/loggc.ops",
        &NewUpper { uuid: "2e2e2e2d-1111-4222-8333-00000000012d".parse().unwrap(), ..one_mib() },
    );
    let index = log.folder.path().join("padded");
    std::fs::write(&index, kept("f_rw/loggc.idx")).unwrap();
    let Log { folder, disk, .. } = log;
    drop(disk);
    let upper = Upper::open(&folder.path().join("data"), Some(&index)).unwrap();
    let disk = Writable::new(upper, None).unwrap();
    let wanted = "560b2ef675062743a80d7accbd79742dd76260a14cc53b9271e770d22ccd6a35";
    assert_eq!(sha256(&whole(&disk)), wanted);
}

#[test]
fn an_upper_has_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let first = Upper::create_log(&path("data"), &path("idx"), &one_mib()).unwrap();
    let told = Upper::open(&path("data"), Some(&path("idx"))).unwrap_err().to_string();
    assert!(told.contains("data is an upper that is being written"), "{told}");
    drop(first);
    let again = Upper::open(&path("data"), Some(&path("idx"))).unwrap();
    // The index alone must not be another upper's either.
    std::fs::copy(path("data"), path("other")).unwrap();
    let told = Upper::open(&path("other"), Some(&path("idx"))).unwrap_err().to_string();
    assert!(told.contains("idx is an upper that is being written"), "{told}");
    drop(again);
    let sparse = Upper::create_sparse(&path("sparse"), &one_mib()).unwrap();
    assert!(Upper::open(&path("sparse"), None).is_err());
    drop(sparse);
    Upper::open(&path("sparse"), None).unwrap();
}

#[test]
fn a_sparse_upper_commits_to_what_others_commit() {
    let folder = tempfile::tempdir().unwrap();
    let disk = sparse(&folder, false);
    replay("f_rw/sparse.ops", &disk);
    let wanted = "85a70d9cd6079fb63fa66ab32a7a0708e60eebc9aad14212c18bd836b868066e";
    assert_eq!(sha256(&whole(&disk)), wanted);
    drop(disk);
    let upper = Upper::open(&folder.path().join("sparse"), None).unwrap();
    let disk = Writable::new(upper, None).unwrap();
    assert_eq!(sha256(&whole(&disk)), wanted, "opened again");
    let sealed = committed(&disk, &Sealing::default());
    assert_eq!(sha256(&whole(&crate::files::disk("sealed", &sealed))), wanted, "committed");
}

/// A few hundred random changes, mirrored in a byte array.
fn scribble(disk: &Writable, mirror: &mut [u8], dice: &mut Dice, count: usize) {
    let size = mirror.len() as u64;
    for _ in 0..count {
        let len = 1 + dice.below(20_000);
        let at = dice.below(size - len);
        let (from, to) = (usize::try_from(at).unwrap(), usize::try_from(at + len).unwrap());
        match dice.below(6) {
            0 => {
                disk.write_zeroes(ByteOffset::new(at), ByteLen::new(len), false).unwrap();
                mirror[from..to].fill(0);
            }
            1 => {
                disk.discard(ByteOffset::new(at), ByteLen::new(len)).unwrap();
                // Zeros or what it was, in any mixture: the disk says which.
                let mut now = vec![0; to - from];
                disk.read_at(ByteOffset::new(at), &mut now).unwrap();
                for (new, old) in now.iter().zip(&mirror[from..to]) {
                    assert!(*new == 0 || new == old, "a discard brings back nothing older");
                }
                mirror[from..to].copy_from_slice(&now);
            }
            _ => {
                dice.fill(&mut mirror[from..to]);
                disk.write_at(ByteOffset::new(at), &mirror[from..to]).unwrap();
            }
        }
        let mut read = vec![0; to - from];
        disk.read_at(ByteOffset::new(at), &mut read).unwrap();
        assert!(read == mirror[from..to]);
    }
    assert!(whole(disk) == mirror);
}

#[test]
fn what_lies_below_never_comes_back_whatever_the_kind_of_upper() {
    for seed in 0..4 {
        let mut dice = Dice::seeded(seed);
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let is_log = seed % 2 == 0;
        let upper = if is_log {
            Upper::create_log(&path("data"), &path("idx"), &one_mib()).unwrap()
        } else {
            Upper::create_sparse(&path("data"), &one_mib()).unwrap()
        };
        let mut disk = Writable::new(upper, Some(lower_stack())).unwrap();
        let mut mirror = whole(&disk);
        for round in 0..3 {
            scribble(&disk, &mut mirror, &mut dice, 60);
            disk.flush().unwrap();
            let sealed = committed(&disk, &Sealing::default());
            let mut layers = vec![layer("lower", &kept("d_tar/pax.tar")).unwrap()];
            layers.push(layer("sealed", &sealed).unwrap());
            assert!(whole(&stack(layers)) == mirror, "committed, seed {seed}, round {round}");
            drop(disk);
            let upper = Upper::open(&path("data"), is_log.then(|| path("idx")).as_deref()).unwrap();
            disk = Writable::new(upper, Some(lower_stack())).unwrap();
            assert!(whole(&disk) == mirror, "opened again, seed {seed}, round {round}");
        }
    }
}

#[test]
fn an_upper_without_a_size_takes_and_keeps_that_of_the_stack() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let upper = Upper::create_log(&path("data"), &path("idx"), &NewUpper::default()).unwrap();
    assert!(Writable::new(upper, None).unwrap_err().to_string().contains("no size"));
    let open = || Upper::open(&path("data"), Some(&path("idx"))).unwrap();
    let disk = Writable::new(open(), Some(lower_stack())).unwrap();
    assert_eq!(disk.size(), ByteLen::mib(1));
    drop(disk);
    assert_eq!(open().virtual_size(), 1 << 20);
    let upper = Upper::create_sparse(&path("sparse"), &NewUpper::default()).unwrap();
    let disk = Writable::new(upper, Some(lower_stack())).unwrap();
    assert_eq!(whole(&disk), whole(&crate::files::disk("lower", &kept("d_tar/pax.tar"))));
}

#[test]
fn an_upper_for_another_layer_is_refused() {
    let new =
        NewUpper { parent: "2f2f2f2e-1111-4222-8333-00000000012e".parse().unwrap(), ..one_mib() };
    let folder = tempfile::tempdir().unwrap();
    let upper = Upper::create_sparse(&folder.path().join("sparse"), &new).unwrap();
    let told = Writable::new(upper, Some(lower_stack())).unwrap_err().to_string();
    assert!(told.contains("belongs on layer 2F2F2F2E"), "{told}");
}

/// The order of data and index is what a power cut tests: whatever part of the index was written, the
/// data it speaks of is there, and what was flushed is not lost.
#[test]
fn flushed_writes_survive_a_cut_of_the_index_anywhere_behind_them() {
    let log = Log::new(&one_mib(), None);
    let block = |value: u8| vec![value; 4096];
    let write = |at: u64, value| log.disk.write_at(ByteOffset::new(at), &block(value)).unwrap();
    write(0, 1);
    write(8192, 2);
    log.disk.flush().unwrap();
    let flushed = log.index().len();
    write(0, 3);
    write(4096, 4);
    assert_eq!(log.index().len(), flushed, "the index waits for the data");
    log.disk.flush().unwrap();
    let (data, index) = (log.data(), log.index());
    for cut in flushed..=index.len() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("data"), &data).unwrap();
        std::fs::write(path("idx"), &index[..cut]).unwrap();
        let upper = Upper::open(&path("data"), Some(&path("idx"))).unwrap();
        let disk = Writable::new(upper, None).unwrap();
        let entries = (cut - flushed) / 16;
        let wanted = [if entries > 0 { 3 } else { 1 }, if entries > 1 { 4 } else { 0 }, 2];
        for (at, value) in (0u64..).step_by(4096).zip(wanted) {
            let mut read = block(9);
            disk.read_at(ByteOffset::new(at), &mut read).unwrap();
            assert!(read == block(value), "cut at {cut}, byte {at}");
        }
        disk.write_at(ByteOffset::new(4096), &block(7)).unwrap();
        disk.flush().unwrap();
        drop(disk);
        let upper = Upper::open(&path("data"), Some(&path("idx"))).unwrap();
        let mut read = block(9);
        let disk = Writable::new(upper, None).unwrap();
        disk.read_at(ByteOffset::new(4096), &mut read).unwrap();
        assert!(read == block(7), "a log that was cut goes on");
    }
}
