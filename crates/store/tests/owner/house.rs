//! A pool with an owner, for tests.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use kiln_block::ByteLen;
use kiln_parallax::{Pool, PoolOptions};
use kiln_store::{
    Dismissal, Layers, NewDisk, Opened, Owner, Refusal, Reply, Request, Start, Store, StoreError,
    Why,
};

/// So long that nobody leaves by itself.
pub(crate) const FOREVER: Duration = Duration::from_secs(3600);
pub(crate) const MIB: u64 = 1 << 20;

/// A pool in a folder of its own.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) pool: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Place {
        let folder = tempfile::tempdir().expect("it works");
        let pool = folder.path().join("disks.pool");
        let options = PoolOptions { log: ByteLen::mib(2), ..PoolOptions::default() };
        Pool::create_file(&pool, ByteLen::mib(256), &options).expect("it works");
        Place { folder, pool }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("disks.pool.sock")
    }

    pub(crate) fn own(&self, idle: Duration) -> House {
        let Opened::Owner(owner) = Owner::open(&self.pool, &Layers::default()).expect("it works")
        else {
            panic!("somebody owns it already");
        };
        let dismissal = owner.dismissal();
        House { dismissal, running: Some(std::thread::spawn(move || owner.run(idle))) }
    }

    /// Uses what is there, and starts nothing.
    pub(crate) fn open(&self) -> Store {
        Store::open(&self.pool, &nothing()).expect("it works")
    }
}

/// An owner that cannot be started.
pub(crate) fn nothing() -> Start {
    Start::new(["/nonexistent/kiln"])
}

/// An owner in a thread; dismissed when dropped.
#[derive(Debug)]
pub(crate) struct House {
    pub(crate) dismissal: Dismissal,
    running: Option<JoinHandle<Result<(), StoreError>>>,
}

impl House {
    /// Waits until it has left by itself.
    pub(crate) fn leaves(mut self) {
        let running = self.running.take().expect("it works");
        running.join().expect("it works").expect("it works");
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.dismissal.dismiss();
        if let Some(running) = self.running.take() {
            let ended = running.join();
            if !std::thread::panicking() {
                ended.expect("it works").expect("it works");
            }
        }
    }
}

pub(crate) fn create(store: &Store, name: &str, size: u64) {
    let request = Request::Create { name: name.to_owned(), size, with: NewDisk::default() };
    assert_eq!(store.ask(request).expect("it works"), Reply::Done);
}

pub(crate) fn snap(store: &Store, disk: &str, snapshot: &str) {
    let request = Request::Snap { disk: disk.to_owned(), snapshot: snapshot.to_owned() };
    assert_eq!(store.ask(request).expect("it works"), Reply::Done);
}

pub(crate) fn names(store: &Store) -> Vec<String> {
    match store.ask(Request::List).expect("it works") {
        Reply::Disks { disks } => disks.into_iter().map(|disk| disk.name).collect(),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn refusal<T: std::fmt::Debug>(asked: Result<T, StoreError>) -> Refusal {
    match asked.expect_err("it is refused") {
        StoreError::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn is_in_use(refusal: &Refusal) -> bool {
    matches!(refusal.why, Why::InUse { .. })
}
