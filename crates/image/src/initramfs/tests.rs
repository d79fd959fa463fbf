use std::io::{Read as _, Seek as _};
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::inventory::Owner;
use crate::newc::{Member, Reader};

fn path(text: &str) -> GuestPath {
    GuestPath::new(text).unwrap()
}

fn host_file(path: &Path) -> Entry {
    let stamp = Stamp::of(&path.symlink_metadata().unwrap());
    let node = Node::File(Content::Host { path: path.to_owned(), stamp });
    Entry { owner: Owner::ROOT, permissions: stamp.permissions(), node }
}

fn bytes(inventory: &Inventory) -> Vec<u8> {
    let (mut file, written) = write(inventory, 42, tempfile::tempfile().unwrap()).unwrap();
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(written.bytes, bytes.len() as u64);
    bytes
}

#[test]
fn the_same_inventory_gives_the_same_bytes_and_hard_links_stay_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    std::fs::write(&one, vec![7; 10_000]).unwrap();
    std::fs::set_permissions(&one, std::fs::Permissions::from_mode(0o4755)).unwrap();
    std::fs::hard_link(&one, &two).unwrap();
    let mut inventory = Inventory::default();
    inventory.put(path("/usr/one"), host_file(&one)).unwrap();
    inventory.put(path("/usr/two"), host_file(&two)).unwrap();
    let node = Node::CharDevice { major: 5, minor: 1 };
    inventory
        .put(path("/dev/console"), Entry { owner: Owner::ROOT, permissions: 0o600, node })
        .unwrap();

    let first = bytes(&inventory);
    assert_eq!(first, bytes(&inventory));

    let mut reader = Reader::new(std::io::Cursor::new(&first)).unwrap();
    let members: Vec<Member> = reader.by_ref().map(Result::unwrap).collect();
    let names: Vec<_> = members.iter().map(|m| m.name.escape_ascii().to_string()).collect();
    assert_eq!(names, ["dev", "dev/console", "usr", "usr/one", "usr/two"]);
    assert!(members.iter().all(|member| member.modified == 42 && member.owner == (0, 0)));
    assert_eq!((members[1].mode, members[1].device), (0o020_600, (5, 1)));
    let [.., one, two] = &members[..] else { panic!("{members:?}") };
    assert_eq!((one.inode, one.links, one.mode), (two.inode, 2, 0o104_755));
    assert_eq!((one.data_len, two.data_len), (0, 10_000), "the last name carries the data");
    assert_eq!(two.data_at % 4096, 0);
    assert_eq!(reader.data(two, 10_000).unwrap(), vec![7; 10_000]);
}

#[test]
fn a_file_that_changed_since_it_was_looked_at_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let changes: [fn(&Path); 4] = [
        |file| std::fs::write(file, "longer than before").unwrap(),
        |file| std::fs::remove_file(file).unwrap(),
        |file| {
            std::fs::remove_file(file).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", file).unwrap();
        },
        |file| std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap(),
    ];
    for change in changes {
        let _ = std::fs::remove_file(&file);
        std::fs::write(&file, "before").unwrap();
        let mut inventory = Inventory::default();
        inventory.put(path("/file"), host_file(&file)).unwrap();
        change(&file);
        let error = write(&inventory, 0, tempfile::tempfile().unwrap()).unwrap_err();
        assert!(matches!(error, InitramfsError::Changed { .. }), "{error}");
    }
}
