//! `kiln disk`: the whole life of disks, by the program.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::kiln::Kiln;

const MIB: u64 = 1 << 20;

/// A sparse file with bytes here and there, zeros that take space, and holes.
fn sparse(kiln: &Kiln, name: &str) -> u64 {
    let path = kiln.write(name, "");
    let file = std::fs::File::options().write(true).open(&path).expect("it was written");
    file.set_len(64 * MIB).expect("it can be sparse");
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n % 251 + 1).to_le_bytes()[0]).collect();
    for at in [0, 5 * MIB - 8192, 40 * MIB + 4096, 64 * MIB - 300_000] {
        file.write_all_at(&bytes, at).expect("it can be written");
    }
    file.write_all_at(&[0; 2 << 20], 20 * MIB).expect("it can be written");
    64 * MIB
}

fn same(kiln: &Kiln, one: &str, other: &str) -> bool {
    let read = |name: &str| std::fs::read(kiln.folder().join(name)).expect("it is there");
    read(one) == read(other)
}

fn do_all(kiln: &Kiln, commands: &[&str]) {
    for line in commands {
        let words: Vec<&str> = line.split(' ').collect();
        kiln.run(&words).exits(0);
    }
}

/// `kiln disk serve`, ended when it is dropped.
struct Served {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Served {
    fn start(kiln: &Kiln, arguments: &[&str]) -> (Served, Vec<String>) {
        let mut command = kiln.command(&["disk", "serve"]);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("kiln starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut served = Served { child, lines };
        let names = arguments.iter().take_while(|word| !word.starts_with("--")).count();
        let uris = (0..names).map(|_| served.line()).collect();
        (served, uris)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let len = self.lines.read_line(&mut line).expect("stdout can be read");
        assert!(len > 0, "it ended early");
        line.trim().to_owned()
    }

    fn end(mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), signal).expect("it can be told");
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).expect("stdout can be read");
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn qemu_img(arguments: &[&str]) -> bool {
    let status = Command::new("qemu-img")
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.expect("qemu-img is installed (package qemu-utils)").success()
}

#[test]
fn an_imported_file_is_exported_byte_for_byte_with_its_holes() {
    let kiln = Kiln::new();
    let size = sparse(&kiln, "source.img");
    let imported = kiln.run(&["disk", "import", "source.img", "base"]).exits(0);
    let imported = imported.complains(&["made the pool", "home/data/disks.pool"]);
    assert!(imported.stdout.starts_with("imported base, 64M"), "{}", imported.stdout);
    let stat = kiln.run(&["disk", "stat", "base", "--format", "json"]).exits(0).json();
    assert_eq!(stat["size"], size);
    let referenced = stat["referenced"].as_u64().unwrap();
    assert!((1_200_000..1_300_000).contains(&referenced), "zeros take no space: {referenced}");
    assert_eq!(stat["unique"].as_u64().map(|unique| unique >= referenced), Some(true));
    kiln.run(&["disk", "export", "base", "copy.img"]).exits(0);
    assert!(same(&kiln, "source.img", "copy.img"));
    let blocks = std::fs::metadata(kiln.folder().join("copy.img")).unwrap().blocks();
    assert!(blocks * 512 < 2 * MIB, "{blocks} sectors");
    do_all(&kiln, &["disk verify base source.img", "disk verify", "disk verify --maps"]);
    let pool = std::fs::metadata(kiln.home().join("data/disks.pool")).unwrap();
    assert!(pool.blocks() * 512 < 128 * MIB, "the pool takes what it needs, a little ahead");
    kiln.run(&["disk", "own", "--leave"]).exits(0);
    let left = std::fs::read_dir(kiln.home().join("data")).unwrap().count();
    assert_eq!(left, 1, "nothing is left beside the pool");
}

#[test]
fn a_disk_lives_through_snapshots_clones_a_rollback_and_its_end() {
    let kiln = Kiln::new();
    sparse(&kiln, "one.img");
    kiln.write("two.img", vec![7; 4096 * 3 + 5]);
    let import = "disk import one.img base";
    do_all(&kiln, &[import, "disk snap base ready", "disk clone base@ready vm-1"]);
    let named = kiln.run(&["disk", "snap", "base"]).exits(0).stdout;
    assert!(named.starts_with("base@2"), "{named}");
    // What a client writes to the disk changes neither its snapshot nor the clone.
    let (served, uris) = Served::start(&kiln, &["base", "--nbd", "localhost:0"]);
    assert!(qemu_img(&[
        "bench",
        "-w",
        "-c",
        "8",
        "-d",
        "1",
        "--pattern=7",
        "-f",
        "raw",
        "-o",
        "8388608",
        &uris[0]
    ]));
    assert_eq!(served.end(Signal::INT), Some(0));
    kiln.run(&["disk", "verify", "base", "one.img"]).exits(102);
    do_all(&kiln, &["disk verify base@ready one.img", "disk verify vm-1 one.img"]);
    // The map tells what changed, to the block.
    let json = ["disk", "diff", "base@ready", "base", "--format", "json"];
    let ranges = kiln.run(&json).exits(0).json()["ranges"].clone();
    assert_eq!(ranges, serde_json::json!([{"at": 8 * MIB, "len": 8 * 4096, "kind": "data"}]));
    assert_eq!(kiln.run(&["disk", "diff", "base@ready", "vm-1"]).exits(0).stdout, "");
    do_all(&kiln, &["disk rollback base@ready", "disk verify base one.img"]);
    let other = ["disk", "import", "two.img", "small", "--format", "json"];
    assert_eq!(kiln.run(&other).exits(0).json()["size"], 4 * 4096);
    do_all(&kiln, &["disk verify small two.img", "disk rename small tiny"]);
    kiln.run(&["disk", "resize", "tiny", "4K"]).exits(2).complains(&["would be lost", "--shrink"]);
    do_all(&kiln, &["disk resize tiny 1G", "disk resize tiny 4K --shrink"]);
    assert_eq!(
        kiln.run(&["disk", "ls"]).exits(0).stdout,
        "base                          64M     1.1 MiB used  from base@ready\n\
         tiny                           4K     0.0 MiB used\n\
         vm-1                          64M     1.1 MiB used  from base@ready\n"
    );
    kiln.run(&["disk", "rm", "base"]).exits(2).complains(&["2 snapshots", "--snapshots"]);
    do_all(&kiln, &["disk rm base --snapshots", "disk verify vm-1 one.img"]);
    let freed = kiln.run(&["disk", "gc", "--format", "json"]).exits(0).json();
    assert!(freed["used"].as_u64() < freed["total"].as_u64());
    do_all(&kiln, &["disk rm vm-1 tiny", "disk gc", "disk repair"]);
    assert_eq!(
        kiln.run(&["disk", "ls", "--format", "json"]).exits(0).json(),
        serde_json::json!([])
    );
}

#[test]
fn served_disks_are_what_they_were_imported_from() {
    let kiln = Kiln::new();
    // A unix socket's path has to be short.
    let sockets = tempfile::tempdir_in("/tmp").unwrap();
    let socket = format!("unix:{}", sockets.path().join("nbd").display());
    sparse(&kiln, "source.img");
    do_all(
        &kiln,
        &["disk import source.img base", "disk snap base ready", "disk clone base@ready vm"],
    );
    let names = ["base@ready", "vm", "--nbd", &socket, "--read-only"];
    let (served, uris) = Served::start(&kiln, &names);
    let source = kiln.folder().join("source.img").display().to_string();
    for uri in &uris {
        assert!(qemu_img(&["compare", "-f", "raw", "-F", "raw", &source, uri]), "{uri}");
        assert!(!qemu_img(&["bench", "-w", "-c", "1", "-f", "raw", uri]), "it is read-only");
    }
    // Others work with the pool meanwhile, and learn who is in their way.
    let server = format!("process {}", served.child.id());
    kiln.run(&["disk", "rm", "vm"]).exits(2).complains(&["being served", &server]);
    kiln.run(&["disk", "rollback", "base@ready"]).exits(0);
    kiln.run(&["disk", "repair"]).exits(2).complains(&["disks are served"]);
    kiln.run(&["disk", "own", "--leave"]).exits(2).complains(&["disks are served"]);
    do_all(&kiln, &["disk ls", "disk verify", "disk stat vm", "disk resize vm 128M"]);
    assert_eq!(served.end(Signal::TERM), Some(0));
    assert_eq!(std::fs::read_dir(sockets.path()).unwrap().count(), 0, "the socket is gone");
    do_all(&kiln, &["disk ls", "disk verify"]);
}

#[test]
fn names_that_are_not_there_come_with_the_nearest_one() {
    let kiln = Kiln::new();
    kiln.run(&["disk", "stat", "base"]).exits(2).complains(&["no pool at", "kiln disk create"]);
    kiln.run(&["disk", "ls"]).exits(0).complains(&["no disks yet"]);
    do_all(&kiln, &["disk create base --size 1G", "disk snap base@ready"]);
    for arguments in [["disk", "stat", "bsae"], ["disk", "rm", "bsae"]] {
        kiln.run(&arguments).exits(2).complains(&["\"bsae\"", "did you mean base?"]);
    }
    let clone = ["disk", "clone", "base@redy", "vm"];
    kiln.run(&clone).exits(2).complains(&["no snapshot \"redy\"", "did you mean base@ready?"]);
    kiln.run(&["disk", "clone", "base", "vm"]).exits(2).complains(&["kiln disk snaps base"]);
    kiln.run(&["disk", "resize", "base@ready", "2G"]).exits(2).complains(&["is a snapshot"]);
    kiln.run(&["disk", "create", "base", "--size", "1G"]).exits(2).complains(&["exists already"]);
    kiln.run(&["disk", "create", "a/b", "--size", "1G"]).exits(2).complains(&["is not a name"]);
    kiln.run(&["disk", "create", "odd", "--size", "5000"]).exits(2).complains(&["whole blocks"]);
    let quota = ["disk", "create", "odd", "--size", "1G", "--quota", "100"];
    kiln.run(&quota).exits(2).complains(&["a quota of 100 is not whole blocks"]);
    let reserved = ["disk", "create", ".tmp-mine", "--size", "1G"];
    kiln.run(&reserved).exits(2).complains(&["are for temporary disks"]);
    kiln.run(&["disk", "import", "gone.img", "new"]).exits(2).complains(&["gone.img"]);
    kiln.run(&["disk", "export", "base", "/dev/null"]).exits(2).complains(&["not a regular file"]);
    let said = kiln.run(&["disk", "stat", "\u{1b}[2J"]).exits(2).stderr;
    assert!(!said.contains('\u{1b}'), "{said:?}");
}

#[test]
fn a_damaged_pool_is_told_from_a_file_that_is_none() {
    let kiln = Kiln::new();
    kiln.write("none.pool", vec![1; 1 << 20]);
    let none = ["disk", "ls", "--pool", "none.pool"];
    kiln.run(&none).exits(2).complains(&["this is not a pool"]);
    kiln.write("data.img", vec![0x5a; 1 << 20]);
    kiln.run(&["disk", "import", "data.img", "base", "--pool", "my.pool"]).exits(0);
    assert!(!kiln.home().join("data").exists(), "the pool is where it was asked for");
    kiln.run(&["disk", "own", "--leave", "--pool", "my.pool"]).exits(0);
    flip(&kiln.folder().join("my.pool"));
    let broken = kiln.run(&["disk", "verify", "--pool", "my.pool"]).exits(102);
    assert!(broken.stdout.contains("is damaged"), "{}", broken.stdout);
    let export = ["disk", "export", "base", "out.img", "--pool", "my.pool"];
    kiln.run(&export).exits(102).complains(&["damaged", "base"]);
    assert!(!kiln.folder().join("out.img").exists(), "wrong bytes are not given out");
}

/// Changes a bit in the first block of the disk's data.
fn flip(pool: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(pool).expect("a pool");
    let mut block = vec![0; 4096];
    let is_data = |at: &u64| {
        file.read_exact_at(&mut block, *at).expect("the pool is longer than its data");
        block.iter().all(|byte| *byte == 0x5a)
    };
    let at = (0..).step_by(4096).find(is_data).expect("data");
    file.write_all_at(&[0x5b], at + 17).expect("it can be written");
}
