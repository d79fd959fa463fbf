//! What is served and what is temporary ends with whoever wanted it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use kiln_block::ByteLen;
use kiln_parallax::{DiskOptions, Pool, PoolOptions};
use kiln_store::{Frontend, Reply, Request, Serve, Store, StoreError, TEMPORARY, Why};

use crate::house::{FOREVER, MIB, Place, create, is_in_use, names, nothing, refusal, snap};

fn nbd(place: &Place, name: &str) -> Frontend {
    let path = place.folder.path().join(name);
    Frontend::Nbd { address: format!("unix:{}", path.display()), tls: None }
}

/// Waits until the owner has seen the end of a client.
fn until(store: &Store, condition: impl Fn(&Store) -> bool) {
    while !condition(store) {
        std::thread::yield_now();
    }
}

/// The greeting of an NBD server.
fn greets(place: &Place, name: &str) -> bool {
    let Ok(mut client) = UnixStream::connect(place.folder.path().join(name)) else { return false };
    let mut magic = [0; 8];
    client.read_exact(&mut magic).is_ok() && &magic == b"NBDMAGIC"
}

#[test]
fn a_served_disk_ends_with_its_lease_however_that_ends() {
    let place = Place::new();
    let _owner = place.own(FOREVER);
    let store = place.open();
    create(&store, "base", MIB);
    let serve = Serve::new(["base"], nbd(&place, "nbd"));
    let lease = store.serve(&serve).unwrap();
    assert!(lease.served()[0].uri.starts_with("nbd+unix:///base?socket="));
    assert!(greets(&place, "nbd"));
    assert_eq!(lease.end().unwrap(), 0);
    assert!(!place.folder.path().join("nbd").exists());
    let lease = store.serve(&serve).unwrap();
    // As the kernel does it for a killed process.
    drop(lease);
    // The disk is free last of all, after the path.
    until(&store, |store| match store.ask(Request::Tree).unwrap() {
        Reply::Tree { nodes } => nodes.iter().all(|node| !node.served),
        other => panic!("{other:?}"),
    });
    assert!(!place.folder.path().join("nbd").exists());
    store.serve(&serve).unwrap().end().unwrap();
}

#[test]
fn tools_work_while_a_disk_is_served_and_what_must_not_be_done_is_refused() {
    let place = Place::new();
    let _owner = place.own(FOREVER);
    let store = place.open();
    create(&store, "base", MIB);
    snap(&store, "base", "old");
    let serve = Serve::new(["base", "base@old"], nbd(&place, "nbd"));
    let lease = store.serve(&serve).unwrap();
    let own = format!("process {}", std::process::id());
    for request in [
        Request::Remove { names: vec!["base".into()], snapshots: true },
        Request::Rollback { disk: "base".into(), snapshot: "old".into() },
        Request::Remove { names: vec!["base@old".into()], snapshots: false },
    ] {
        let said = refusal(store.ask(request));
        assert!(is_in_use(&said) && said.text.contains(&own), "{said:?}");
    }
    snap(&store, "base", "new");
    for request in [Request::Gc, Request::Verify { data: true }, Request::Metrics] {
        store.ask(request).unwrap();
    }
    let resize = Request::Resize { disk: "base".into(), size: 2 * MIB, shrink: false };
    assert_eq!(store.ask(resize).unwrap(), Reply::Resized { was: MIB });
    let rename = Request::Rename { disk: "base".into(), name: "other".into() };
    assert_eq!(store.ask(rename).unwrap(), Reply::Done);
    let Reply::Tree { nodes } = store.ask(Request::Tree).unwrap() else { panic!("no tree") };
    let served: Vec<_> = nodes.iter().filter(|node| node.served).map(|node| &*node.name).collect();
    assert_eq!(served, ["other"], "a renamed disk is still served");
    lease.end().unwrap();
    let all = Request::Remove { names: vec!["other".into()], snapshots: true };
    store.ask(all).unwrap();
}

#[test]
fn a_second_writer_is_refused_unless_it_says_that_it_shares() {
    let place = Place::new();
    let _owner = place.own(FOREVER);
    let store = place.open();
    create(&store, "base", MIB);
    let lease = store.serve(&Serve::new(["base"], nbd(&place, "one"))).unwrap();
    let mut second = Serve::new(["base"], nbd(&place, "two"));
    let said = refusal(store.serve(&second));
    assert!(is_in_use(&said) && said.text.contains("two writers"), "{said:?}");
    assert!(!greets(&place, "two"), "nothing of it is left");
    second.read_only = true;
    store.serve(&second).unwrap().end().unwrap();
    (second.read_only, second.shared) = (false, true);
    store.serve(&second).unwrap().end().unwrap();
    lease.end().unwrap();
}

#[test]
fn of_several_ways_one_that_fails_undoes_the_others() {
    let place = Place::new();
    let _owner = place.own(FOREVER);
    let store = place.open();
    create(&store, "base", MIB);
    let mut serve = Serve::new(["base"], nbd(&place, "one"));
    let socket = place.folder.path().join("vhost.sock");
    serve.frontends.push(Frontend::VhostUser { path: socket.clone(), serial: None });
    serve.frontends.push(Frontend::Nbd { address: "0.0.0.0:0".into(), tls: None });
    let said = refusal(store.serve(&serve));
    assert!(said.why == Why::Request && said.text.contains("loopback"), "{said:?}");
    assert!(!socket.exists() && !greets(&place, "one"));
    serve.frontends.pop();
    let lease = store.serve(&serve).unwrap();
    assert_eq!(lease.served()[1].uri, socket.display().to_string());
    assert!(socket.exists() && greets(&place, "one"));
    lease.end().unwrap();
}

#[test]
fn temporary_disks_go_with_their_lease_and_kept_ones_stay() {
    let place = Place::new();
    let _owner = place.own(FOREVER);
    let store = place.open();
    create(&store, "base", MIB);
    snap(&store, "base", "ready");
    let mut lease = store.clone_temporary(Some("base@ready"), 0, "run-1").unwrap();
    let first = lease.disk().to_owned();
    let second = lease.clone_temporary(None, MIB, "run-1").unwrap();
    assert!(first.starts_with(TEMPORARY) && second.starts_with(&first), "{first} {second}");
    lease.serve(&Serve::new([&*first, &*second], nbd(&place, "nbd"))).unwrap();
    lease.keep(&first, "failed-run").unwrap();
    assert!(lease.keep("base", "mine").is_err(), "only what is its own");
    drop(lease);
    until(&store, |store| names(store) == ["base", "failed-run"]);
    let Reply::Disk(kept) = store.ask(Request::Stat { disk: "failed-run".into() }).unwrap() else {
        panic!("no disk")
    };
    assert!(!kept.throw_away, "what is kept is durable");
}

#[test]
fn what_a_killed_owner_left_is_adopted_or_collected() {
    let place = Place::new();
    {
        let pool = Pool::open_file(&place.pool, &PoolOptions::default()).unwrap();
        for name in [".tmp-one", ".tmp-two"] {
            pool.create_disk(name, ByteLen::mib(1), &DiskOptions::default()).unwrap();
        }
    }
    // Such disks are looked after by an owner, for it takes time.
    let started = Store::open(&place.pool, &nothing());
    assert!(matches!(started, Err(StoreError::Start { .. })), "{started:?}");
    let _owner = place.own(FOREVER);
    let store = place.open();
    let mut lease = store.lease().unwrap();
    assert_eq!(lease.adopt(".tmp-one").unwrap(), ".tmp-one");
    assert!(store.lease().unwrap().adopt(".tmp-one").is_err(), "somebody holds it");
    store.ask(Request::Gc).unwrap();
    assert_eq!(names(&store), [".tmp-one"], "what is held is not an orphan");
    drop(lease);
    until(&store, |store| names(store).is_empty());
}

#[test]
fn figures_tell_what_clients_did() {
    let place = Place::new();
    let _owner = place.own(FOREVER);
    let store = place.open();
    create(&store, "base", MIB);
    let lease = store.serve(&Serve::new(["base"], nbd(&place, "nbd"))).unwrap();
    // By hand: the handshake without zeroes, the export by name, one write and a goodbye.
    let mut client = UnixStream::connect(place.folder.path().join("nbd")).unwrap();
    client.read_exact(&mut [0; 18]).unwrap();
    client.write_all(&3_u32.to_be_bytes()).unwrap();
    client.write_all(b"IHAVEOPT").unwrap();
    client.write_all(&[0, 0, 0, 1, 0, 0, 0, 4]).unwrap();
    client.write_all(b"base").unwrap();
    client.read_exact(&mut [0; 10]).unwrap();
    let mut request = [0; 28];
    request[..4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
    request[7] = 1;
    request[26] = 0x10;
    client.write_all(&request).unwrap();
    client.write_all(&[9; 4096]).unwrap();
    client.read_exact(&mut [0; 16]).unwrap();
    let Reply::Metrics { pool, disks } = store.ask(Request::Metrics).unwrap() else {
        panic!("no figures")
    };
    assert_eq!((pool.pid, pool.connections), (std::process::id(), 2));
    assert_eq!((disks[0].name.as_str(), disks[0].served), ("base", true));
    assert_eq!((disks[0].write.count, disks[0].write.bytes), (1, 4096));
    assert_eq!(disks[0].write.latency.0.iter().sum::<u64>(), 1);
    drop(client);
    lease.end().unwrap();
}
