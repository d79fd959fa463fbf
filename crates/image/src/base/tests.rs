use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use crate::inventory::{Content, Entry, GuestPath, Inventory, Node};

/// A system of a test's own, and room beside it.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Bench {
        let bench = Bench(tempfile::tempdir().unwrap());
        fs::create_dir(bench.system()).unwrap();
        bench
    }

    fn system(&self) -> PathBuf {
        self.0.path().join("system")
    }

    fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.system().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn inventory(&self, base: &Base) -> Inventory {
        base.tree(&self.system()).unwrap().into_inventory().unwrap()
    }

    fn refused(&self, base: &Base) -> String {
        base.tree(&self.system()).unwrap_err().to_string()
    }
}

fn tar(members: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, text) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o640);
        header.set_uid(101);
        header.set_gid(102);
        builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn source(path: &str) -> Source {
    Source { path: path.into(), image: None, optional: false }
}

fn wanted(names: &[&str]) -> Vec<Wanted> {
    names.iter().map(|name| Wanted::written(name)).collect()
}

fn entry<'i>(inventory: &'i Inventory, path: &str) -> &'i Entry {
    inventory.get(&GuestPath::new(path).unwrap()).unwrap_or_else(|| panic!("no {path}"))
}

fn bytes(entry: &Entry) -> Vec<u8> {
    use std::os::unix::fs::FileExt as _;
    match &entry.node {
        Node::File(Content::Bytes(bytes)) => bytes.to_vec(),
        Node::File(Content::Host { path, .. }) => fs::read(path).unwrap(),
        Node::File(Content::Part { file, at, len }) => {
            let mut bytes = vec![0; usize::try_from(*len).unwrap()];
            fs::File::open(&file.path).unwrap().read_exact_at(&mut bytes, *at).unwrap();
            bytes
        }
        other => panic!("{other:?}"),
    }
}

const STATUS: &str = "Package: tool\nStatus: install ok installed\nVersion: 2\nDepends: base\n\n\
                      Package: base\nStatus: install ok installed\nVersion: 1\n";

#[test]
fn later_sources_lie_over_earlier_ones_and_packages_and_host_files_over_all() {
    let bench = Bench::new();
    let members = [("etc/name", "archive"), ("etc/tool.conf", "archive"), ("etc/own", "archive")];
    bench.write("base.tar", tar(&members));
    bench.write("more.tar.gz", gzip(&tar(&[("etc/name", "packed"), ("etc/more", "packed")])));
    bench.write("folder/etc/name", "folder");
    bench.write("var/lib/dpkg/status", STATUS);
    bench.write("var/lib/dpkg/info/tool.list", "/.\n/etc\n/etc/tool.conf\n/usr/bin/tool\n/gone\n");
    bench.write("var/lib/dpkg/info/base.list", "/.\n/usr\n/usr/share/doc/base\n");
    bench.write("etc/tool.conf", "host");
    bench.write("usr/bin/tool", "program");
    bench.write("usr/share/doc/base", "text");
    bench.write("srv/one.pem", "one");
    bench.write("srv/two.txt", "two");
    let base = Base {
        sources: vec![source("/base.tar"), source("/more.tar.gz"), source("/folder")],
        packages: wanted(&["tool (>= 2)", "?absent"]),
        host_files: wanted(&["/srv/*.pem", "?/srv/*.key"]),
        exclude: vec!["/usr/share/doc".to_owned()],
    };
    let inventory = bench.inventory(&base);
    let names: Vec<String> = inventory.entries().map(|(path, _)| path.to_string()).collect();
    let expected = [
        "/etc",
        "/etc/more",
        "/etc/name",
        "/etc/own",
        "/etc/tool.conf",
        "/srv",
        "/srv/one.pem",
        "/usr",
        "/usr/bin",
        "/usr/bin/tool",
    ];
    assert_eq!(names, expected);
    let text = |path: &str| String::from_utf8(bytes(entry(&inventory, path))).unwrap();
    let texts = ["/etc/name", "/etc/more", "/etc/own", "/etc/tool.conf"].map(text);
    assert_eq!(texts, ["folder", "packed", "archive", "host"]);
    let own = entry(&inventory, "/etc/own");
    assert_eq!((own.permissions, own.owner.user, own.owner.group), (0o640, 101, 102));
    assert!(matches!(own.node, Node::File(Content::Part { .. })), "it stays in its archive");
    let mut notes = inventory.notes.clone();
    notes.sort();
    assert_eq!(
        notes,
        [
            "/srv/*.key left out: it names nothing on this host",
            "1 files of packages are not there",
            "package absent left out: it is not installed",
        ]
    );
}

#[test]
fn everything_that_was_looked_at_is_remembered() {
    let bench = Bench::new();
    bench.write("base.tar", tar(&[("a", "a")]));
    bench.write("folder/below/file", "x");
    bench.write("etc/a.conf", "a");
    symlink("base.tar", bench.system().join("link.tar")).unwrap();
    let base = Base {
        sources: vec![source("/link.tar"), source("/folder")],
        host_files: wanted(&["/etc/*.conf", "?/nowhere/yet/*"]),
        ..Base::default()
    };
    let mut seen = Vec::new();
    base.gather(&bench.system(), &mut seen, &mut |archive| Ok(archive.clone())).unwrap();
    let system = fs::canonicalize(bench.system()).unwrap();
    for (name, listed) in [
        ("link.tar", false),
        ("base.tar", false),
        ("folder", true),
        ("folder/below", true),
        ("folder/below/file", false),
        ("etc", true),
        ("etc/a.conf", false),
        ("nowhere/yet", false),
    ] {
        let path = system.join(name);
        let found = seen.iter().any(|input| {
            let at = input.path.parent().and_then(|folder| fs::canonicalize(folder).ok());
            let at = at.unwrap_or_default().join(input.path.file_name().unwrap_or_default());
            (at == path || input.path.ends_with(name)) && input.listed == listed
        });
        assert!(found, "{name}");
    }
}

#[test]
fn what_cannot_be_had_is_named_with_a_cure() {
    let bench = Bench::new();
    bench.write("text", "no archive");
    bench.write("short.tar", &tar(&[("long", &"x".repeat(4000))])[..2048]);
    let sources = |path: &str| Base { sources: vec![source(path)], ..Base::default() };
    let packages = |names: &[&str]| Base { packages: wanted(names), ..Base::default() };
    let mut all = vec![
        bench.refused(&sources("/nowhere.tar")),
        bench.refused(&sources("/text")),
        bench.refused(&sources("/short.tar")),
        bench.refused(&packages(&["tool"])),
        bench.refused(&Base { host_files: wanted(&["/etc/*.conf"]), ..Base::default() }),
    ];
    let optional = bench.inventory(&packages(&["?tool"]));
    assert!(optional.notes[0].starts_with("packages left out: cannot read"), "{optional:?}");
    bench.write("var/lib/dpkg/status", STATUS);
    all.push(bench.refused(&packages(&["tol"])));
    all.push(bench.refused(&packages(&["tool (>= 3)"])));
    let gone = Base {
        sources: vec![Source { optional: true, ..source("/nowhere.tar") }],
        ..Base::default()
    };
    assert_eq!(bench.inventory(&gone).notes, ["/nowhere.tar left out: it is not there"]);
    let (system, real) = (bench.system(), fs::canonicalize(bench.system()).unwrap());
    let mut all = all.join("\n");
    for folder in [real, system] {
        all = all.replace(&folder.display().to_string(), "SYSTEM");
    }
    insta::assert_snapshot!(all, @r#"
    there is no /nowhere.tar, which should lie at the base: correct the path
    /text is no directory, no tar archive and no container image
    SYSTEM/short.tar: "long" is cut off
    cannot read SYSTEM/var/lib/dpkg/status
    /etc/*.conf names nothing on this host: correct it, or mark it optional by writing "?/etc/*.conf"
    package tol is not installed (tool is): install it, or mark it optional by writing "?tol"
    package tool (>= 3) is not installed: install it, or mark it optional by writing "?tool (>= 3)"
    "#);
}

#[test]
fn what_this_user_may_not_read_of_packages_is_told_and_of_directories_refused() {
    if rustix::process::geteuid().is_root() {
        return; // Who may read everything; tests/command of the program changes its user for that.
    }
    let bench = Bench::new();
    bench.write("folder/secret", "x");
    let secret = bench.system().join("folder/secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let listed = Base { host_files: wanted(&["/folder/*"]), ..Base::default() };
    let notes = bench.inventory(&listed).notes;
    assert_eq!(notes, ["1 file that this user may not read left out: /folder/secret"]);
    let mut whole = Base { sources: vec![source("/folder")], ..Base::default() };
    assert!(bench.refused(&whole).contains("may not read"), "{}", bench.refused(&whole));
    whole.exclude = vec!["/secret".to_owned()];
    assert!(bench.inventory(&whole).is_empty());
}
