//! Where servers listen: whose a path is, and who may come.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kiln_block::{ByteLen, MemoryDevice};
use kiln_export::nbd::{Address, ListenError, Server};

use crate::client::{Client, go, one};

/// A folder whose path is short enough for sockets, wherever the tests run.
pub(crate) fn socket_folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("kiln-nbd").tempdir_in("/tmp").unwrap()
}

pub(crate) fn unix(path: &Path) -> Address {
    Address::Unix(path.to_owned())
}

fn start(path: &Path) -> Result<Server, ListenError> {
    Server::start(&unix(path), one(Arc::new(MemoryDevice::new(ByteLen::mib(1)))))
}

#[test]
fn a_socket_is_its_users_and_goes_with_its_server() {
    let folder = socket_folder();
    let path = folder.path().join("s");
    let server = start(&path).unwrap();
    let found = std::fs::metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    assert_eq!(server.address(), &unix(&path));
    drop(server);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
}

#[test]
fn what_a_dead_server_left_is_replaced() {
    let folder = socket_folder();
    let path = folder.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _server = start(&path).unwrap();
    Client::connect(&path).choose(true).hung_up();
}

#[test]
fn a_server_that_lives_keeps_its_socket() {
    let folder = socket_folder();
    let path = folder.path().join("s");
    let first = start(&path).unwrap();
    let error = start(&path).unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
    Client::connect(&path).choose(true).hung_up();
    drop(first);
    let _second = start(&path).unwrap();
}

#[test]
fn a_file_in_the_way_is_left_alone() {
    let folder = socket_folder();
    let path = folder.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    let error = start(&path).unwrap_err();
    assert!(matches!(error, ListenError::InTheWay { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
}

#[test]
fn a_server_whose_socket_was_replaced_does_not_remove_the_new_one() {
    let folder = socket_folder();
    let path = folder.path().join("s");
    let first = start(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _second = start(&path).unwrap();
    drop(first);
    Client::connect(&path).choose(true).hung_up();
}

#[test]
fn of_servers_that_race_for_a_stale_socket_one_wins_and_serves() {
    let folder = socket_folder();
    let path = folder.path().join("s");
    for _ in 0..20 {
        drop(UnixListener::bind(&path).unwrap());
        let barrier = std::sync::Barrier::new(8);
        let servers: Vec<Server> = std::thread::scope(|scope| {
            let race = || {
                barrier.wait();
                start(&path)
            };
            let racers: Vec<_> = (0..8).map(|_| scope.spawn(race)).collect();
            racers.into_iter().filter_map(|racer| racer.join().unwrap().ok()).collect()
        });
        assert_eq!(servers.len(), 1);
        Client::connect(&path).choose(false).hung_up();
    }
}

#[test]
fn a_path_that_is_too_long_or_has_no_folder_is_named() {
    let folder = socket_folder();
    let long = folder.path().join("x".repeat(120));
    let error = start(&long).unwrap_err();
    assert!(matches!(error, ListenError::PathTooLong { .. }), "{error}");
    let lost = folder.path().join("nowhere/s");
    let error = start(&lost).unwrap_err();
    assert!(matches!(error, ListenError::Io { .. }), "{error}");
    assert!(error.to_string().contains("nowhere/s"), "{error}");
}

#[test]
fn a_free_port_of_the_loopback_address_serves_the_same_words() {
    let exports = one(Arc::new(MemoryDevice::new(ByteLen::mib(1))));
    let server = Server::start(&"127.0.0.1:0".parse().unwrap(), exports).unwrap();
    let Address::Tcp(address) = *server.address() else { panic!("not a port") };
    let mut stream = TcpStream::connect(address).unwrap();
    let mut greeting = [0; 18];
    std::io::Read::read_exact(&mut stream, &mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
    std::io::Write::write_all(&mut stream, &3_u32.to_be_bytes()).unwrap();
    let words = crate::client::option(7, &go("disk", &[]));
    std::io::Write::write_all(&mut stream, &words).unwrap();
    let mut magic = [0; 8];
    std::io::Read::read_exact(&mut stream, &mut magic).unwrap();
    assert_eq!(u64::from_be_bytes(magic), 0x3_e889_0455_65a9);
    assert_eq!(server.stop(Duration::from_secs(600)), 0);
}

#[test]
fn an_address_that_other_machines_could_reach_is_refused() {
    let exports = one(Arc::new(MemoryDevice::new(ByteLen::mib(1))));
    let everywhere = Address::Tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    let error = Server::start(&everywhere, exports).unwrap_err();
    assert!(error.to_string().contains("TLS certificates"), "{error}");
}
