//! The disks of runs: clones in the pool, which outlive owners and machines that are killed, and nothing else.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_model::event::Happening;
use kiln_store::{Reply, Request, Store, TEMPORARY};
use rustix::process::{Pid, Signal, kill_process};

use crate::room::{PATIENCE, Room, Running, gone};

/// A file system of each kind, written to for as long as it takes to get hurt, then looked at from all sides.
const WRITES: &str = r#"
name = "survives"
[guest]
include = ["base"]
binaries = ["btrfs", "e2fsck", "mkfs.btrfs", "mkfs.ext4"]
modules = ["btrfs", "ext4"]
[vm]
memory = "512M"
boot_timeout = "4m"
hang_timeout = "4m"
[[disks]]
serial = "e"
size = "256M"
filesystem = "ext4"
[[disks]]
serial = "b"
size = "256M"
filesystem = "btrfs"
[[stages]]
name = "write"
timeout = "10m"
run = '''
set -eu
mkdir -p /e /b
mount /dev/disk/by-id/virtio-e /e
mount /dev/disk/by-id/virtio-b /b
: >/tmp/sums
for round in $(seq 24); do
    for fs in e b; do
        # Whoever serves the disk answers this, and no cache.
        dd if=/dev/disk/by-id/virtio-$fs of=/dev/null bs=4k count=1 iflag=direct status=none
        head -c 2M /dev/urandom >/$fs/file$round
        (cd / && md5sum $fs/file$round) >>/tmp/sums
        # Not flushed, and yet not in memory for long.
        echo 1 >/proc/sys/vm/drop_caches
    done
    # One is safe whatever happens; all others are the caches' business.
    [ $round != 1 ] || sync
    echo "round $round."
done
sync
echo 3 >/proc/sys/vm/drop_caches
cd / && md5sum --quiet -c /tmp/sums
umount /e /b
e2fsck -fn /dev/disk/by-id/virtio-e
btrfs check /dev/disk/by-id/virtio-b
'''
"#;

/// The same for those that are killed: however late that is, the file systems are mounted yet.
fn writes_and_waits() -> String {
    let (writes, _) = WRITES.split_once("\nsync\n").unwrap();
    format!("{writes}\nwhile :; do sleep 1; done\n'''\n")
}

fn pool(room: &Room) -> PathBuf {
    room.path().join("data/kiln/disks.pool")
}

fn ask(room: &Room, request: Request) -> Reply {
    // One that takes the place of a killed one needs a moment.
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        match Store::connected(&pool(room)).unwrap() {
            Some(store) => return store.ask(request).unwrap(),
            None if Instant::now() > until => panic!("the pool has no owner"),
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn owner(room: &Room) -> u32 {
    match ask(room, Request::Metrics) {
        Reply::Metrics { pool, .. } => pool.pid,
        other => panic!("{other:?}"),
    }
}

/// The owner, once the machine uses both disks through it. Of a server that dies after the connection and before the first
/// request, QEMU until 8.2 takes no notice, and connects no more.
fn owner_in_use(room: &Room) -> u32 {
    let until = Instant::now() + Duration::from_secs(240);
    loop {
        let Reply::Metrics { pool, disks } = ask(room, Request::Metrics) else { unreachable!() };
        if disks.iter().filter(|disk| disk.read.count > 0).count() == 2 {
            return pool.pid;
        }
        assert!(Instant::now() < until, "nobody reads: {disks:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

fn until_round(run: &mut Running, round: u32) {
    let wanted = format!("round {round}.");
    run.until(|event| match event {
        Happening::Output { text, .. } if text.contains(&wanted) => Some(()),
        Happening::StageEnded { outcome, .. } => panic!("it ended before {wanted} {outcome}"),
        _ => None,
    });
}

#[test]
fn a_guests_ext4_and_btrfs_survive_owners_that_are_killed_while_they_write() {
    let room = Room::new();
    let mut run = room.start(WRITES);
    let mut owners = Vec::new();
    for round in [2, 4, 6] {
        until_round(&mut run, round);
        let pid = owner_in_use(&room);
        kill(pid);
        gone(pid);
        owners.push(pid);
    }
    let (status, events) = run.end();
    assert!(status.success(), "{events:#?}");
    owners.dedup();
    assert_eq!(owners.len(), 3, "each time it was another one");
    room.nothing_is_left();
    nothing_temporary_is_left(&room);
}

/// Somebody else has the pool from the moment its owner is killed, and does not let go.
#[test]
fn an_owner_that_nobody_can_replace_breaks_the_stage_and_blames_no_kernel() {
    let room = Room::new();
    let mut run = room.start(
        "name = \"orphaned\"\n[guest]\ninclude = [\"base\"]\n[vm]\nmemory = \"256M\"\nboot_timeout = \"4m\"\n\
         hang_timeout = \"4m\"\n[[disks]]\nsize = \"64M\"\n[[stages]]\nname = \"write\"\n\
         run = \"echo round 1.; while :; do dd if=/dev/zero of=/dev/disk/by-id/virtio-disk bs=64k conv=fsync; done\"\n",
    );
    until_round(&mut run, 1);
    let pid = owner(&room);
    let file = std::fs::File::open(pool(&room)).unwrap();
    let waiting = std::thread::spawn(move || {
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        file
    });
    // The kernel gives the lock to whoever has waited longest.
    while !waits_for_a_lock(std::process::id()) {
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(pid);
    let held = waiting.join().unwrap();
    let (status, events) = run.end();
    drop(held);
    assert_eq!(status.code(), Some(103), "{events:#?}");
    let outcomes = room.outcomes();
    assert!(outcomes[0].starts_with("write: broken (the owner of pool "), "{outcomes:?}");
    room.nothing_is_left();
}

fn waits_for_a_lock(pid: u32) -> bool {
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    // `1: -> FLOCK ADVISORY WRITE 4711 …` waits for what is above it.
    let waiting = format!(" {pid} ");
    locks.lines().any(|line| line.contains("-> FLOCK") && line.contains(&waiting))
}

/// What the guest had not flushed may be gone, as after a power cut; the file systems are whole.
#[test]
fn the_file_systems_of_a_killed_machine_are_whole_in_a_shell_of_its_stage() {
    let room = Room::new();
    let mut run = room.start(&writes_and_waits());
    let machine = run.until(|event| match event {
        Happening::VmStarted { pid, .. } => Some(*pid),
        _ => None,
    });
    until_round(&mut run, 3);
    kill(machine);
    let (status, events) = run.end();
    assert_eq!(status.code(), Some(103), "{events:#?}");
    let outcomes = room.outcomes();
    assert!(outcomes[0].starts_with("write: broken (QEMU ended unasked"), "{outcomes:?}");
    // The journal is played back, then all must be right.
    let look = "set -e; DEV=/dev/disk/by-id/virtio; mkdir -p /e /b; mount ${DEV}-e /e; mount ${DEV}-b /b; \
                ls /e /b; umount /e /b; e2fsck -fn ${DEV}-e; btrfs check ${DEV}-b";
    let shell = room.run(&["shell", "last/write", "--", "sh", "-c", look]).exits(0);
    assert!(shell.stdout.contains("file1"), "{shell:?}");
    // It was a clone: what the stage left can be looked at again.
    let kept = room.run(&["shell", "last/write", "--", "sh", "-c", look]).exits(0);
    assert!(kept.stdout.contains("file1"), "{kept:?}");
    nothing_temporary_is_left(&room);
}

#[test]
fn a_killed_run_leaves_no_disk_and_no_socket() {
    let room = Room::new();
    let mut run = room.start(&writes_and_waits());
    until_round(&mut run, 1);
    let machine = run.processes();
    let sockets = sockets_of(&machine);
    assert_eq!(sockets.len(), 2, "{sockets:?}");
    let Reply::Disks { disks } = ask(&room, Request::List) else { panic!("no disks") };
    assert_eq!(disks.iter().filter(|disk| disk.name.starts_with(TEMPORARY)).count(), 2);
    run.signal(Signal::KILL);
    run.end();
    machine.into_iter().for_each(gone);
    nothing_temporary_is_left(&room);
    for socket in sockets {
        assert!(!socket.exists(), "{} is left", socket.display());
    }
}

/// The sockets that a machine of these processes was told of.
fn sockets_of(pids: &[u32]) -> Vec<PathBuf> {
    let words = pids.iter().flat_map(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = line.split(|byte| *byte == 0).map(<[u8]>::to_vec);
        words.map(|word| String::from_utf8_lossy(&word).into_owned()).collect::<Vec<_>>()
    });
    let path = |word: String| {
        let (_, rest) = word.split_once(",path=")?;
        Some(PathBuf::from(rest.split(',').next()?)).filter(|path| path.is_absolute())
    };
    words.filter_map(path).collect()
}

/// Waits until the pool has no temporary disks: an owner removes them when it hears that their holder is gone.
#[track_caller]
fn nothing_temporary_is_left(room: &Room) {
    let deadline = Instant::now() + PATIENCE;
    let left = |path: &Path| match Store::connected(path) {
        Ok(Some(store)) => match store.ask(Request::List) {
            Ok(Reply::Disks { disks }) => {
                disks.into_iter().any(|disk| disk.name.starts_with(TEMPORARY))
            }
            _ => true,
        },
        // No owner: it stored the pool and left.
        Ok(None) => {
            let pool = kiln_parallax::Pool::open_file(path, &kiln_parallax::PoolOptions::default());
            pool.map_or(true, |pool| {
                pool.disks().iter().any(|disk| disk.name.starts_with(TEMPORARY))
            })
        }
        Err(_) => true,
    };
    while left(&pool(room)) {
        assert!(Instant::now() < deadline, "temporary disks are left in the pool");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The scenario asserts that each machine has the base and its own writes; here, that nothing was copied for it.
#[test]
fn eight_machines_on_clones_of_one_disk_take_what_they_write() {
    let room = Room::new();
    let ended = room.run(&["run", "many-clones", "--keep-disks", "always"]).exits(0);
    assert!(ended.stderr.contains("passed: 8 of 8 stages passed"), "{}", ended.stderr);
    let (run, _) = room.recorded();
    let machines: std::collections::BTreeSet<u32> =
        run.stages.iter().filter_map(|stage| stage.vm).collect();
    assert_eq!(machines.len(), 8, "a machine each");
    // The run is over before its owner has heard that the machines' own disks are not needed any more, and has given
    // their space back.
    nothing_temporary_is_left(&room);
    let store = Store::open(&pool(&room), &kiln_store::Start::new(["false"])).unwrap();
    let Ok(Reply::Disks { disks }) = store.ask(Request::List) else { panic!("no disks") };
    store.ask(Request::Gc).unwrap();
    let Ok(Reply::Space(space)) = store.ask(Request::Space) else { panic!("no space") };
    let (kept, base): (Vec<_>, Vec<_>) =
        disks.iter().partition(|disk| disk.name.starts_with("run:"));
    assert_eq!((kept.len(), base.len()), (8, 1), "{disks:#?}");
    let mib = |bytes: u64| bytes >> 20;
    assert!(kept.iter().all(|disk| mib(disk.referenced) >= 18), "{kept:#?}");
    let grown = mib(space.used - base[0].referenced);
    // Two mebibytes of data each, with the file systems' own and the pool's.
    assert!((16..48).contains(&grown), "the pool grew by {grown} MiB: {space:?} {disks:#?}");
}

#[test]
fn a_full_pool_breaks_a_stage_and_says_what_to_do() {
    let room = Room::new();
    std::fs::create_dir_all(pool(&room).parent().unwrap()).unwrap();
    let small = kiln_block::ByteLen::mib(64);
    let options = kiln_parallax::PoolOptions {
        log: kiln_block::ByteLen::mib(1),
        ..kiln_parallax::PoolOptions::default()
    };
    drop(kiln_parallax::Pool::create_file(&pool(&room), small, &options).unwrap());
    room.write(
        "full.toml",
        "name = \"full\"\n[guest]\ninclude = [\"base\"]\n[vm]\nmemory = \"256M\"\nboot_timeout = \"4m\"\n\
         [[disks]]\nsize = \"512M\"\n[[stages]]\nname = \"fill\"\n\
         run = \"dd if=/dev/zero of=/dev/disk/by-id/virtio-disk bs=1M count=200 conv=fsync\"\n",
    );
    let ended = room.run(&["run", "full.toml"]).exits(103);
    let outcomes = room.outcomes();
    assert!(outcomes[0].starts_with("fill: broken (the pool "), "{outcomes:?}\n{}", ended.stderr);
    assert!(
        outcomes[0].contains("is full") && outcomes[0].contains("kiln disk gc"),
        "{outcomes:?}"
    );
}
