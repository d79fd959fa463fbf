//! Disks that the guest's own kernel has as block devices.

use std::fs;
use std::path::Path;

use crate::room::Room;

/// What this host's kernel may lack, the guest's has: `nbd.ko`, `ublk_drv` and loop devices, with our servers beside
/// them in the guest.
#[test]
fn a_kernel_uses_disks_over_nbd_ublk_and_fuse_as_it_would_any_other() {
    let room = Room::new();
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let text = fs::read_to_string(scenarios.join("disk-frontends.toml")).unwrap();
    let text = text.replace("/usr/local/bin/kiln", env!("CARGO_BIN_EXE_kiln"));
    room.write("disk-frontends.toml", &text);
    let scripts = room.path().join("disk-frontends");
    fs::create_dir(&scripts).unwrap();
    for script in ["exercise.sh", "killed.sh"] {
        fs::copy(scenarios.join("disk-frontends").join(script), scripts.join(script)).unwrap();
    }
    let ended = room.run(&["run", "disk-frontends.toml"]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    let outcomes = room.outcomes();
    assert_eq!(outcomes, ["nbd: passed", "ublk: passed", "fuse: passed", "killed: passed"]);
    room.nothing_is_left();
}
