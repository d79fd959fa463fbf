use super::*;
use crate::manifest::{ManifestSource, Part};
use crate::testing::{SyntheticElf, SyntheticHost};

const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

fn contents(text: &str, folder: &Path) -> Contents {
    let source = ManifestSource {
        name: "guest.toml".to_owned(),
        text: text.to_owned(),
        folder: Some(folder.to_owned()),
        part: Part::Whole,
    };
    Contents::load(&source).unwrap()
}

fn resolve(root: &Path, text: &str) -> Result<Inventory, ClosureError> {
    let contents = contents(text, Path::new("/"));
    let mut closure = Closure::of(root, &contents, Inventory::default())?;
    closure.place(&contents)?;
    Ok(closure.inventory)
}

/// Paths of files and links, with what links say; without what every guest has.
fn shown(inventory: &Inventory) -> Vec<String> {
    let line = |(path, entry): (&GuestPath, &Entry)| match &entry.node {
        Node::Symlink(target) => Some(format!("{path} -> {}", target.escape_ascii())),
        Node::File(_) => Some(path.to_string()),
        _ => None,
    };
    inventory.entries().filter_map(line).collect()
}

/// A merged host with a loader, a libc and `/bin/sh`.
fn host() -> SyntheticHost {
    let host = SyntheticHost::new();
    host.link("/bin", "usr/bin")
        .link("/sbin", "usr/sbin")
        .link("/lib", "usr/lib")
        .link("/lib64", "usr/lib64")
        .link("/usr/lib64/ld.so", "../lib/x86_64-linux-gnu/ld-1.so")
        .file(&format!("{LIBRARIES}/ld-1.so"), SyntheticElf::library().bytes())
        .file(&format!("{LIBRARIES}/libc.so.6"), SyntheticElf::library().bytes())
        .file("/usr/bin/dash", program(&["libc.so.6"]).bytes())
        .link("/usr/bin/sh", "dash");
    host
}

fn program(needs: &[&str]) -> SyntheticElf {
    SyntheticElf::program("/lib64/ld.so").needs(needs)
}

#[test]
fn a_binary_brings_its_loader_libraries_and_every_link_on_the_way() {
    let host = host();
    host.link("/usr/bin/tool", "/etc/alternatives/tool")
        .link("/etc/alternatives/tool", "/usr/bin/tool-5")
        .file("/usr/bin/tool-5", program(&["libone.so.1", "libc.so.6"]).bytes())
        .link(&format!("{LIBRARIES}/libone.so.1"), "libone.so.1.2")
        .file(
            &format!("{LIBRARIES}/libone.so.1.2"),
            SyntheticElf::library().needs(&["libtwo.so"]).bytes(),
        )
        .file(&format!("{LIBRARIES}/libtwo.so"), SyntheticElf::library().bytes());
    let inventory = resolve(host.root(), "binaries = [\"tool\"]").unwrap();
    insta::assert_snapshot!(shown(&inventory).join("\n"), @r"
    /bin -> usr/bin
    /etc/alternatives/tool -> /usr/bin/tool-5
    /lib -> usr/lib
    /lib64 -> usr/lib64
    /sbin -> usr/sbin
    /usr/bin/tool -> /etc/alternatives/tool
    /usr/bin/tool-5
    /usr/lib/x86_64-linux-gnu/ld-1.so
    /usr/lib/x86_64-linux-gnu/libc.so.6
    /usr/lib/x86_64-linux-gnu/libone.so.1 -> libone.so.1.2
    /usr/lib/x86_64-linux-gnu/libone.so.1.2
    /usr/lib/x86_64-linux-gnu/libtwo.so
    /usr/lib64/ld.so -> ../lib/x86_64-linux-gnu/ld-1.so
    ");
}

#[test]
fn libraries_are_searched_where_the_loader_would_search_them() {
    let host = host();
    let library = || SyntheticElf::library().bytes();
    host.file("/opt/a/bin/run", program(&["liborigin.so"]).runpath("$ORIGIN/../lib").bytes())
        .file("/opt/a/lib/liborigin.so", SyntheticElf::library().needs(&["libplain.so"]).bytes())
        .file("/opt/a/lib/libplain.so", library())
        .file("/opt/b/run", program(&["libouter.so"]).rpath("${ORIGIN}/$LIB").bytes())
        .file("/opt/b/lib/libouter.so", SyntheticElf::library().needs(&["libinner.so"]).bytes())
        .file("/opt/b/lib/libinner.so", library())
        .file(&format!("{LIBRARIES}/libplain.so"), library());
    let shown =
        shown(&resolve(host.root(), "binaries = [\"/opt/a/bin/run\", \"/opt/b/run\"]").unwrap());
    let has = |path: &str| shown.iter().any(|line| line == path);
    assert!(has("/opt/a/lib/liborigin.so"));
    assert!(has(&format!("{LIBRARIES}/libplain.so")), "a runpath is not handed down");
    assert!(!has("/opt/a/lib/libplain.so"));
    assert!(
        has("/opt/b/lib/libouter.so") && has("/opt/b/lib/libinner.so"),
        "an rpath is handed down"
    );
}

#[test]
fn a_library_of_another_machine_is_passed_over() {
    let host = host();
    host.file("/etc/ld.so.conf", "/opt/foreign\n")
        .file("/opt/foreign/libx.so", SyntheticElf::library().machine(183).bytes())
        .file(&format!("{LIBRARIES}/libx.so"), SyntheticElf::library().bytes())
        .file("/usr/bin/x", program(&["libx.so"]).bytes());
    let shown = shown(&resolve(host.root(), "binaries = [\"x\"]").unwrap());
    assert!(shown.contains(&format!("{LIBRARIES}/libx.so")));
    assert!(!shown.contains(&"/opt/foreign/libx.so".to_owned()));
}

#[test]
fn a_library_only_ld_so_conf_leads_to_is_linked_to_where_the_guest_looks() {
    let host = host();
    host.file("/etc/ld.so.conf", "/opt/lib\n")
        .file("/opt/lib/libx.so", SyntheticElf::library().bytes())
        .file("/usr/bin/x", program(&["libx.so"]).bytes());
    let shown = shown(&resolve(host.root(), "binaries = [\"x\"]").unwrap());
    assert!(shown.contains(&"/opt/lib/libx.so".to_owned()));
    assert!(shown.contains(&format!("{LIBRARIES}/libx.so -> /opt/lib/libx.so")), "{shown:#?}");
}

#[test]
fn a_script_brings_its_interpreter_also_through_env() {
    let host = host();
    host.file("/usr/bin/one", "#!/bin/sh -e\ntrue\n")
        .file("/usr/bin/env", program(&["libc.so.6"]).bytes())
        .file("/usr/bin/python3", program(&["libc.so.6"]).bytes())
        .file("/usr/bin/two", "#!/usr/bin/env -S A=b python3 -u\n");
    let shown = shown(&resolve(host.root(), "binaries = [\"one\", \"two\"]").unwrap());
    for path in ["/usr/bin/sh -> dash", "/usr/bin/dash", "/usr/bin/env", "/usr/bin/python3"] {
        assert!(shown.iter().any(|line| line == path), "{path} in {shown:#?}");
    }
}

#[test]
fn what_is_missing_is_named_with_where_it_was_searched_and_the_cure() {
    let host = host();
    host.file("/usr/bin/broken", program(&["libgone.so"]).bytes())
        .file("/usr/bin/script", "#!/usr/bin/env perl\n")
        .file("/usr/bin/env", program(&[]).bytes())
        .file("/usr/bin/damaged", b"\x7fELF\x02\x01");
    let refusals = [
        "binaries = [\"nowhere\"]",
        "binaries = [\"/opt/nowhere\"]",
        "binaries = [\"/usr/bin\"]",
        "binaries = [\"broken\"]",
        "binaries = [\"script\"]",
        "binaries = [\"damaged\"]",
        "files = [{ path = \"/etc/x\", source = \"/gone\" }]",
        "trees = [{ path = \"/etc/x\", source = \"/usr/bin/env\" }]",
        "files = [{ path = \"/etc\", text = \"\" }, { path = \"/etc/x\", text = \"\" }]",
    ]
    .map(|text| match resolve(host.root(), text) {
        Ok(_) => format!("{text} was taken"),
        Err(error) => error.to_string(),
    });
    insta::assert_snapshot!(refusals.join("\n"));
}

#[test]
fn optional_things_that_are_missing_become_notes_and_leave_nothing_behind() {
    let host = host();
    host.file("/usr/bin/broken", program(&["libhere.so", "libgone.so"]).bytes())
        .file(&format!("{LIBRARIES}/libhere.so"), SyntheticElf::library().bytes());
    let text = "binaries = [\"?nowhere\", \"?broken\"]\nlibraries = [\"?libnone.so\"]\n\
        files = [{ path = \"/x\", source = \"/gone\", optional = true }]";
    let inventory = resolve(host.root(), text).unwrap();
    assert!(!shown(&inventory).iter().any(|line| line.contains("here") || line.contains("broken")));
    insta::assert_snapshot!(inventory.notes.join("\n"), @r"
    nowhere left out: it is not on this host
    broken left out: its library libgone.so is missing
    libnone.so left out: it is not on this host
    /x left out: no /gone
    ");
}

#[test]
fn what_is_excluded_stays_out_with_all_that_only_it_needs() {
    let host = host();
    host.file("/usr/bin/x", program(&["libbig.so", "libc.so.6"]).bytes())
        .file(&format!("{LIBRARIES}/libbig.so"), SyntheticElf::library().bytes());
    let text = "binaries = [\"x\"]\nexclude = [\"*/libbig.so*\"]";
    let shown = shown(&resolve(host.root(), text).unwrap());
    assert!(!shown.iter().any(|line| line.contains("libbig")), "{shown:#?}");
    assert!(shown.iter().any(|line| line.contains("libc.so.6")));
}

#[test]
fn a_tree_is_taken_as_it_is_and_its_programs_bring_what_they_need() {
    let host = host();
    host.file("/home/t/run", program(&["libc.so.6"]).bytes())
        .file("/home/t/sub/data", "x")
        .file("/home/t/doc/manual", "x")
        .link("/home/t/link", "sub/data");
    let text = "trees = [{ path = \"/lib/tests\", source = \"/home/t\", programs = true }]\n\
        exclude = [\"*/doc\"]\n\
        files = [{ path = \"/lib/tests/sub/data\", text = \"mine\" }]";
    let inventory = resolve(host.root(), text).unwrap();
    let shown = shown(&inventory);
    for path in ["/usr/lib/tests/run", "/usr/lib/tests/link -> sub/data"] {
        assert!(shown.iter().any(|line| line == path), "{path} in {shown:#?}");
    }
    assert!(shown.contains(&format!("{LIBRARIES}/libc.so.6")));
    assert!(!shown.iter().any(|line| line.contains("manual") || line.contains("/home")));
    let data = inventory.get(&GuestPath::new("/usr/lib/tests/sub/data").unwrap()).unwrap();
    assert_eq!(data.node, Node::File(Content::Bytes(b"mine".as_slice().into())));
}

#[test]
fn links_that_point_out_of_the_root_or_in_circles_stay_inside() {
    let host = host();
    host.link("/usr/bin/loop", "loop")
        .link("/usr/bin/out", "../../../../../../etc/target")
        .file("/etc/target", "inside");
    let inventory = resolve(host.root(), "binaries = [\"out\"]").unwrap();
    assert!(shown(&inventory).contains(&"/etc/target".to_owned()));
    let error = resolve(host.root(), "binaries = [\"loop\"]").unwrap_err();
    assert_eq!(error.to_string(), "cannot look at /usr/bin/loop");
}

#[test]
fn the_shell_of_this_machine_can_be_had() {
    let inventory = resolve(Path::new("/"), "binaries = [\"sh\", \"cat\", \"ls\"]").unwrap();
    let shown = shown(&inventory);
    assert!(shown.iter().any(|line| line.contains("libc.so") || line.contains("ld-musl")));
}

#[test]
fn programs_lie_over_a_base_where_its_links_lead_and_its_directories_stay() {
    use crate::inventory::Owner;
    let host = SyntheticHost::new();
    host.file("/usr/bin/tool", SyntheticElf::program("/lib64/ld.so").needs(&["libx.so"]).bytes())
        .file(&format!("{LIBRARIES}/ld.so"), SyntheticElf::library().bytes())
        .file(&format!("{LIBRARIES}/libx.so"), SyntheticElf::library().bytes())
        .link("/bin", "usr/bin")
        .link("/lib64", &LIBRARIES[1..]);
    let whose = Owner { user: 5, group: 6 };
    let mut base = Inventory::default();
    let mut put = |path: &str, node: Node| {
        let entry = Entry { owner: whose, permissions: 0o700, node };
        base.put(GuestPath::new(path).unwrap(), entry).unwrap();
    };
    let text = |text: &str| Node::File(Content::Bytes(text.as_bytes().into()));
    put("/bin/busybox", text("base"));
    put("/sbin", Node::Symlink(b"bin".to_vec()));
    put("/opt/programs/tool", text("base"));
    put("/usr/bin", Node::Symlink(b"/opt/programs".to_vec()));
    put("/tmp", Node::Directory);
    let contents = contents("binaries = [\"tool\"]", Path::new("/"));
    let mut closure = Closure::of(host.root(), &contents, base).unwrap();
    closure.place(&contents).unwrap();
    let inventory = closure.inventory;
    let entry = |path: &str| inventory.get(&GuestPath::new(path).unwrap()).unwrap();
    assert!(matches!(&entry("/opt/programs/tool").node, Node::File(Content::Host { .. })));
    assert_eq!(entry("/opt/programs/tool").owner, Owner::ROOT);
    assert_eq!(entry("/bin/busybox").owner, whose);
    assert_eq!(entry("/bin").node, Node::Directory);
    assert_eq!(entry("/sbin").node, Node::Symlink(b"bin".to_vec()));
    assert_eq!((entry("/tmp").permissions, entry("/tmp").owner), (0o700, whose));
    let note = "/bin stays a directory, as the base has it: here it is a link to usr/bin";
    assert!(inventory.notes.iter().any(|found| found == note), "{:?}", inventory.notes);
}
