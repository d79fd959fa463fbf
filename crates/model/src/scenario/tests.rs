use std::time::Duration;

use proptest::prelude::*;

use super::*;

const WHOLE: &str = r#"
name = "raid"
description = "Six disks"

[guest]
binaries = ["btrfs", "fio"]
[guest.modules]
names = ["btrfs"]

[vm]
memory = "768M"
cpus = 2
acceleration = "tcg"
boot_timeout = "2m"
hang_timeout = "30s"
kernel_parameters = ["slub_debug=FZP"]
fast = true

[[disks]]
count = 2
size = "512M"
serial = "raid"

[[disks]]
size = "1G"
serial = "log"

[environment]
MNT = "/mnt"

[[stages]]
name = "prepare"
script = "raid/prepare.sh"
arguments = ["-v"]
timeout = "1h30m"
fresh = true
artifacts = ["/var/log/*.txt"]
completion_file = "/tmp/done"
environment = { LEVEL = "5" }

[[stages]]
name = "look"
run = "ls /"
"#;

#[test]
fn a_whole_scenario_reads_as_it_is_meant() {
    let scenario = Scenario::parse(WHOLE).unwrap();
    let disks: Vec<_> =
        scenario.disks.iter().map(|d| (d.serial.as_str(), d.size.unwrap().to_string())).collect();
    assert_eq!(disks, [("raid1", "512M".into()), ("raid2", "512M".into()), ("log", "1G".into())]);
    assert_eq!(scenario.machine.fast, Some(true));
    assert_eq!(scenario.machine.settle().memory, 768 << 20);
    assert_eq!(scenario.stages[0].timeout.get(), Duration::from_secs(5400));
    assert_eq!(
        scenario.stages[0].script,
        Script::File { path: "raid/prepare.sh".into(), line: 33 }
    );
    assert_eq!(scenario.stages[1].script, Script::Text("ls /".into()));
}

#[test]
fn a_disk_starts_as_a_snapshot_an_image_or_what_is_made_once() {
    let text = r#"
name = "starts"
[[disks]]
serial = "golden"
base = "golden@v1"
[[disks]]
serial = "grown"
image = "images/data.qcow2"
size = "8G"
[[disks]]
serial = "made"
count = 2
size = "256M"
filesystem = "ext4"
prepare = "echo hello >greeting"
"#;
    let disks = Scenario::parse(text).unwrap().disks;
    let base = DiskStart::Base { disk: "golden".into(), snapshot: "v1".into() };
    assert_eq!((&disks[0].start, disks[0].size), (&base, None));
    assert_eq!(disks[1].start, DiskStart::Image { path: "images/data.qcow2".into() });
    let making =
        Making { filesystem: Some("ext4".into()), prepare: Some("echo hello >greeting".into()) };
    assert_eq!(disks[2].start, DiskStart::Made(making));
    assert_eq!((disks[2].start == disks[3].start, disks[2].line, disks[3].line), (true, 10, 10));
}

#[test]
fn a_stage_with_a_count_is_that_many_stages() {
    let text =
        "name = \"x\"\n[[stages]]\nname = \"clone\"\ncount = 3\nrun = \"true\"\nfresh = true";
    let stages = Scenario::parse(text).unwrap().stages;
    let names: Vec<_> = stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names, ["clone1", "clone2", "clone3"]);
    assert!(stages.iter().all(|stage| stage.fresh));
}

#[test]
fn scripts_are_fetched_by_the_names_the_scenario_uses() {
    let scenario = Scenario::parse(WHOLE).unwrap();
    let loaded =
        scenario.load_scripts(|path| Ok::<_, ()>(format!("# {}", path.display()))).unwrap();
    assert_eq!(loaded.stages[0].script, Script::Text("# raid/prepare.sh".into()));
}

fn refusal(text: &str) -> String {
    Scenario::parse(text).unwrap_err().to_string()
}

/// A stage to hang a broken line on.
fn stage(line: &str) -> String {
    refusal(&format!("name = \"x\"\n[[stages]]\nname = \"s\"\nrun = \"true\"\n{line}\n"))
}

fn vm(line: &str) -> String {
    refusal(&format!("name = \"x\"\n[vm]\n{line}\n"))
}

fn disk(lines: &str) -> String {
    refusal(&format!("name = \"x\"\n[[disks]]\n{lines}\n"))
}

#[test]
fn every_refusal_names_its_line_and_the_cure() {
    let refusals = [
        refusal(""),
        refusal("name = \"a b\""),
        refusal("name = 3"),
        refusal("name = \"x\"\nname = \"y\""),
        refusal("name = \"x\"\n\nmemory = \"1G\""),
        refusal("name = \"x\"\nstage = []"),
        refusal("name = \"x\"\nstages = 3"),
        refusal("name = \"x\"\nguest = 3"),
        refusal("name = \"x\"\n[environment]\n\"1X\" = \"y\""),
        vm("memroy = \"1G\""),
        vm("memory = \"1.5G\""),
        vm("memory = \"5T\""),
        vm("cpus = 0"),
        vm("cpus = \"many\""),
        vm("machines = 65"),
        vm("acceleration = \"tgc\""),
        vm("boot_timeout = \"90\""),
        vm("kernel_parameters = [\"a b\"]"),
        vm("fast = \"yes\""),
        disk("serial = \"a\""),
        disk("size = \"0\""),
        disk("size = \"1G\"\ncount = 0"),
        disk("size = \"1G\"\ncount = 25"),
        disk("size = \"1G\"\nserial = \"a,b\""),
        disk("size = \"1G\"\nserial = \"aaaaaaaaaaaaaaaaaaaa\"\ncount = 2"),
        disk("size = \"1G\"\n[[disks]]\nsize = \"1G\""),
        disk("filesystem = \"ext4\""),
        disk("base = \"golden\""),
        disk("base = \"golden@v1\"\nimage = \"a.qcow2\""),
        disk("base = \"golden@v1\"\nprepare = \"true\""),
        disk("image = \"\""),
        disk("size = \"1G\"\nfilesystem = \"ext4 -j\""),
        disk("size = \"1G\"\nprepare = \" \""),
        disk("imgae = \"a.raw\""),
        stage("[[stages]]\nname = \"s\"\nrun = \"true\""),
        stage("script = \"s.sh\""),
        stage("timeout = \"0s\""),
        stage("artifacts = [\"logs\"]"),
        stage("completion_file = \"/a/../b\""),
        stage("time_out = \"1s\""),
        stage("count = 0"),
        stage("count = 2\n[[stages]]\nname = \"s2\"\nrun = \"true\""),
        refusal("name = \"x\"\n[[stages]]\nname = \"s\""),
        refusal("name = \"x\"\n[[stages]]\nname = \"a/b\"\nrun = \"true\""),
    ];
    insta::assert_snapshot!(refusals.join("\n"));
}

#[test]
fn a_scenario_that_never_ends_is_not_read() {
    assert!(refusal(&"#".repeat(MAX_TEXT + 1)).contains("more than a scenario may have"));
}

proptest! {
    #[test]
    fn any_text_is_accepted_or_refused_but_never_panics(text in "\\PC{0,200}") {
        let _ = Scenario::parse(&text);
    }

    #[test]
    fn any_damage_to_a_good_scenario_is_accepted_or_refused(
        at in 0..WHOLE.len(), len in 0usize..20, with in "[\\[\\]\"={}.#\na0]{0,6}",
    ) {
        let mut text = WHOLE.to_owned();
        text.replace_range(at..(at + len).min(WHOLE.len()), &with);
        if let Err(error) = Scenario::parse(&text) {
            prop_assert!(error.line <= text.lines().count() + 1, "{error}");
        }
    }
}
