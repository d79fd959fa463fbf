//! `kiln disk serve` in other ways than over a unix socket: as files, and to other machines within TLS.

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln_store::{Reply, Request, Store};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustix::process::{Pid, Signal, kill_process};

use crate::kiln::Kiln;

/// `kiln disk serve`, ready; killed when dropped, and its folder is no mount any more then.
struct Serving {
    child: Child,
    told: String,
    folder: PathBuf,
}

impl Serving {
    fn start(kiln: &Kiln, arguments: &[&str], folder: &Path) -> Serving {
        let mut command = kiln.command(&["disk", "serve"]);
        let mut child = command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("kiln starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut serving = Serving { child, told: String::new(), folder: folder.to_owned() };
        lines.read_line(&mut serving.told).expect("stdout can be read");
        assert!(serving.told.ends_with('\n'), "it ended early; a FUSE folder needs root or fuse3");
        serving
    }

    fn told(&self) -> &str {
        self.told.trim_end()
    }

    fn ends(&mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Both fail when all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if fs::read_dir(&self.folder).is_err() {
            let _ = rustix::mount::unmount(&self.folder, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// A pool with a disk of 8 MiB, and an empty folder whose path is short and known to nobody else.
fn prepared() -> (Kiln, tempfile::TempDir) {
    let kiln = Kiln::new();
    kiln.run(&["disk", "create", "a/b", "--size", "8M"]).exits(2);
    kiln.run(&["disk", "create", "disk", "--size", "8M"]).exits(0);
    (kiln, tempfile::Builder::new().prefix("kiln-").tempdir_in("/tmp").expect("a folder"))
}

/// Waits for what another process is about to do.
fn until<T>(mut happens: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        if let Some(found) = happens() {
            return found;
        }
        assert!(Instant::now() < deadline, "it does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn write(path: &str, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).expect("the file can be opened");
    file.write_all_at(bytes, at).expect("it can be written to");
    file.sync_all().expect("and flushed");
}

#[test]
fn a_disk_is_a_file_until_serving_ends() {
    let (kiln, folder) = prepared();
    let path = folder.path().to_str().expect("a plain path");
    let mut serving = Serving::start(&kiln, &["disk", "--fuse", path], folder.path());
    assert_eq!(serving.told(), format!("{path}/disk"));
    write(serving.told(), 4096, b"through a file");
    kill_process(Pid::from_child(&serving.child), Signal::TERM).expect("it runs");
    assert_eq!(serving.ends(), Some(0));
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0, "nothing is left");
    kiln.run(&["disk", "export", "disk", "copy.raw"]).exits(0);
    let copy = fs::read(kiln.folder().join("copy.raw")).expect("the copy");
    assert!(copy[4096..].starts_with(b"through a file"));
}

/// Another owner goes on for the command, in the folder that the killed one left with nobody behind it.
#[test]
fn a_folder_whose_owner_was_killed_is_served_again() {
    let (kiln, folder) = prepared();
    let path = folder.path().to_str().expect("a plain path");
    let mut serving = Serving::start(&kiln, &["disk", "--fuse", path], folder.path());
    write(serving.told(), 0, b"flushed");
    let pool = kiln.home().join("data/disks.pool");
    let store = Store::connected(&pool).expect("the pool is there").expect("it has an owner");
    let Reply::Metrics { pool, .. } = store.ask(Request::Metrics).expect("it answers") else {
        panic!("no figures")
    };
    drop(store);
    let owner = Pid::from_raw(i32::try_from(pool.pid).expect("a process")).expect("a process");
    kill_process(owner, Signal::KILL).expect("it runs");
    let bytes = until(|| fs::read(serving.told()).ok());
    assert!(bytes.starts_with(b"flushed") && bytes.len() == 8 << 20);
    write(serving.told(), 0, b"again");
    kill_process(Pid::from_child(&serving.child), Signal::TERM).expect("it runs");
    assert_eq!(serving.ends(), Some(0));
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0, "nothing is left");
}

/// A command that is killed cannot unmount; the owner does.
#[test]
fn a_killed_command_takes_its_folder_with_it() {
    let (kiln, folder) = prepared();
    let path = folder.path().to_str().expect("a plain path");
    let arguments = ["disk", "--fuse", path, "--read-only"];
    let mut serving = Serving::start(&kiln, &arguments, folder.path());
    OpenOptions::new().write(true).open(serving.told()).expect_err("it is read-only");
    serving.child.kill().expect("it runs");
    until(|| (fs::read_dir(folder.path()).ok()?.count() == 0).then_some(()));
}

#[test]
fn a_folder_with_files_is_refused() {
    let (kiln, folder) = prepared();
    fs::write(folder.path().join("precious"), "").expect("a file");
    let path = folder.path().to_str().expect("a plain path");
    kiln.run(&["disk", "serve", "disk", "--fuse", path]).exits(2).complains(&["is not empty"]);
}

#[test]
fn other_machines_are_served_within_tls_alone() {
    let (kiln, folder) = prepared();
    let far = ["disk", "serve", "disk", "--nbd", "0.0.0.0:0"];
    kiln.run(&far).exits(2).complains(&["not a loopback address", "TLS"]);
    kiln.run(&[&far[..], &["--tls", "nowhere"]].concat())
        .exits(96)
        .complains(&["nowhere/server-cert.pem"]);
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = || KeyPair::generate().expect("a key");
    let authority = CertifiedIssuer::self_signed(params, key()).expect("an authority");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let server = key();
    let certificate = params.signed_by(&server, &authority).expect("a certificate");
    kiln.write("tls/server-cert.pem", certificate.pem());
    kiln.write("tls/server-key.pem", server.serialize_pem());
    let arguments = ["disk", "--nbd", "0.0.0.0:0", "--tls", "tls"];
    let serving = Serving::start(&kiln, &arguments, folder.path());
    let uri = serving.told().replace("0.0.0.0", "localhost");
    assert!(uri.starts_with("nbds://localhost:"), "{uri}");
    kiln.write("client/ca-cert.pem", authority.pem());
    let (_, port) = uri.rsplit_once(':').expect("a port");
    let (port, _) = port.split_once('/').expect("a name");
    let output = Command::new("qemu-img")
        .args([
            "info",
            "--object",
            "tls-creds-x509,id=t,endpoint=client,dir=client",
            "--image-opts",
        ])
        .arg(format!("driver=nbd,host=localhost,port={port},export=disk,tls-creds=t"))
        .current_dir(kiln.folder())
        .stdin(Stdio::null())
        .output()
        .expect("qemu-img starts");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("8 MiB"), "{output:?}");
}
