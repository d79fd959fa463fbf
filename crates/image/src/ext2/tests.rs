//! Disks from inventories, looked at with debugfs. Directories are in `tests/ext2`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::{Ext2Error, Options, Plan, Time, Tree};
use crate::inventory::{Content, Entry, GuestPath, Inventory, Node, Owner, Stamp};

const MODIFIED: Time = Time { seconds: 1_700_000_000, nanos: 0 };

fn put(inventory: &mut Inventory, path: &str, permissions: u32, node: Node) {
    inventory
        .put(GuestPath::new(path).unwrap(), Entry { owner: Owner::ROOT, permissions, node })
        .unwrap();
}

fn host_file(path: &Path) -> Node {
    let stamp = Stamp::of(&fs::symlink_metadata(path).unwrap());
    Node::File(Content::Host { path: path.to_owned(), stamp })
}

fn debugfs(image: &Path, request: &str) -> String {
    let mut command = Command::new("debugfs");
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let output = command.arg("-R").arg(request).arg(image).output();
    let output = output.expect("debugfs is needed: run script/bootstrap");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn an_inventory_becomes_a_disk_that_belongs_to_root() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    fs::write(&program, vec![b'p'; 10_000]).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o640)).unwrap();
    let mut inventory = Inventory::default();
    put(&mut inventory, "/usr/bin/one", 0o755, host_file(&program));
    put(&mut inventory, "/usr/bin/two", 0o755, host_file(&program));
    put(&mut inventory, "/usr/bin/private", 0o700, host_file(&program));
    put(&mut inventory, "/bin", 0o777, Node::Symlink(b"usr/bin".to_vec()));
    put(&mut inventory, "/dev/console", 0o600, Node::CharDevice { major: 5, minor: 1 });
    put(&mut inventory, "/run/pipe", 0o600, Node::Fifo);
    let bytes: Arc<[u8]> = b"guest\n".as_slice().into();
    put(&mut inventory, "/etc/hostname", 0o644, Node::File(Content::Bytes(bytes)));
    let large: Arc<[u8]> = vec![b'l'; 70_000].into();
    put(&mut inventory, "/etc/large", 0o644, Node::File(Content::Bytes(large)));

    let mut tree = Tree::new();
    tree.add_inventory(&inventory, MODIFIED).unwrap();
    let plan = Plan::new(tree, &Options::default()).unwrap();
    let image = folder.path().join("image");
    plan.write(&fs::File::create(&image).unwrap()).unwrap();

    assert_eq!(debugfs(&image, "cat /etc/hostname"), "guest\n");
    assert_eq!(debugfs(&image, "cat /etc/large"), "l".repeat(70_000));
    assert_eq!(debugfs(&image, "cat /usr/bin/private"), "p".repeat(10_000));
    let one = debugfs(&image, "stat /usr/bin/one");
    assert_eq!(one, debugfs(&image, "stat /usr/bin/two"), "one file with two names");
    for part in ["Links: 2", "Mode:  0755", "User:     0", "Size: 10000", "mtime: 0x6553f100"] {
        assert!(one.contains(part), "{part} in {one}");
    }
    let private = debugfs(&image, "stat /usr/bin/private");
    assert!(private.contains("Mode:  0700") && private.contains("Links: 1"), "{private}");
    assert!(debugfs(&image, "stat /bin").contains("Fast link dest: \"usr/bin\""));
    let console = debugfs(&image, "stat /dev/console");
    assert!(console.contains("Device major/minor number: 05:01"), "{console}");

    fs::write(&program, vec![b'q'; 10_000]).unwrap();
    let error = plan.write(&tempfile::tempfile().unwrap()).unwrap_err();
    assert!(matches!(error, Ext2Error::Changed { .. }), "{error}");
}

#[test]
fn what_ext2_cannot_hold_is_refused_by_name() {
    let refused = |path: &str, node| {
        let mut inventory = Inventory::default();
        put(&mut inventory, path, 0o644, node);
        let mut tree = Tree::new();
        tree.add_inventory(&inventory, MODIFIED).unwrap();
        Plan::new(tree, &Options::default()).unwrap_err().to_string()
    };
    let long = refused("/a/link", Node::Symlink(vec![b'x'; 4096]));
    assert_eq!(long, "ext2 cannot hold /a/link: the link's target is longer than 4095 bytes");
    let name = refused(&format!("/a/{}", "n".repeat(256)), Node::Fifo);
    assert_eq!(name, "ext2 cannot hold /a: a name in it is too long");
    let lost = refused("/lost+found", Node::Fifo);
    assert_eq!(lost, "ext2 cannot hold /lost+found: it must be a directory");
}
