use super::*;
use proptest::prelude::*;

fn inline(text: &str) -> ManifestSource {
    ManifestSource {
        name: "guest.toml".to_owned(),
        text: text.to_owned(),
        folder: Some(PathBuf::from("/folder")),
        part: Part::Whole,
    }
}

fn refusal(text: &str) -> String {
    Manifest::parse(&inline(text)).unwrap_err().to_string()
}

#[test]
fn everything_a_manifest_can_say_is_understood() {
    let manifest = Manifest::parse(&inline(
        r#"
        include = ["base"]
        bases = [{ source = "rootfs.tar.zst" }, { source = "/saved.tar", image = "tool:1", optional = true }]
        packages = ["bash (>= 5)", "?strace"]
        host_files = ["/etc/ssl/*.pem"]
        binaries = ["mkfs.btrfs", "/usr/bin/fio", "?strace"]
        libraries = ["?libnss_files.so.2"]
        modules = ["btrfs", "?zram"]
        firmware = ["?regulatory.db"]
        directories = ["/srv/"]
        exclude = ["/usr/share/doc"]
        files = [
            { path = "/etc/x", source = "x.conf" },
            { path = "/etc/y", text = "hello", mode = "0600", optional = true },
        ]
        symlinks = [{ path = "/etc/mtab", target = "/proc/self/mounts" }]
        [[trees]]
        path = "/opt/tests"
        source = "/home/tests"
        programs = true
        "#,
    ))
    .unwrap();
    assert_eq!(manifest.include, ["base"]);
    assert_eq!(manifest.bases[0].path, PathBuf::from("/folder/rootfs.tar.zst"));
    let saved = Source { path: "/saved.tar".into(), image: Some("tool:1".into()), optional: true };
    assert_eq!(manifest.bases[1], saved);
    assert_eq!(manifest.packages[0].name, "bash (>= 5)");
    assert!(manifest.packages[1].optional && !manifest.host_files[0].optional);
    assert_eq!(manifest.binaries[2], Wanted { name: "strace".to_owned(), optional: true });
    assert_eq!(manifest.modules[0], Wanted { name: "btrfs".to_owned(), optional: false });
    assert_eq!(manifest.files[0].content, PlacedContent::Source("/folder/x.conf".into()));
    assert_eq!(manifest.files[1].mode, Some(0o600));
    assert_eq!(manifest.directories, [GuestPath::new("/srv").unwrap()]);
    assert!(manifest.trees[0].programs && !manifest.trees[0].optional);
    assert_eq!(manifest.symlinks[0].target, "/proc/self/mounts");
}

#[test]
fn a_mistake_is_named_with_its_line_and_what_was_likely_meant() {
    let all = [
        "binaries = []\nbinarys = [\"x\"]",
        "colour = 1",
        "binaries = \"bash\"",
        "binaries = [\n\"bash\",\n7]",
        "binaries = [\"bin/x\"]",
        "binaries = [\"?\"]",
        "files = [{ path = \"/x\", sorce = \"y\" }]",
        "files = [{ path = \"/x\" }]",
        "files = [{ path = \"x\", text = \"\" }]",
        "files = [{ path = \"/a/../b\", text = \"\" }]",
        "files = [{ path = \"/x\", source = \"~/y\" }]",
        "files = [{ path = \"/x\", text = \"\", mode = \"rwx\" }]",
        "trees = [{ path = \"/x\" }]",
        "symlinks = [{ path = \"/x\", target = \"\" }]",
        "exclude = [\"doc\"]",
        "bases = [\"rootfs.tar\"]",
        "bases = [{ source = \"x\", imago = \"y\" }]",
        "bases = [{ image = \"y\" }]",
        "packages = [\"bash, sed\"]",
        "packages = \"bash\"",
        "host_files = [\"etc/passwd\"]",
        "host_files = [\"/usr/../etc\"]",
        "directories = [\"/\"]",
        "binaries = [",
    ]
    .map(refusal)
    .join("\n");
    insta::assert_snapshot!(all);
}

#[test]
fn the_guest_table_of_a_scenario_is_a_manifest_with_the_scenarios_lines() {
    let scenario = |text: &str| ManifestSource { part: Part::GuestTable, ..inline(text) };
    let text = "name = \"x\"\n[guest]\nbinaries = [\"a\"]\n[vm]\ncpus = 2\n";
    let manifest = Manifest::parse(&scenario(text)).unwrap();
    assert_eq!(manifest.binaries.len(), 1);
    assert_eq!(Manifest::parse(&scenario("name = \"x\"")).unwrap(), Manifest::default());
    let error = Manifest::parse(&scenario("name = \"x\"\n[guest]\nmodulse = []")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "guest.toml line 3: unknown key `modulse` in [guest]: did you mean `modules`?"
    );
}

#[test]
fn the_modules_a_guest_needs_are_those_of_its_includes_too_without_optional_ones() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("net.toml"), "modules = [\"dm-mod\", \"?veth\"]").unwrap();
    let text = "name = \"x\"\n[guest]\ninclude = [\"net\"]\nmodules = [\"btrfs\", \"dm-mod\"]";
    let scenario = ManifestSource {
        part: Part::GuestTable,
        folder: Some(folder.path().to_owned()),
        ..inline(text)
    };
    assert_eq!(Contents::load(&scenario).unwrap().required_modules(), ["dm-mod", "btrfs"]);
}

#[test]
fn includes_come_first_and_each_counts_once() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("top.toml", "include = [\"left\", \"sub/right.toml\"]\nbinaries = [\"top\"]");
    write("left.toml", "include = [\"common\"]\nbinaries = [\"left\"]");
    write("common.toml", "binaries = [\"common\"]\nfiles = [{ path = \"/x\", source = \"x\" }]");
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    write(
        "sub/right.toml",
        "include = [\"../common\", \"simple-example\"]\nbinaries = [\"right\"]",
    );

    let top = ManifestSource::read(&folder.path().join("top.toml")).unwrap();
    let contents = Contents::load(&top).unwrap();
    let names: Vec<&str> =
        contents.manifest.binaries.iter().map(|wanted| wanted.name.as_str()).collect();
    assert_eq!(names[..2], ["common", "left"]);
    assert_eq!(names[names.len() - 2..], ["right", "top"]);
    assert!(names.contains(&"bash"), "a manifest that ships with Kiln is found by its name");
    assert_eq!(names.iter().filter(|name| **name == "common").count(), 1);
    let source = PlacedContent::Source(folder.path().join("x"));
    assert_eq!(contents.manifest.files[0].content, source, "relative to who says so");
}

#[test]
fn manifests_that_include_each_other_are_refused_with_the_whole_circle() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("a.toml", "include = [\"b\"]");
    write("b.toml", "include = [\"./a.toml\"]");
    let top = ManifestSource::read(&folder.path().join("a.toml")).unwrap();
    let error = Contents::load(&top).unwrap_err().to_string();
    let shown = error.replace(&format!("{}/", folder.path().display()), "");
    assert_eq!(shown, "manifests include each other: a.toml -> b.toml -> ./a.toml");
}

#[test]
fn a_scenario_may_have_the_name_of_the_shipped_manifest_it_includes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("simple-example.toml");
    let text = "name = \"simple-example\"\n[guest]\ninclude = [\"simple-example\"]\n";
    std::fs::write(&path, text).unwrap();
    let by_path = ManifestSource::read_scenario(&path).unwrap();
    let folder = Some(folder.path().to_owned());
    let by_name = ManifestSource::of_scenario("simple-example".into(), text.into(), folder);
    for source in [by_path, by_name] {
        let contents = Contents::load(&source).unwrap();
        assert!(contents.manifest.binaries.iter().any(|wanted| wanted.name == "bash"));
    }
}

#[test]
fn an_include_that_is_nowhere_is_named_with_where_it_was_searched() {
    let error = Contents::load(&inline("include = [\"bass\"]")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "guest.toml includes \"bass\", which is neither /folder/bass.toml nor one of those that ship with Kiln (base, simple-example)"
    );
}

#[test]
fn the_manifests_that_ship_with_kiln_are_right() {
    for name in shipped_names() {
        Contents::load(&ManifestSource::shipped(name).unwrap()).unwrap();
    }
    assert!(ManifestSource::shipped("base.toml").is_some());
}

proptest! {
    #[test]
    fn no_text_panics(text in "([a-z]{0,9}( = )?[\\[\\]{}\"',.\n?/0-9=]{0,6}){0,9}") {
        let _ = Manifest::parse(&inline(&text));
    }
}
