//! Machines that start from a saved moment.

use std::fs::{self, File};

use kiln_model::event::Happening;

use crate::room::{Ended, GUEST, Room};

/// Two machines at once, on clones of one disk, that write different data to the same blocks.
const TWINS: &str = r#"
machines = 2
[[disks]]
serial = "data"
size = "16M"
[[stages]]
name = "twin"
count = 2
fresh = true
artifacts = ["/etc/machine-id", "/tmp/names"]
run = '''
disk=/dev/disk/by-id/virtio-data
pattern() { yes "$KILN_STAGE $1" | head -c 65536; }
for block in 0 7 100; do pattern $block | dd of=$disk bs=65536 seek=$block conv=notrunc 2>/dev/null; done
sync
echo 3 >/proc/sys/vm/drop_caches
for block in 0 7 100; do
    dd if=$disk bs=65536 skip=$block count=1 2>/dev/null >/tmp/there
    pattern $block >/tmp/wanted
    cmp /tmp/wanted /tmp/there || exit 1
done
cat /proc/sys/kernel/hostname /proc/sys/kernel/random/uuid >/tmp/names
'''
"#;

fn room() -> Room {
    let room = Room::new();
    let guest = GUEST.replace("[\"sh\"", "[\"cmp\", \"sync\", \"yes\", \"sh\"");
    room.write("twins.toml", &format!("name = \"twins\"\n{guest}{TWINS}"));
    room
}

impl Room {
    /// `kiln run` with a folder of saved machines of this test's own.
    fn run_alone(&self, arguments: &[&str]) -> Ended {
        let mut command = self.command(arguments);
        command.env("XDG_CACHE_HOME", self.path().join("cache"));
        let output = command.output().expect("kiln starts");
        Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// For each machine of the newest run whether it was restored, sorted.
    fn restored(&self) -> Vec<bool> {
        let mut told = Vec::new();
        kiln_history::for_each_event(&self.recorded().1, |event| {
            if let Happening::VmReady { restored, .. } = event.event {
                told.push(restored);
            }
        })
        .expect("the events can be read");
        told.sort_unstable();
        told
    }

    /// A file that both twins left, for each of them.
    fn left(&self, file: &str) -> [String; 2] {
        let (_, folder) = self.recorded();
        ["twin1", "twin2"].map(|stage| {
            let path = folder.path().join(format!("stages/{stage}/artifacts/{file}"));
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        })
    }

    /// The saved machines' files with this ending.
    fn saved(&self, ending: &str) -> Vec<std::path::PathBuf> {
        let folder = self.path().join("cache/kiln/warm");
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        paths.filter(|path| path.extension().is_some_and(|found| found == ending)).collect()
    }
}

#[test]
fn clones_of_one_saved_machine_have_disks_and_names_of_their_own_and_damage_means_a_boot() {
    let room = room();
    room.run_alone(&["run", "twins.toml"]).exits(0);
    assert_eq!(room.restored(), [false, true], "one boots, the other waits for it");

    // Both from the saved machine, at the same time.
    let again = room.run_alone(&["run", "twins.toml"]).exits(0);
    assert_eq!(room.restored(), [true, true], "{}", again.stderr);
    for file in ["etc/machine-id", "tmp/names"] {
        let [one, two] = room.left(file);
        assert!(one.len() > 32 && one != two, "{file}: {one:?} and {two:?}");
    }
    assert!(room.left("tmp/names")[0].starts_with("kiln-1\n"));
    room.nothing_is_left();

    room.run_alone(&["run", "twins.toml", "--cold"]).exits(0);
    assert_eq!(room.restored(), [false, false]);

    // Whoever writes to a saved memory spoils it: that is noticed, told, and repaired by the next boot.
    let memory = room.saved("memory");
    File::options().append(true).open(&memory[0]).unwrap().set_len(4096).unwrap();
    let damaged = room.run_alone(&["run", "twins.toml"]).exits(0);
    assert!(damaged.stderr.contains("its memory was changed"), "{}", damaged.stderr);
    assert_eq!(room.restored(), [false, true]);

    room.run_alone(&["warm", "ls"]).exits(0);
    room.run_alone(&["warm", "prune", "--unused-for", "0"]).exits(0);
    assert!(room.saved("machine").is_empty() && room.saved("memory").is_empty());
}

#[test]
fn what_a_stage_prepared_is_there_on_every_machine_and_is_paid_once() {
    let room = Room::new();
    let stages = r#"
restore = "prepared"
[[disks]]
serial = "data"
size = "16M"
[[stages]]
name = "prepare"
run = 'mkdir -p /tmp/p && echo in-memory >/tmp/p/file && echo on-disk | dd of=/dev/disk/by-id/virtio-data conv=notrunc,fsync'
[[stages]]
name = "finds-it"
run = 'cat /tmp/p/file && head -c 8 /dev/disk/by-id/virtio-data && echo mine >/tmp/p/file'
[[stages]]
name = "crashes"
run = 'echo c >/proc/sysrq-trigger'
[[stages]]
name = "finds-it-again"
fresh = true
run = 'read -r line </tmp/p/file && [ "$line" = in-memory ] && head -c 8 /dev/disk/by-id/virtio-data'
"#;
    let guest = GUEST.replace("[\"sh\"", "[\"mkdir\", \"sh\"");
    room.write("prepared.toml", &format!("name = \"prepared\"\n{guest}{stages}"));
    let expected = [
        "prepare: passed",
        "finds-it: passed",
        "crashes: crashed (panic: sysrq triggered crash)",
        "finds-it-again: passed",
    ];
    let first = room.run_alone(&["run", "prepared.toml"]).exits(100);
    assert_eq!(room.outcomes(), expected, "{}", first.stderr);
    assert_eq!(room.restored(), [false, true], "the machine after the crash is prepared already");
    let second = room.run_alone(&["run", "prepared.toml"]).exits(100);
    assert_eq!(room.outcomes(), expected, "{}", second.stderr);
    assert_eq!(room.restored(), [true, true]);
    assert!(second.stderr.contains("was restored from after prepare"), "{}", second.stderr);
    // One that is asked for alone finds a prepared machine as well.
    let alone = room.run_alone(&["run", "prepared.toml", "--stage", "finds-it-again"]).exits(0);
    assert_eq!(room.outcomes(), [expected[0], expected[3]], "{}", alone.stderr);
    // Booted machines are prepared too, each by itself.
    room.run_alone(&["run", "prepared.toml", "--stage", "finds-it*", "--cold"]).exits(0);
    assert_eq!(room.restored(), [false, false]);
    room.run_alone(&["warm", "prune", "--unused-for", "0"]).exits(0);
    let disks = room.run_alone(&["disk", "ls"]).exits(0);
    assert!(!disks.stdout.contains("warm:"), "{}", disks.stdout);
}
