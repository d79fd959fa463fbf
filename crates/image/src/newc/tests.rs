use std::io::{Seek as _, Write as _};
use std::process::{Command, Stdio};

use super::*;
use proptest::prelude::*;

const FILE: Attributes =
    Attributes { mode: 0o100_644, inode: 1, links: 1, owner: (0, 0), modified: 7, device: (0, 0) };

fn archive(write: impl FnOnce(&mut Writer)) -> std::fs::File {
    let mut writer = Writer::new(tempfile::tempfile().unwrap());
    write(&mut writer);
    let (mut file, len) = writer.finish().unwrap();
    assert_eq!(file.metadata().unwrap().len(), len, "the length told is the length written");
    file.rewind().unwrap();
    file
}

fn members(file: &std::fs::File) -> Vec<(Member, Vec<u8>)> {
    let mut reader = Reader::new(file).unwrap();
    let mut all = Vec::new();
    while let Some(member) = reader.next() {
        let member = member.unwrap();
        let data = reader.data(&member, u64::MAX).unwrap();
        all.push((member, data));
    }
    all
}

#[test]
fn data_larger_than_a_page_starts_at_a_page() {
    let mut source = tempfile::tempfile().unwrap();
    source.write_all(&vec![b'x'; 100_000]).unwrap();
    source.rewind().unwrap();
    let file = archive(|writer| {
        writer.member(b"small", FILE, b"12345").unwrap();
        writer.member_from(b"large", FILE, &source, 100_000).unwrap();
        writer.member(b"memory", FILE, &[b'y'; 5000]).unwrap();
    });
    let all = members(&file);
    assert_eq!(all[0].1, b"12345");
    assert_eq!(all[1].1, vec![b'x'; 100_000]);
    assert_eq!(all[2].1, vec![b'y'; 5000]);
    for (member, _) in &all[1..] {
        assert_eq!(member.data_at % PAGE, 0, "{}", member.name.escape_ascii());
    }
}

#[test]
fn a_name_too_long_to_be_padded_costs_the_alignment_and_nothing_else() {
    let name = [b'n'; 4000];
    let file = archive(|writer| writer.member(&name, FILE, &[1; 9000]).unwrap());
    let all = members(&file);
    assert_eq!(all[0].0.name, name);
    assert_eq!(all[0].1, [1; 9000]);
}

#[test]
fn a_file_of_4_gib_is_refused_before_anything_is_written() {
    let mut writer = Writer::new(tempfile::tempfile().unwrap());
    let source = tempfile::tempfile().unwrap();
    let error = writer.member_from(b"x", FILE, &source, 1 << 32).unwrap_err();
    assert!(matches!(error, WriteError::TooLarge(_)), "{error}");
    assert!(matches!(
        writer.member(&[b'n'; 4096], FILE, b"").unwrap_err(),
        WriteError::NameTooLong
    ));
}

#[test]
fn a_file_that_became_shorter_is_noticed() {
    for len in [100, 100_000] {
        let mut source = tempfile::tempfile().unwrap();
        source.write_all(&vec![1; len - 1]).unwrap();
        source.rewind().unwrap();
        let mut writer = Writer::new(tempfile::tempfile().unwrap());
        let error = writer.member_from(b"x", FILE, &source, len as u64).unwrap_err();
        assert!(matches!(error, WriteError::Shrunk), "{error}");
    }
}

#[test]
fn cpio_lists_and_unpacks_what_the_writer_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("archive");
    let mut file = archive(|writer| {
        let directory = Attributes { mode: 0o040_755, links: 2, ..FILE };
        writer.member(b"d", directory, b"").unwrap();
        writer.member(b"d/large", Attributes { inode: 2, ..FILE }, &[b'z'; 70_000]).unwrap();
        let link = Attributes { inode: 3, mode: 0o120_777, ..FILE };
        writer.member(b"d/link", link, b"large").unwrap();
        let twice = Attributes { inode: 4, links: 2, ..FILE };
        writer.member(b"e1", twice, b"").unwrap();
        writer.member(b"e2", twice, &[b'w'; 5000]).unwrap();
    });
    std::io::copy(&mut file, &mut std::fs::File::create(&path).unwrap()).unwrap();

    // Part of every Debian and Fedora; `script/bootstrap` installs it elsewhere.
    let listed = Command::new("cpio")
        .args(["-i", "-t", "--quiet"])
        .stdin(Stdio::from(std::fs::File::open(&path).unwrap()))
        .output()
        .expect("cpio is needed to check the archive: run script/bootstrap");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "d\nd/large\nd/link\ne1\ne2\n");

    let unpacked = Command::new("cpio")
        .args(["-i", "-d", "--quiet", "--no-absolute-filenames"])
        .current_dir(folder.path())
        .stdin(Stdio::from(std::fs::File::open(&path).unwrap()))
        .output()
        .unwrap();
    assert!(unpacked.status.success(), "{}", String::from_utf8_lossy(&unpacked.stderr));
    assert_eq!(std::fs::read(folder.path().join("d/link")).unwrap(), [b'z'; 70_000]);
    assert_eq!(std::fs::read(folder.path().join("e1")).unwrap(), [b'w'; 5000]);
    assert_eq!(std::fs::read(folder.path().join("e2")).unwrap(), [b'w'; 5000]);
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        items in prop::collection::vec(
            ("[a-z]{1,60}", prop::collection::vec(any::<u8>(), 0..9000), any::<u32>(), any::<u32>()),
            0..8,
        ),
    ) {
        let file = archive(|writer| {
            for (name, data, mode, number) in &items {
                let attributes = Attributes {
                    mode: *mode,
                    inode: *number,
                    links: mode ^ number,
                    owner: (number ^ 5, *mode),
                    modified: number.rotate_left(7),
                    device: (number >> 16, number & 0xffff),
                };
                writer.member(name.as_bytes(), attributes, data).unwrap();
            }
        });
        let all = members(&file);
        prop_assert_eq!(all.len(), items.len());
        for ((member, data), (name, written, mode, number)) in all.iter().zip(&items) {
            prop_assert_eq!(&member.name, name.as_bytes());
            prop_assert_eq!(data, written);
            prop_assert_eq!((member.mode, member.inode, member.links), (*mode, *number, mode ^ number));
            prop_assert_eq!(member.device, (number >> 16, number & 0xffff));
            prop_assert_eq!(member.owner, (number ^ 5, *mode));
        }
    }

    #[test]
    fn no_damage_panics_the_reader(at in 0usize..700, value: u8, cut in 0usize..700) {
        let mut file = archive(|writer| {
            writer.member(b"one", FILE, b"data").unwrap();
            writer.member(b"two", FILE, &[7; 30]).unwrap();
        });
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        let len = bytes.len();
        bytes[at % len] = value;
        bytes.truncate(len - cut % len);
        for member in Reader::new(std::io::Cursor::new(bytes)).unwrap() {
            let Ok(_) = member else { break };
        }
    }
}
