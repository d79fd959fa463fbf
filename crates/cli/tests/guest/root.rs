//! Roots on disks: made of this machine's files and never written, cloned in the pool, or kept there.

use std::fs;

use kiln_model::event::Happening;

use crate::room::Room;

/// A guest with a folder of this test in it.
const SCENARIO: &str = r#"
name = "rooted"
[guest]
include = ["base"]
trees = [{ path = "/srv/tree", source = "tree" }]
files = [{ path = "/tmp/note", text = "of the image" }]
[vm]
memory = "256M"
boot_timeout = "4m"
"#;

fn room() -> Room {
    let room = Room::new();
    fs::create_dir(room.path().join("tree")).unwrap();
    room.write("tree/file", &"of the host\n".repeat(100_000));
    room
}

#[test]
fn a_guest_lives_on_files_of_this_machine_and_writes_to_none() {
    let room = room();
    let stages = r#"
[[stages]]
name = "reads"
run = '''
set -e
grep '^overlay / ' /proc/mounts
test -e /dev/disk/by-id/virtio-kiln-root
test $(wc -l </srv/tree/file) = 100000
grep -q root /etc/passwd
grep -q image /tmp/note
'''
[[stages]]
name = "writes"
run = '''
set -e
echo changed >/srv/tree/file
echo new >/usr/bin/new
sync
cat /srv/tree/file
'''
[[stages]]
name = "forgets"
fresh = true
run = "test ! -e /usr/bin/new && test $(wc -l </srv/tree/file) = 100000"
"#;
    room.write("rooted.toml", &format!("{SCENARIO}{stages}"));
    let before = fs::metadata(room.path().join("tree/file")).unwrap();
    room.run(&["run", "rooted.toml", "--root", "disk"])
        .exits(0)
        .complains(&["the root is a disk of", "none of which is written anywhere"]);
    room.nothing_is_left();
    let after = fs::metadata(room.path().join("tree/file")).unwrap();
    assert_eq!(after.modified().unwrap(), before.modified().unwrap());
    assert!(!room.path().join("data/kiln/disks.pool").exists(), "there was no need of a pool");
}

#[test]
fn a_file_that_changes_under_a_guest_breaks_the_stage_and_blames_no_kernel() {
    let room = room();
    let stages = r#"
root = "disk"
[[stages]]
name = "watches"
timeout = "4m"
run = '''
while cat /srv/tree/file >/dev/null; do
    echo "it is as it was"
    echo 3 >/proc/sys/vm/drop_caches
done
exit 1
'''
"#;
    let mut running = room.start(&format!("{SCENARIO}{stages}"));
    running.until(|event| match event {
        Happening::Output { text, .. } if text.contains("as it was") => Some(()),
        _ => None,
    });
    room.write("tree/file", "another\n");
    let (_, events) = running.end();
    let told = events.iter().find_map(|event| match event {
        Happening::StageEnded { outcome, .. } => Some(outcome.to_string()),
        _ => None,
    });
    let told = told.unwrap();
    assert!(told.starts_with("broken") && told.contains("tree/file changed since"), "{told}");
}

#[test]
fn a_root_that_persists_holds_tomorrow_what_was_written_today() {
    let room = room();
    room.write("rooted.toml", SCENARIO);
    let shell = |command: &str| {
        room.run(&["shell", "rooted.toml", "--persist", "mine", "--", "sh", "-c", command])
    };
    shell("echo kept >/usr/kept && grep ' / ext' /proc/mounts")
        .exits(0)
        .complains(&["writing the root disk into the pool, once", "disk mine, which is new"]);
    let again = shell("cat /usr/kept; rm -r /srv/tree").exits(0);
    assert_eq!(again.stdout, "kept\n", "{}", again.stderr);
    assert!(!again.stderr.contains("into the pool"), "{}", again.stderr);

    // Clones are of the root as it was, and go with their machines.
    let stages = r#"
[[stages]]
name = "clone"
run = "grep ' / ext' /proc/mounts && test ! -e /usr/kept && rm /srv/tree/file"
[[stages]]
name = "another"
fresh = true
run = "test -e /srv/tree/file"
"#;
    room.write("rooted.toml", &format!("{SCENARIO}{stages}"));
    let cloned = room.run(&["run", "rooted.toml", "--root", "clone"]).exits(0);
    assert!(!cloned.stderr.contains("into the pool"), "it is there: {}", cloned.stderr);
}
