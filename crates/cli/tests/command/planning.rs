//! `kiln plan`: everything a run needs but the machine.

use crate::kiln::{Kiln, ended};

/// A file that says of itself that it is a kernel; enough for whoever only looks.
pub(crate) fn kernel(kiln: &Kiln) -> String {
    let mut image = vec![0; 8192];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x300_u16.to_le_bytes());
    image[0x500..0x51a].copy_from_slice(b"6.12.1-plan (me@here) #1\0\0");
    kiln.write("vmlinuz", image).display().to_string()
}

const FIVE: &str = r#"
name = "five"
[vm]
memory = "512M"
cpus = 2
[[disks]]
serial = "data"
count = 2
size = "1G"
[[stages]]
name = "mkfs"
run = "true"
[[stages]]
name = "scrub-one"
run = "true"
timeout = "10s"
fresh = true
"#;

#[test]
fn the_plan_is_the_same_for_people_and_programs() {
    let kiln = Kiln::new();
    kiln.write("five.toml", FIVE);
    let kernel = kernel(&kiln);
    let text = kiln.run(&["plan", "five.toml", "-k", &kernel, "--memory", "1G"]).exits(0).stdout;
    assert!(text.contains("6.12.1-plan"), "{text}");
    assert!(text.contains("1024 MiB, 2 cpus"), "{text}");
    assert!(text.contains("scrub-one, at most 10.0s, on a fresh machine"), "{text}");
    let json = kiln.run(&["plan", "five.toml", "-k", &kernel, "--format", "json"]).exits(0).json();
    assert_eq!(json["disks"].as_array().map(Vec::len), Some(2));
    assert_eq!(json["stages"][1]["timeout_ms"], 10_000);
    assert_eq!(json["machine"]["memory"], 512 << 20);
}

#[test]
fn a_pattern_chooses_stages_and_one_that_chooses_nothing_is_an_error_of_its_own() {
    let kiln = Kiln::new();
    kiln.write("five.toml", FIVE);
    let kernel = kernel(&kiln);
    let plan = |pattern: &str| {
        kiln.run(&["plan", "five.toml", "-k", &kernel, "--stage", pattern, "--format", "json"])
    };
    let json = plan("scrub*").exits(0).json();
    assert_eq!(json["stages"][0]["name"], "scrub-one");
    assert_eq!(json["left_out"], serde_json::json!(["mkfs"]));
    plan("srcub-one").exits(4).complains(&["scrub-one", "hint: "]);
    kiln.run(&["run", "five.toml", "-k", &kernel, "--stage", "nothing"]).exits(4);
}

#[test]
fn the_shipped_scenarios_are_listed_and_each_parses() {
    let kiln = Kiln::new();
    let list = kiln.run(&["plan", "--list", "--format", "json"]).exits(0).json();
    let names: Vec<&str> =
        list.as_array().unwrap().iter().filter_map(|row| row["name"].as_str()).collect();
    for name in ["simple-example", "btrfs-smoke", "ext4-smoke", "xfs-smoke", "btrfs-raid5-scrub"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(list.as_array().unwrap().iter().all(|row| row["description"] != ""), "{list}");
}

#[test]
fn images_are_pruned_by_an_age_of_any_length() {
    let kiln = Kiln::new();
    kiln.run(&["image", "prune"]).exits(0);
    kiln.run(&["image", "prune", "--unused-for", "365d", "--dry-run"]).exits(0);
    kiln.run(&["image", "prune", "--unused-for", "0"]).exits(0);
    kiln.run(&["image", "prune", "--unused-for", "soon"]).exits(2).complains(&["is not a time"]);
}

/// A guest executable that nobody starts.
fn guest(kiln: &Kiln) -> String {
    kiln.write("guest", b"\x7fELF").display().to_string()
}

#[test]
fn the_plan_names_the_image_and_whether_it_is_there() {
    let kiln = Kiln::new();
    kiln.write("five.toml", FIVE);
    let (kernel, guest) = (kernel(&kiln), guest(&kiln));
    let run = |arguments: &[&str]| ended(kiln.command(arguments).env("KILN_GUEST", &guest));
    let plan = ["plan", "five.toml", "-k", &kernel];
    assert!(run(&plan).exits(0).stdout.contains(", to be built"));
    let built = run(&["image", "build", "five.toml", "-k", &kernel, "--format", "json"]);
    let planned = run(&[&plan[..], &["--format", "json"]].concat()).exits(0).json();
    assert_eq!(planned["image"]["cached"], true);
    assert_eq!(planned["image"]["key"], built.exits(0).json()["key"]);
}

#[test]
fn a_bit_that_flipped_in_a_cached_image_is_found() {
    let kiln = Kiln::new();
    kiln.write("five.toml", FIVE);
    let (kernel, guest) = (kernel(&kiln), guest(&kiln));
    let run = |arguments: &[&str]| ended(kiln.command(arguments).env("KILN_GUEST", &guest));
    let build = ["image", "build", "five.toml", "-k", &kernel, "--format", "json"];
    let built = run(&build).exits(0).json();
    let key = built["key"].as_str().expect("a key");
    assert_eq!(run(&["image", "verify", key]).exits(0).stdout, format!("sound {key}\n"));
    let path = built["path"].as_str().expect("a path");
    let mut bytes = std::fs::read(path).expect("it was built");
    // In the middle of some file: nothing of the archive's own is there.
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(path, bytes).expect("it is ours");
    assert_eq!(run(&build).exits(0).json()["cached"], true, "a hit reads nothing");
    let found = run(&["image", "verify", key]).exits(102).stdout;
    assert!(found.contains("its bytes are not those it was built with"), "{found}");
    run(&["image", "rm", key]).exits(0);
    run(&build).exits(0);
    run(&["image", "verify", key]).exits(0);
}

#[test]
fn a_mistake_in_what_the_guest_holds_is_found_before_anything_runs() {
    let kiln = Kiln::new();
    let stage = "[[stages]]\nname = \"a\"\nrun = \"true\"\n";
    let (kernel, guest) = (kernel(&kiln), guest(&kiln));
    for (table, code, said) in [
        ("binaires = [\"sh\"]", 2, "did you mean `binaries`"),
        ("binaries = [\"no-such-program\"]", 101, "no-such-program"),
        ("modules = [\"no-such-module\"]", 101, "no-such-module"),
        ("include = [\"bse\"]", 2, "bse"),
    ] {
        kiln.write("bad.toml", format!("name = \"bad\"\n[guest]\n{table}\n{stage}"));
        let plan =
            ended(kiln.command(&["plan", "bad.toml", "-k", &kernel]).env("KILN_GUEST", &guest));
        plan.exits(code).complains(&[said]);
    }
}
