//! Owners of pools as processes: started when they are needed, gone when they are not, and killed at any moment.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kiln_store::{Reply, Request, Store};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::kiln::Kiln;
use crate::nbd::Client;

const BLOCK: usize = 4096;
/// Blocks that writers write to, one after the other, again and again.
const BLOCKS: u64 = 64;

/// A folder for sockets, whose paths have to be short.
fn sockets() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("kiln-").tempdir_in("/tmp").expect("a temporary folder")
}

/// Between two looks at what another process does.
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(1));
}

/// `kiln disk serve NAME --nbd`, ready; killed when dropped.
struct Serving(Child);

impl Serving {
    fn start(kiln: &Kiln, name: &str, socket: &Path, more: &[&str]) -> Serving {
        let address = format!("unix:{}", socket.display());
        let mut command = kiln.command(&["disk", "serve", name, "--nbd", &address]);
        command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kiln starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
        let serving = Serving(child);
        let mut line = String::new();
        lines.read_line(&mut line).expect("stdout can be read");
        assert!(line.starts_with("nbd+unix"), "it ended early");
        serving
    }

    fn ends(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            std::io::Read::read_to_string(&mut stderr, &mut said).expect("stderr can be read");
        }
        (self.0.wait().expect("it ends").code(), said)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process of a pool's owner.
fn owner(pool: &Path) -> Pid {
    let store = Store::connected(pool).expect("the pool is there").expect("it has an owner");
    let Reply::Metrics { pool, .. } = store.ask(Request::Metrics).expect("it answers") else {
        panic!("no figures")
    };
    Pid::from_raw(i32::try_from(pool.pid).expect("a process")).expect("a process")
}

fn is_gone(pid: Pid) -> bool {
    // Who waits for it may not have done so yet.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    test_kill_process(pid).is_err() || stat.is_ok_and(|stat| stat.contains(") Z "))
}

fn pool(kiln: &Kiln) -> PathBuf {
    kiln.home().join("data/disks.pool")
}

/// A client of whoever serves next.
fn connected(socket: &Path) -> Client {
    loop {
        match Client::connect(socket, "base") {
            Ok(client) => return client,
            Err(_) => pause(),
        }
    }
}

/// A block that says which one it is and when it was written.
fn stamped(block: u64, round: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    for chunk in bytes.chunks_exact_mut(16) {
        chunk[..8].copy_from_slice(&block.to_le_bytes());
        chunk[8..].copy_from_slice(&round.to_le_bytes());
    }
    bytes
}

/// When a block was written; it has to be one block, whole, and the right one.
fn round_of(block: u64, bytes: &[u8]) -> u64 {
    let round = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
    let whole = if round == 0 { vec![0; BLOCK] } else { stamped(block, round) };
    assert!(bytes == whole, "block {block} is torn or another one");
    round
}

/// Writes rounds of stamped blocks with a flush after each eight, until told or cut off. `flushed[b]` is the round of
/// block b that a flush has covered.
fn write_rounds(client: &mut Client, first: u64, flushed: &[AtomicU64], enough: &AtomicBool) {
    let mut unflushed = Vec::new();
    for round in first.. {
        for block in 0..BLOCKS {
            if enough.load(Ordering::Acquire)
                || client.write(block * BLOCK as u64, &stamped(block, round)).is_err()
            {
                return;
            }
            unflushed.push((block, round));
            if unflushed.len() == 8 {
                if client.flush().is_err() {
                    return;
                }
                for (block, round) in unflushed.drain(..) {
                    let at = usize::try_from(block).expect("few blocks");
                    flushed[at].store(round, Ordering::Release);
                }
            }
        }
    }
}

/// Kills the owner under a writer, again and again; everything that was flushed has to be there each time.
fn kill_owners(times: u64) {
    let kiln = Kiln::new();
    let sockets = sockets();
    kiln.run(&["disk", "create", "base", "--size", "64M"]).exits(0);
    let flushed: Vec<AtomicU64> = (0..BLOCKS).map(|_| AtomicU64::new(0)).collect();
    let socket = sockets.path().join("nbd");
    let serving = Serving::start(&kiln, "base", &socket, &[]);
    for kill in 0..=times {
        // The next owner serves at the same place.
        let mut client = connected(&socket);
        let mut newest = 0;
        for (block, flushed) in (0..).zip(&flushed) {
            let bytes = client.read(block * BLOCK as u64, BLOCK).expect("it can be read");
            let (found, promised) = (round_of(block, &bytes), flushed.load(Ordering::Acquire));
            assert!(found >= promised, "kill {kill}: block {block} lost {promised}, has {found}");
            newest = newest.max(found);
        }
        if kill == times {
            break;
        }
        let victim = owner(&pool(&kiln));
        let sum = || flushed.iter().map(|round| round.load(Ordering::Acquire)).sum::<u64>();
        // Somewhere in the middle, another place each time.
        let before = sum() + 40 + kill * 13;
        let enough = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| write_rounds(&mut client, newest + 1, &flushed, &enough));
            while sum() < before {
                pause();
            }
            kill_process(victim, Signal::KILL).expect("it is there");
        });
    }
    kill_process(Pid::from_child(&serving.0), Signal::INT).expect("it is there");
    let (code, said) = serving.ends();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("goes on serving"), "{said}");
    kiln.run(&["disk", "verify"]).exits(0);
    kiln.run(&["disk", "own", "--leave"]).exits(0);
}

#[test]
fn what_was_flushed_survives_a_killed_owner() {
    kill_owners(5);
}

#[test]
#[ignore = "takes minutes: cargo test -p kiln-cli --test command -- --ignored owner"]
fn what_was_flushed_survives_fifty_killed_owners() {
    kill_owners(50);
}

/// The 2005 tools changed what a snapshot held when another process took it from a disk in use.
#[test]
fn a_snapshot_taken_by_a_second_process_while_a_disk_is_written_is_one_moment_for_ever() {
    let kiln = Kiln::new();
    let sockets = sockets();
    let socket = sockets.path().join("nbd");
    kiln.run(&["disk", "create", "base", "--size", "1M"]).exits(0);
    let _serving = Serving::start(&kiln, "base", &socket, &[]);
    let mut client = Client::connect(&socket, "base").expect("it serves");
    let (enough, flushed) =
        (AtomicBool::new(false), Vec::from_iter((0..BLOCKS).map(AtomicU64::new)));
    for one in &flushed {
        one.store(0, Ordering::Release);
    }
    let last = || flushed[flushed.len() - 1].load(Ordering::Acquire);
    let rounds = |file: &str| {
        let bytes = std::fs::read(kiln.folder().join(file)).expect("it was exported");
        let blocks = bytes.chunks(BLOCK).take(usize::try_from(BLOCKS).expect("few blocks"));
        (0..).zip(blocks).map(|(block, bytes)| round_of(block, bytes)).collect::<Vec<u64>>()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| write_rounds(&mut client, 1, &flushed, &enough));
        let mut taken = Vec::new();
        for snapshot in 0..5 {
            let name = format!("moment-{snapshot}");
            let (before, target) = (last(), last() + 2);
            kiln.run(&["disk", "snap", "base", &name]).exits(0);
            let after = last();
            let file = format!("{name}.img");
            kiln.run(&["disk", "export", &format!("base@{name}"), &file]).exits(0);
            let found = rounds(&file);
            // One write at a time was under way: up to some block the later round, from there the one before.
            let (first, end) = (found[0], found[found.len() - 1]);
            let border = found.iter().position(|round| *round != first).unwrap_or(found.len());
            assert!(
                first - end <= 1 && found[border..].iter().all(|round| *round == end),
                "{found:?}"
            );
            assert!(end >= before && first <= after + 2, "{before}..{after}: {found:?}");
            taken.push((name, found));
            // The disk moves on.
            while last() < target {
                pause();
            }
        }
        enough.store(true, Ordering::Release);
        for (name, found) in taken {
            kiln.run(&["disk", "export", &format!("base@{name}"), "again.img"]).exits(0);
            assert_eq!(rounds("again.img"), found, "{name} changed");
        }
    });
    kiln.run(&["disk", "verify"]).exits(0);
}

#[test]
fn a_killed_command_takes_what_it_served_with_it() {
    let kiln = Kiln::new();
    let sockets = sockets();
    let socket = sockets.path().join("nbd");
    kiln.run(&["disk", "create", "base", "--size", "1M"]).exits(0);
    let mut serving = Serving::start(&kiln, "base", &socket, &[]);
    let second = ["disk", "serve", "base", "--nbd", "localhost:0"];
    kiln.run(&second).exits(2).complains(&["being served for writing", "two writers"]);
    kiln.run(&["disk", "snap", "base", "kept"]).exits(0);
    kiln.run(&["disk", "rm", "base", "--snapshots"]).exits(2).complains(&["is being served"]);
    let snapshots = kiln.run(&["disk", "snaps", "base"]).exits(0).stdout;
    assert!(snapshots.starts_with("base@kept "), "a refused removal removed {snapshots}");
    let pid = owner(&pool(&kiln));
    serving.0.kill().expect("it is there");
    while socket.exists() || !is_gone(pid) {
        pause();
    }
    let left: Vec<_> = std::fs::read_dir(kiln.home().join("data")).expect("a folder").collect();
    assert_eq!(left.len(), 1, "{left:?}");
    kiln.run(&["disk", "rm", "base", "--snapshots"]).exits(0);
}

#[test]
fn an_owner_that_is_told_to_end_stores_everything_and_goes() {
    let kiln = Kiln::new();
    let sockets = sockets();
    let socket = sockets.path().join("nbd");
    kiln.run(&["disk", "create", "base", "--size", "1M"]).exits(0);
    let serving = Serving::start(&kiln, "base", &socket, &[]);
    let mut client = Client::connect(&socket, "base").expect("it serves");
    client.write(0, &stamped(0, 1)).expect("it can be written");
    let pid = owner(&pool(&kiln));
    kill_process(pid, Signal::TERM).expect("it is there");
    let (code, said) = serving.ends();
    assert_eq!(code, Some(103), "{said}");
    assert!(said.contains("told to leave"), "{said}");
    while !is_gone(pid) {
        pause();
    }
    kiln.run(&["disk", "export", "base", "base.img"]).exits(0);
    let bytes = std::fs::read(kiln.folder().join("base.img")).expect("it was exported");
    assert_eq!(round_of(0, &bytes[..BLOCK]), 1, "it had not even been flushed");
}

#[test]
fn a_pool_with_a_long_path_or_in_a_folder_nobody_may_write_to_has_an_owner_too() {
    let kiln = Kiln::new();
    kiln.write("data.img", vec![7; 8192]);
    let long = format!("{}/p.pool", ["a-folder-with-a-name-of-some-length"; 6].join("/"));
    for _ in 0..2 {
        kiln.run(&["disk", "import", "data.img", "base", "--pool", &long]).exits(0);
        kiln.run(&["disk", "verify", "base", "data.img", "--pool", &long]).exits(0);
        kiln.run(&["disk", "rm", "base", "--pool", &long]).exits(0);
    }
}

#[test]
fn what_keeps_an_owner_from_starting_is_told_word_for_word() {
    let kiln = Kiln::new();
    kiln.run(&["disk", "create", "base", "--size", "1M"]).exits(0);
    std::fs::create_dir(kiln.home().join("data/disks.pool.sock")).expect("a folder");
    // Nothing may listen beside the pool, so it is done in the user's private folder.
    kiln.run(&["disk", "export", "base", "base.img"]).exits(0);
    kiln.run(&["disk", "own", "--leave"]).exits(0);
    std::fs::write(pool(&kiln), vec![1; 1 << 20]).expect("it can be written");
    kiln.run(&["disk", "export", "base", "base.img"]).exits(2).complains(&["this is not a pool"]);
}

#[test]
fn many_commands_at_once_share_one_owner() {
    let kiln = Kiln::new();
    kiln.write("data.img", vec![7; 1 << 20]);
    kiln.run(&["disk", "create", "base", "--size", "1M"]).exits(0);
    std::thread::scope(|scope| {
        for number in 0..6 {
            let kiln = &kiln;
            scope.spawn(move || {
                let name = format!("disk-{number}");
                kiln.run(&["disk", "import", "data.img", &name]).exits(0);
                kiln.run(&["disk", "snap", &name, "one"]).exits(0);
            });
        }
    });
    let all = kiln.run(&["disk", "ls", "--format", "json"]).exits(0).json();
    assert_eq!(all.as_array().map(Vec::len), Some(7));
    kiln.run(&["disk", "verify"]).exits(0);
}
