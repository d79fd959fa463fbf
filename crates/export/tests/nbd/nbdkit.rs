//! nbdkit and libnbd's other programs: what they check for themselves.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice};
use kiln_export::nbd::{Address, Server};

use crate::client::one;
use crate::programs::{run, try_run};
use crate::sockets::socket_folder;

struct Served {
    server: Server,
    folder: tempfile::TempDir,
}

impl Served {
    fn new(device: Arc<dyn BlockDevice>) -> Served {
        let folder = socket_folder();
        let address = Address::Unix(folder.path().join("s"));
        Served { server: Server::start(&address, one(device)).unwrap(), folder }
    }

    fn uri(&self) -> String {
        self.server.address().uri("disk")
    }

    /// What nbdkit's own NBD client needs to be told.
    fn plugin(&self) -> [String; 3] {
        ["nbd".to_owned(), format!("uri={}", self.uri()), "shared=true".to_owned()]
    }
}

/// Runs nbdkit with this in front of our server, and a command that talks to nbdkit.
fn through_nbdkit(before: &[&str], served: &Served, command: &str) -> String {
    let plugin = served.plugin();
    let mut arguments = vec!["-U", "-"];
    arguments.extend(before);
    arguments.extend(plugin.iter().map(String::as_str));
    arguments.extend(["--run", command]);
    run("nbdkit", &arguments)
}

fn patchy() -> Arc<MemoryDevice> {
    let device = MemoryDevice::new(ByteLen::mib(8));
    let mut bytes = vec![0; 300_000];
    Dice::seeded(21).fill(&mut bytes);
    for at in [0, 3 << 20, (8 << 20) - 300_000] {
        device.write_at(ByteOffset::new(at), &bytes).unwrap();
    }
    Arc::new(device)
}

/// The plugin knows which bytes it gave out, and refuses others when they are written back to it.
#[test]
fn sparse_random_data_comes_back_as_nbdkit_gave_it() {
    let device = Arc::new(MemoryDevice::new(ByteLen::mib(64)));
    let served = Served::new(device.clone());
    let ours = served.uri();
    let command = format!("nbdcopy \"$uri\" '{ours}' && nbdcopy '{ours}' \"$uri\"");
    run("nbdkit", &["-U", "-", "sparse-random", "size=64M", "seed=7", "--run", &command]);
    // A byte that was not given out is refused, so the check is one.
    let mut byte = [0];
    let at = device.extents(ByteOffset::ZERO, ByteLen::mib(64)).unwrap();
    let at = at.iter().find(|extent| extent.kind == kiln_block::ExtentKind::Data).unwrap().at;
    device.read_at(at, &mut byte).unwrap();
    device.write_at(at, &[byte[0] ^ 1]).unwrap();
    let command = format!("nbdcopy '{ours}' \"$uri\"");
    let arguments = ["-U", "-", "sparse-random", "size=64M", "seed=7", "--run", &command];
    assert!(!try_run("nbdkit", &arguments).status.success());
}

/// The filter reads what is written, zeroed and trimmed from the disk, and fails where it differs.
#[test]
fn nbdkit_finds_every_write_of_a_copy_in_the_disk() {
    let (source, target) = (patchy(), patchy());
    let (served, same) = (Served::new(source.clone()), Served::new(target.clone()));
    let command = format!("nbdcopy '{}' \"$uri\"", served.uri());
    through_nbdkit(&["--filter=checkwrite"], &same, &command);
    target.write_at(ByteOffset::new(5 << 20), b"x").unwrap();
    let plugin = same.plugin();
    let mut arguments = vec!["-U", "-", "--filter=checkwrite"];
    arguments.extend(plugin.iter().map(String::as_str));
    arguments.extend(["--run", &command]);
    assert!(!try_run("nbdkit", &arguments).status.success(), "and a difference is one");
}

#[test]
fn nbdkit_passes_on_the_same_map_and_the_same_bytes() {
    let device = patchy();
    let served = Served::new(device.clone());
    let direct = run("nbdinfo", &["--map", &served.uri()]);
    assert_eq!(through_nbdkit(&[], &served, "nbdinfo --map \"$uri\""), direct);
    let copy = served.folder.path().join("copy");
    through_nbdkit(&[], &served, &format!("nbdcopy \"$uri\" {}", copy.display()));
    assert!(fs::read(&copy).unwrap() == device.to_vec());
    let script = "qemu-io -f raw -c 'write -P 9 1M 1M' -c 'write -z 2M 1M' -c 'discard 4M 64k' -c flush \"$uri\"";
    let told = through_nbdkit(&[], &served, script);
    assert!(!told.contains("failed"), "{told}");
    let now = device.to_vec();
    assert!(now[1 << 20..2 << 20].iter().all(|byte| *byte == 9));
    assert!(now[2 << 20..3 << 20].iter().all(|byte| *byte == 0));
}

/// nbdfuse and the file it makes. The file goes when the test ends, also when it fails.
struct NbdFuse {
    child: Child,
    folder: PathBuf,
}

impl NbdFuse {
    fn over(served: &Served) -> NbdFuse {
        let folder = served.folder.path().join("mounted");
        fs::create_dir(&folder).unwrap();
        let child = Command::new("nbdfuse")
            .arg(folder.join("disk"))
            .arg(served.uri())
            .stdin(Stdio::null())
            .spawn()
            .expect("nbdfuse starts: script/bootstrap installs it");
        let mut mounted = NbdFuse { child, folder };
        let deadline = Instant::now() + Duration::from_secs(120);
        while !mounted.file().exists() {
            assert!(mounted.child.try_wait().unwrap().is_none(), "nbdfuse ended");
            assert!(Instant::now() < deadline, "nbdfuse does not mount");
            std::thread::sleep(Duration::from_millis(10));
        }
        mounted
    }

    fn file(&self) -> PathBuf {
        self.folder.join("disk")
    }

    fn unmount(mut self) {
        run("fusermount3", &["-u", self.folder.to_str().unwrap()]);
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for NbdFuse {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = rustix::mount::unmount(&self.folder, rustix::mount::UnmountFlags::DETACH);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[test]
fn nbdfuse_makes_a_file_of_the_disk() {
    let device = patchy();
    let served = Served::new(device.clone());
    let mounted = NbdFuse::over(&served);
    assert!(fs::read(mounted.file()).unwrap() == device.to_vec());
    let path = mounted.file();
    run(
        "dd",
        &[
            "if=/dev/zero",
            &format!("of={}", path.display()),
            "bs=64k",
            "count=3",
            "conv=notrunc,fsync",
        ],
    );
    mounted.unmount();
    assert!(device.to_vec()[..3 * 65536].iter().all(|byte| *byte == 0));
}
