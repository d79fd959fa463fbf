//! A back-end in a process of its own, to be killed: this very program, told to run one test that serves.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use kiln_block::{BlockDevice, FileDevice};
use kiln_export::Export;
use kiln_export::vhost_user::{Options, Server};

/// Tells the process where to listen, and which file to serve.
const SOCKET: &str = "KILN_TEST_VHOST_SOCKET";
const DISK: &str = "KILN_TEST_VHOST_DISK";

/// A process that serves a file; it dies with this.
pub(crate) struct Backend(pub(crate) Child);

impl Backend {
    pub(crate) fn start(socket: &Path, disk: &Path) -> Backend {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "serve::a_file_where_the_environment_says", "--nocapture"])
            .env(SOCKET, socket)
            .env(DISK, disk)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Backend(child)
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Serves until standard input ends; each line of it is a size that the disk grows to. There is nothing to do where
/// the environment says nothing.
#[test]
fn a_file_where_the_environment_says() {
    let (Some(socket), Some(disk)) = (std::env::var_os(SOCKET), std::env::var_os(DISK)) else {
        return;
    };
    let device = Arc::new(FileDevice::open(Path::new(&disk), false).unwrap());
    let export = Export::new(Arc::clone(&device) as _);
    let server = Server::start(Path::new(&socket), export, Options::default()).unwrap();
    for line in std::io::stdin().lines() {
        device.grow(line.unwrap().parse().unwrap()).unwrap();
        server.notify_resize();
    }
}
