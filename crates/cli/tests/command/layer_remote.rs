//! `kiln layer push`, `pull`, `mount`, `umount` and `serve`, with a real registry, as root.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kiln_registry::testing::{Fault, Proxy, Server};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::kiln::{Ended, Kiln, ended};

/// A registry, a place for `kiln`, and a short folder of its own for what is mounted.
struct Place {
    kiln: Kiln,
    runtime: tempfile::TempDir,
    server: Server,
}

impl Place {
    fn new() -> Place {
        let runtime = tempfile::Builder::new().prefix("kiln-").tempdir_in("/tmp");
        let runtime = runtime.expect("a folder");
        Place { kiln: Kiln::new(), runtime, server: Server::start() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.kiln.command(arguments);
        command.env("XDG_RUNTIME_DIR", self.runtime.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        ended(&mut self.command(arguments))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.kiln.folder().join(name)
    }

    /// A file system of 24 MiB with some noise in it, as a layer.
    fn layer(&self, name: &str, how: &str) {
        let noise = noise(8 << 20);
        self.kiln.write("tree/large", &noise);
        self.kiln.write("tree/folder/small", "hello");
        let image = self.path("disk.img");
        fs::File::create(&image).and_then(|file| file.set_len(24 << 20)).expect("a sparse file");
        let mut mkfs = tool("mkfs.ext4");
        mkfs.args(["-q", "-b", "4096", "-d"]).arg(self.path("tree"));
        assert!(mkfs.arg(&image).status().expect("mkfs.ext4 runs").success());
        fs::remove_dir_all(self.path("tree")).expect("it was there");
        let convert = ["layer", "convert", "--to", "overlaybd", "--tar", "--output", name];
        self.run(&[&convert[..], &["--compress", how, "disk.img"]].concat()).exits(0);
    }

    /// What the registry calls the image, by way of an address.
    fn image(&self, address: &str) -> String {
        format!("{address}/disks/root:1")
    }

    /// Pushes a layer, and says what to call it.
    fn pushed(&self, name: &str) -> String {
        let image = self.image(self.server.address());
        self.run(&["layer", "push", "--fs-type", "ext4", name, &image]).exits(0);
        image
    }

    /// Mounts at `mnt`, and says what came of it.
    fn mount(&self, image: &[&str]) -> serde_json::Value {
        fs::create_dir_all(self.path("mnt")).expect("a folder");
        let start = ["layer", "mount", "--at", "mnt", "--format", "json"];
        self.run(&[&start[..], image].concat()).exits(0).json()
    }

    /// Nothing is mounted, and nobody serves anything.
    fn is_clean(&self) {
        let left = fs::read_dir(self.runtime.path().join("kiln/layers")).expect("it was used");
        let left: Vec<_> = left.map(|entry| entry.expect("it can be listed").path()).collect();
        assert_eq!(left, Vec::<PathBuf>::new());
        let runtime = self.runtime.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("it can be read");
        let folder = self.kiln.folder().display().to_string();
        assert!(!mounts.contains(&runtime) && !mounts.contains(&folder), "{mounts}");
        for entry in fs::read_dir("/sys/block").expect("it can be listed") {
            let file = entry.expect("a device").path().join("loop/backing_file");
            let behind = fs::read_to_string(file).unwrap_or_default();
            assert!(!behind.contains(&runtime), "{behind}");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What a test that failed has left.
        let _ = self.command(&["layer", "umount", "--all"]).output();
    }
}

fn tool(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).stdin(Stdio::null());
    command
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Waits for a process that is not ours to have ended.
fn wait_for(pid: &serde_json::Value) {
    let Ok(process) = pidfd_open(as_pid(pid), PidfdFlags::empty()) else { return };
    let mut waiting = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut waiting, None).expect("it can be waited for");
}

fn as_pid(pid: &serde_json::Value) -> Pid {
    let pid = pid.as_i64().and_then(|pid| i32::try_from(pid).ok());
    pid.and_then(Pid::from_raw).expect("a process")
}

fn holds_the_tree(root: &Path) {
    assert_eq!(fs::read(root.join("folder/small")).expect("it is there"), b"hello");
    assert!(fs::read(root.join("large")).expect("it is there") == noise(8 << 20));
}

#[test]
fn an_image_is_mounted_where_it_is_and_little_of_it_is_fetched() {
    let place = Place::new();
    place.layer("base.obd", "lz4");
    place.pushed("base.obd");
    let proxy = Proxy::start(place.server.address(), |_| Fault::None);
    let image = place.image(proxy.address());
    let mounted = place.mount(&[&image]);
    assert_eq!(mounted["read_only"], true);
    assert_eq!(fs::read(place.path("mnt/folder/small")).expect("it is there"), b"hello");
    let size = fs::metadata(place.path("base.obd")).expect("it is there").len();
    assert!(proxy.blob_bytes() < size / 5, "{} of {size}", proxy.blob_bytes());
    holds_the_tree(&place.path("mnt"));
    place.run(&["layer", "umount", "mnt"]).exits(0);
    place.is_clean();
    // The second time, the registry is asked for the manifest alone. The cache knows blobs by their digests.
    let proxy = Proxy::start(place.server.address(), |_| Fault::None);
    place.mount(&[&place.image(proxy.address())]);
    holds_the_tree(&place.path("mnt"));
    assert_eq!(proxy.blob_bytes(), 0);
    let device = place.run(&["layer", "umount", "/dev/none"]).exits(2);
    device.complains(&["has not mounted", "mnt"]);
    place.run(&["layer", "umount", "--all"]).exits(0);
    place.is_clean();
}

#[test]
fn what_is_pulled_is_what_was_pushed_and_mounts_lazily_too() {
    let place = Place::new();
    place.layer("base.obd", "zstd");
    let image = place.pushed("base.obd");
    place.run(&["layer", "push", "base.obd", &image]).exits(0).complains(&["there already"]);
    place.run(&["layer", "pull", &image]).exits(0);
    let pulled = fs::read(place.path("root/000.obd")).expect("it is there");
    assert!(pulled == fs::read(place.path("base.obd")).expect("it is there"));
    place.run(&["layer", "pull", &image]).exits(2).complains(&["there already", "--output"]);
    let json = ["layer", "pull", "--lazy", "--output", "lazy", &image, "--format", "json"];
    let json = place.run(&json).exits(0).json();
    assert_eq!(json["layers"][0]["size"], pulled.len());
    for config in ["root/config.v1.json", "lazy/config.v1.json"] {
        place.mount(&[config]);
        holds_the_tree(&place.path("mnt"));
        place.run(&["layer", "umount", "mnt"]).exits(0);
    }
    assert!(!place.path("lazy/000.obd").exists());
    place.is_clean();
}

#[test]
fn a_wrong_byte_on_the_way_is_never_read() {
    let place = Place::new();
    place.layer("base.obd", "lz4");
    place.pushed("base.obd");
    // Each range that comes for the first time has a bit flipped.
    let known = std::sync::Mutex::new(std::collections::BTreeSet::new());
    let proxy = Proxy::start(place.server.address(), move |seen| {
        let is_new = seen.is_blob() && known.lock().expect("alive").insert(seen.range.clone());
        if is_new { Fault::Flip(4321) } else { Fault::None }
    });
    place.mount(&[&place.image(proxy.address())]);
    holds_the_tree(&place.path("mnt"));
    place.run(&["layer", "umount", "mnt"]).exits(0);
    place.is_clean();
}

#[test]
fn a_layer_without_checksums_is_fetched_as_a_whole_first() {
    let place = Place::new();
    place.layer("plain.obd", "none");
    let image = place.pushed("plain.obd");
    fs::create_dir(place.path("mnt")).expect("a folder");
    let mount = ["layer", "mount", "--at", "mnt", &image];
    place.run(&mount).exits(0).complains(&["has no checksums"]);
    holds_the_tree(&place.path("mnt"));
    place.run(&["layer", "umount", "mnt"]).exits(0);
    // A registry that sends something else is found out before anything is mounted.
    fs::remove_dir_all(place.kiln.home().join("cache")).expect("it was there");
    let digest: kiln_registry::Digest = {
        let bytes = fs::read(place.path("plain.obd")).expect("it is there");
        kiln_registry::Digest::of(&bytes)
    };
    let blob = fs::File::options().write(true).open(place.server.blob_path(&digest));
    blob.and_then(|blob| blob.write_all_at(b"wrong", 3 << 20)).expect("it can be written");
    place.run(&mount).exits(102).complains(&["arrived damaged"]);
    place.is_clean();
}

#[test]
fn what_is_written_to_a_mounted_image_is_in_its_upper() {
    let place = Place::new();
    place.layer("base.obd", "lz4");
    let image = place.pushed("base.obd");
    place.run(&["layer", "create", "up.data", "up.index"]).exits(0);
    let upper = ["--upper", "up.data", "--upper-index", "up.index"];
    let mounted = place.mount(&[&upper[..], &[&image]].concat());
    assert_eq!(mounted["read_only"], false);
    fs::write(place.path("mnt/new"), noise(100_000)).expect("it can be written");
    // In use, it is left alone.
    let used = fs::File::open(place.path("mnt/new")).expect("it is there");
    place.run(&["layer", "umount", "mnt"]).exits(103).complains(&["is in use", "fuser"]);
    drop(used);
    place.run(&["layer", "umount", "mnt"]).exits(0);
    place.is_clean();
    // As a layer of its own, it is pushed with what it lies on.
    let commit = ["layer", "commit", "up.data", "up.index", "--tar", "--output", "top.obd"];
    place.run(&commit).exits(0);
    place.run(&["layer", "push", "base.obd", "top.obd", &image]).exits(0);
    place.mount(&[&image]);
    assert!(fs::read(place.path("mnt/new")).expect("it is there") == noise(100_000));
    holds_the_tree(&place.path("mnt"));
    place.run(&["layer", "umount", "mnt"]).exits(0);
    place.is_clean();
}

#[test]
fn a_folder_that_is_unmounted_ends_the_process_behind_it_once_all_is_written() {
    let place = Place::new();
    place.layer("base.obd", "lz4");
    place.run(&["layer", "create", "up.data", "up.index"]).exits(0);
    let image = ["--upper", "up.data", "--upper-index", "up.index", "base.obd"];
    let mounted = place.mount(&image);
    fs::write(place.path("mnt/new"), noise(3 << 20)).expect("it can be written");
    assert!(tool("umount").arg(place.path("mnt")).status().expect("umount runs").success());
    wait_for(&mounted["pid"]);
    place.is_clean();
    place.mount(&image);
    assert!(fs::read(place.path("mnt/new")).expect("it is there") == noise(3 << 20));
    place.run(&["layer", "umount", "mnt"]).exits(0);
}

#[test]
fn what_a_killed_process_left_is_taken_away() {
    let place = Place::new();
    place.layer("base.obd", "lz4");
    for ends_by in [["layer", "umount", "mnt"], ["layer", "umount", "--all"]] {
        let mounted = place.mount(&["base.obd"]);
        kill_process(as_pid(&mounted["pid"]), Signal::KILL).expect("it lives");
        wait_for(&mounted["pid"]);
        place.run(&ends_by).exits(0);
        place.is_clean();
    }
}

#[test]
fn a_mount_that_fails_leaves_nothing_and_says_why() {
    let place = Place::new();
    place.layer("base.obd", "lz4");
    let empty = fs::File::create(place.path("empty.img")).and_then(|file| file.set_len(1 << 20));
    empty.expect("a sparse file");
    let convert = ["layer", "convert", "--to", "overlaybd", "--output", "empty.obd", "empty.img"];
    place.run(&convert).exits(0);
    fs::create_dir(place.path("mnt")).expect("a folder");
    let mount = |image: &str| place.run(&["layer", "mount", "--at", "mnt", image]);
    mount("empty.obd").exits(96).complains(&["cannot mount the file system", "mnt"]);
    place.is_clean();
    mount("nothing").exits(2).complains(&["neither a file nor an image"]);
    place.run(&["layer", "create", "up.data", "up.index"]).exits(0);
    let half = ["layer", "mount", "--upper", "up.data", "base.obd"];
    place.run(&half).exits(2).complains(&["needs its index file", "--upper-index"]);
    place.run(&["layer", "umount", "--all"]).exits(0).complains(&["nothing was mounted"]);
    let nowhere = place.image(place.server.address());
    mount(&nowhere).exits(2).complains(&["is not in the registry"]);
    mount("disk.img").exits(102);
    place.run(&["layer", "mount", "--at", "missing", "base.obd"]).exits(2).complains(&["mkdir"]);
    place.is_clean();
}

#[test]
fn a_layer_that_is_in_no_tar_is_sent_in_one() {
    let place = Place::new();
    place.layer("in-tar.obd", "lz4");
    let convert = ["layer", "convert", "--to", "overlaybd", "--output", "plain.obd", "disk.img"];
    place.run(&convert).exits(0);
    let (plain, in_tar) = (place.path("plain.obd"), place.path("in-tar.obd"));
    let in_tar = fs::read(in_tar).expect("it is there");
    assert!(fs::read(plain).expect("it is there") != in_tar);
    let image = place.pushed("plain.obd");
    // What others make of it, byte for byte; so it is there already.
    place.run(&["layer", "push", "in-tar.obd", &image]).exits(0).complains(&["there already"]);
    place.run(&["layer", "pull", &image]).exits(0);
    assert!(fs::read(place.path("root/000.obd")).expect("it is there") == in_tar);
    place.run(&["layer", "verify", "root/config.v1.json"]).exits(0);
}

#[test]
fn what_was_read_once_is_fetched_before_anybody_asks_wherever_the_image_goes() {
    let place = Place::new();
    place.layer("base.obd", "lz4");
    place.mount(&["--record-trace", "start.trace", "base.obd"]);
    holds_the_tree(&place.path("mnt"));
    place.run(&["layer", "umount", "mnt"]).exits(0);
    let text = fs::read_to_string(place.path("start.trace")).expect("it was written");
    assert!(text.lines().count() > 2, "{text}");
    let image = place.image(place.server.address());
    let push = ["layer", "push", "--trace", "start.trace", "base.obd", &image];
    place.run(&push).exits(0).complains(&["start.trace: ", "sent"]);
    // Nobody reads the large file, and it comes.
    let proxy = Proxy::start(place.server.address(), |_| Fault::None);
    place.mount(&[&place.image(proxy.address())]);
    while proxy.blob_bytes() < 8 << 20 {
        std::thread::yield_now();
    }
    holds_the_tree(&place.path("mnt"));
    place.run(&["layer", "umount", "mnt"]).exits(0);
    // In a folder it lies on top, too, and is no layer.
    place.run(&["layer", "pull", &image]).exits(0);
    assert!(place.path("root/acceleration/trace").exists());
    place.mount(&["--trace", "start.trace", "root/config.v1.json"]);
    place.run(&["layer", "umount", "mnt"]).exits(0);
    let json = place.run(&["layer", "inspect", "root/config.v1.json", "--format", "json"]);
    assert_eq!(json.exits(0).json()["layers"].as_array().map(Vec::len), Some(1));
    // What somebody asks for has to be one; what comes along need not.
    let mount = ["layer", "mount", "--at", "mnt", "--trace", "base.obd", &image];
    place.run(&mount).exits(2).complains(&["--record-trace"]);
    place.kiln.write("root/acceleration/trace", "/etc/passwd");
    let mount = ["layer", "mount", "--at", "mnt", "root/config.v1.json"];
    place.run(&mount).exits(0).complains(&["nothing is fetched ahead"]);
    place.run(&["layer", "umount", "mnt"]).exits(0);
    place.is_clean();
}

/// `kiln layer serve`, ready; killed when dropped.
struct Serving(Child, Vec<String>);

impl Drop for Serving {
    fn drop(&mut self) {
        // Both fail when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_is_served_to_clients_of_several_kinds() {
    let place = Place::new();
    place.layer("base.obd", "lz4");
    let image = place.pushed("base.obd");
    place.run(&["layer", "serve", &image]).exits(2).complains(&["--nbd"]);
    let sockets = place.runtime.path();
    let (nbd, vhost) = (sockets.join("n"), sockets.join("v"));
    let nbd = format!("unix:{}", nbd.display());
    let ways = ["--nbd", &nbd, "--vhost-user", vhost.to_str().expect("a path")];
    let mut command = place.command(&[&["layer", "serve"][..], &ways, &[&image]].concat());
    let mut child = command.stdout(Stdio::piped()).spawn().expect("kiln starts");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let lines: Vec<String> = lines.take(2).map(|line| line.expect("it can be read")).collect();
    let mut serving = Serving(child, lines);
    assert!(vhost.exists());
    let mut copy = tool("qemu-img");
    copy.args(["convert", "-f", "raw", "-O", "raw", &serving.1[0]]);
    assert!(copy.arg(place.path("copy.img")).status().expect("qemu-img runs").success());
    let same = fs::read(place.path("copy.img")).expect("it is there")
        == fs::read(place.path("disk.img")).expect("it is there");
    assert!(same);
    let pid = Pid::from_child(&serving.0);
    kill_process(pid, Signal::INT).expect("it lives");
    assert_eq!(serving.0.wait().expect("it ends").code(), Some(0));
    assert!(!vhost.exists());
}
