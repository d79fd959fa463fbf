//! `docker-registry`, started for one test and ended with it.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A registry that keeps what it gets in a temporary folder.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: String,
    folder: TempDir,
}

/// The name `U*U` and this password, for [`Server::with_password`].
const HASH: &str = "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";

impl Server {
    /// Starts one for anybody.
    pub fn start() -> Server {
        Server::start_with("")
    }

    /// Starts one for those who are called `user` and know the password `U*U`.
    pub fn with_password() -> Server {
        Server::start_with("user")
    }

    fn start_with(user: &str) -> Server {
        let folder = tempfile::Builder::new().prefix("kiln-reg-").tempdir_in("/tmp").unwrap();
        let place = folder.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: \"{place}/data\"}}, maintenance: {{uploadpurging: {{enabled: \
             false}}}}}}\nhttp: {{addr: \"127.0.0.1:0\", secret: \"of a test\"}}\n"
        );
        if !user.is_empty() {
            std::fs::write(folder.path().join("users"), format!("{user}:{HASH}\n")).unwrap();
            config +=
                &format!("auth: {{htpasswd: {{realm: \"test\", path: \"{place}/users\"}}}}\n");
        }
        let file = folder.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let spawned = ["docker-registry", "registry"].iter().find_map(|program| {
            let mut command = Command::new(program);
            command.arg("serve").arg(&file).stdin(Stdio::null());
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().ok()
        });
        let mut child = spawned
            .expect("this test needs docker-registry: script/bootstrap --with-tests installs it");
        let mut log = BufReader::new(child.stderr.take().unwrap());
        // It chooses the port, and says which.
        let address = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "docker-registry ended");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split('"').next().unwrap().to_owned();
            }
        };
        // Nobody reads it, and it may not fill up.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Server { child, address, folder }
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where it keeps a blob.
    pub fn blob_path(&self, digest: &crate::Digest) -> PathBuf {
        let hex = digest.hex();
        let blobs = self.folder.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(&hex).join("data")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
