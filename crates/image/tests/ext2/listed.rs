//! Files named one by one, as packages name theirs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use kiln_block::ReadOnly;
use kiln_image::ext2::{Options, Plan, Tree};

use super::reader::{self, File};

fn listed(root: &Path, paths: &[&str]) -> (std::collections::BTreeMap<Vec<u8>, File>, usize) {
    let mut tree = Tree::new();
    let missing = tree.add_listed(root, paths.iter().map(Path::new)).unwrap();
    let plan = Plan::new(tree, &Options::default()).unwrap();
    (reader::read(&ReadOnly(plan)), missing)
}

#[test]
fn a_listed_file_comes_with_the_directories_and_links_on_its_way() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("usr/bin")).unwrap();
    fs::create_dir_all(root.path().join("usr/share")).unwrap();
    symlink("usr/bin", root.path().join("bin")).unwrap();
    symlink("/bin/one", root.path().join("usr/share/link")).unwrap();
    fs::write(root.path().join("usr/bin/one"), b"one").unwrap();
    fs::write(root.path().join("usr/bin/two"), b"two").unwrap();
    let (disk, missing) = listed(root.path(), &["/bin/one", "/usr/share/link", "/usr/bin/gone"]);
    assert_eq!(missing, 1);
    let names: Vec<String> = disk.keys().map(|name| String::from_utf8_lossy(name).into()).collect();
    let expected = ["", "/bin", "/lost+found", "/usr", "/usr/bin", "/usr/bin/one", "/usr/share"];
    assert_eq!(names[..7], expected);
    assert_eq!(names[7..], ["/usr/share/link"]);
    assert_eq!(disk[&b"/usr/bin/one"[..]].content, b"one");
    assert_eq!(disk[&b"/bin"[..]].content, b"usr/bin");
}

#[test]
fn links_that_lead_in_circles_are_an_error_that_names_one() {
    let root = tempfile::tempdir().unwrap();
    symlink("b", root.path().join("a")).unwrap();
    symlink("a", root.path().join("b")).unwrap();
    let error = Tree::new().add_listed(root.path(), [Path::new("/a/x")]).unwrap_err();
    assert!(error.to_string().contains("/a") || error.to_string().contains("/b"), "{error}");
}

#[test]
fn a_listed_file_lies_over_one_from_an_earlier_source() {
    let (below, above) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (root, text) in [(&below, "old"), (&above, "new")] {
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/name"), text).unwrap();
    }
    fs::write(below.path().join("etc/kept"), b"kept").unwrap();
    let mut tree = Tree::new();
    tree.add_directory(below.path()).unwrap();
    tree.add_listed(above.path(), [Path::new("/etc/name")]).unwrap();
    let plan = Plan::new(tree, &Options::default()).unwrap();
    let disk = reader::read(&ReadOnly(plan));
    assert_eq!(disk[&b"/etc/name"[..]].content, b"new");
    assert_eq!(disk[&b"/etc/kept"[..]].content, b"kept");
}
