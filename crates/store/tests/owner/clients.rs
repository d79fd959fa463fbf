//! What clients may rely on: one owner, whoever comes and whenever it leaves.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use kiln_store::{
    Dismissal, Kind, Layers, Opened, Owner, Progress, Range, Reply, Request, Stop, Store,
    StoreError, Why,
};

use crate::house::{FOREVER, MIB, Place, create, is_in_use, names, nothing, refusal, snap};

#[test]
fn with_or_without_an_owner_the_same_questions_have_the_same_answers() {
    let place = Place::new();
    let ask = |store: &Store| {
        let all = [
            Request::List,
            Request::Tree,
            Request::Stat { disk: "base".into() },
            Request::Snapshots { disk: "base".into() },
            Request::Diff { from: "base@one".into(), to: "base".into() },
            Request::Stat { disk: "gone".into() },
            Request::Clone {
                disk: "base".into(),
                snapshot: "gone".into(),
                name: "new".into(),
                with: kiln_store::NewDisk::default(),
            },
            Request::Resize { disk: "base".into(), size: 4096, shrink: false },
            Request::Remove { names: vec!["base".into()], snapshots: false },
            Request::Create {
                name: ".tmp-mine".into(),
                size: 4096,
                with: kiln_store::NewDisk::default(),
            },
        ];
        all.map(|request| match store.ask(request) {
            Ok(reply) => format!("{reply:?}"),
            Err(error) => format!("{error:?}"),
        })
    };
    let alone = {
        let store = place.open();
        assert!(!store.is_owned());
        create(&store, "base", MIB);
        snap(&store, "base", "one");
        ask(&store)
    };
    let _owner = place.own(FOREVER);
    let store = place.open();
    assert!(store.is_owned());
    assert_eq!(ask(&store), alone);
}

#[test]
fn who_finds_an_owner_does_not_become_one() {
    let place = Place::new();
    let _owner = place.own(FOREVER);
    assert!(matches!(Owner::open(&place.pool, &Layers::default()), Ok(Opened::Already)));
    // Nobody needs that one, so it makes way; it may not have seen yet that who came first has gone.
    let repaired = loop {
        match Store::repair(&place.pool, &Layers::default()) {
            Ok(store) => break store,
            Err(error) => assert!(is_in_use(&refusal(Err::<(), _>(error)))),
        }
    };
    assert!(!repaired.is_owned());
    assert!(!place.socket().exists());
}

#[test]
fn of_many_that_want_to_own_a_pool_at_once_one_does() {
    let place = Place::new();
    let (owners, others) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                start.wait();
                match Owner::open(&place.pool, &Layers::default()).unwrap() {
                    Opened::Owner(owner) => {
                        owners.fetch_add(1, Ordering::Relaxed);
                        let dismissal = owner.dismissal();
                        scope.spawn(move || owner.run(FOREVER).unwrap());
                        // Until all others have seen it.
                        while others.load(Ordering::Relaxed) < 7 {
                            std::thread::yield_now();
                        }
                        dismissal.dismiss();
                    }
                    Opened::Already => {
                        others.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!((owners.into_inner(), others.into_inner()), (1, 7));
    assert!(!place.socket().exists());
}

#[test]
fn an_owner_nobody_needs_leaves_and_nothing_of_it_is_left() {
    let place = Place::new();
    let owner = place.own(Duration::ZERO);
    let store = place.open();
    create(&store, "base", MIB);
    drop(store);
    owner.leaves();
    let left: Vec<_> = std::fs::read_dir(place.folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(names(&place.open()), ["base"]);
}

/// The moment in which an owner leaves is the one in which clients could be lost.
#[test]
fn clients_that_come_while_owners_leave_are_served_by_the_next() {
    let place = Place::new();
    let done = AtomicBool::new(false);
    let current: Mutex<Option<Dismissal>> = Mutex::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                if let Opened::Owner(owner) = Owner::open(&place.pool, &Layers::default()).unwrap()
                {
                    *current.lock().unwrap() = Some(owner.dismissal());
                    // The last client may not have seen this one.
                    if done.load(Ordering::Acquire) {
                        owner.dismissal().dismiss();
                    }
                    owner.run(Duration::ZERO).unwrap();
                }
            }
        });
        std::thread::scope(|scope| {
            for client in 0..4 {
                let place = &place;
                scope.spawn(move || {
                    for number in 0..25 {
                        create(&place.open(), &format!("disk-{client}-{number}"), 4096);
                    }
                });
            }
        });
        done.store(true, Ordering::Release);
        if let Some(current) = &*current.lock().unwrap() {
            current.dismiss();
        }
    });
    assert_eq!(names(&place.open()).len(), 100);
}

#[test]
fn a_dismissed_owner_ends_what_its_clients_do_and_stores_everything() {
    let place = Place::new();
    let owner = place.own(FOREVER);
    let store = place.open();
    create(&store, "base", MIB);
    owner.dismissal.dismiss();
    owner.leaves();
    assert!(matches!(store.ask(Request::List), Err(StoreError::Gone { .. })));
    assert_eq!(names(&place.open()), ["base"]);
}

#[test]
fn an_owner_leaves_when_it_is_asked_unless_somebody_needs_it() {
    let place = Place::new();
    assert!(!Store::retire(&place.pool).unwrap(), "there is none");
    let owner = place.own(FOREVER);
    let store = place.open();
    let said = refusal(Store::retire(&place.pool));
    assert!(is_in_use(&said), "{said:?}");
    drop(store);
    // The owner may not have seen yet that the other has gone.
    while Store::retire(&place.pool).is_err() {}
    owner.leaves();
    assert!(!place.open().is_owned());
}

#[test]
fn a_client_that_cannot_start_an_owner_says_why() {
    let place = Place::new();
    let error = Store::owner(&place.pool, &nothing()).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/kiln"), "{error}");
    let quiet = kiln_store::Start::new(["false"]);
    let error = Store::owner(&place.pool, &quiet).unwrap_err().to_string();
    assert!(error.contains("ended before it was ready"), "{error}");
    let gone = Store::open(&place.folder.path().join("none"), &nothing());
    assert!(matches!(gone, Err(StoreError::NoPool { .. })));
}

#[test]
fn who_has_the_pool_open_without_answering_is_named() {
    let place = Place::new();
    let _held = place.open();
    let hurried = nothing().patience(Duration::ZERO);
    let Err(StoreError::Busy { holder, .. }) = Store::open(&place.pool, &hurried) else {
        panic!("it was opened twice");
    };
    let own = format!("process {} (", std::process::id());
    assert!(holder.is_some_and(|holder| holder.starts_with(&own)));
}

fn import(name: &str) -> Request {
    let file = "image".to_owned();
    Request::Import { name: name.to_owned(), format: None, file, backing: vec![], snapshot: None }
}

#[test]
fn files_go_through_an_owner_with_their_progress() {
    let place = Place::new();
    let image = place.folder.path().join("image");
    let file = File::create(&image).unwrap();
    file.set_len(64 * MIB).unwrap();
    for at in 0..40 {
        file.write_all_at(&[7; 4096], at * MIB).unwrap();
    }
    let open = || vec![File::open(&image).unwrap().into()];
    let _owner = place.own(FOREVER);
    let store = place.open();
    let wish = import("base");
    let mut last = Progress::default();
    let reply = store.ask_with(wish, open(), &mut |now| last = now, &Stop::new());
    let copied = Reply::Copied { size: 64 * MIB, source_size: 64 * MIB, written: 40 * 4096 };
    assert_eq!(reply.unwrap(), copied);
    let compare = Request::Compare { name: "base".into(), file: "image".into() };
    file.write_all_at(&[8; 1], 5 * MIB).unwrap();
    let reply = store.ask_with(compare, open(), &mut |_| {}, &Stop::new()).unwrap();
    let ranges = vec![Range(5 * MIB, 4096, Kind::Data)];
    assert_eq!(reply, Reply::Compared { size: 64 * MIB, file_size: 64 * MIB, ranges });
    // Somebody forgot the file.
    let said = refusal(store.ask(import("other")));
    assert!(said.text.contains("without its file"), "{said:?}");
}

#[test]
fn a_client_that_stops_leaves_no_half_imported_disk() {
    let place = Place::new();
    let image = place.folder.path().join("image");
    let file = File::create(&image).unwrap();
    file.write_all_at(&vec![7; 32 << 20], 0).unwrap();
    let _owner = place.own(FOREVER);
    let store = place.open();
    let stop = Stop::new();
    stop.stop();
    let wish = import("base");
    let file = vec![File::open(&image).unwrap().into()];
    let asked = store.ask_with(wish, file, &mut |_| {}, &stop);
    let stopped = match &asked {
        Err(StoreError::Stopped) => true,
        Err(StoreError::Refused(refusal)) => refusal.why == Why::Stopped,
        // It was done before anybody noticed.
        _ => asked.is_ok(),
    };
    assert!(stopped, "{asked:?}");
    let left = names(&place.open());
    assert!(left.is_empty() || asked.is_ok(), "{left:?}");
}

#[test]
fn collecting_what_was_left_does_not_take_an_import_that_is_under_way() {
    let place = Place::new();
    let image = place.folder.path().join("image");
    std::fs::write(&image, vec![7; 4 << 20]).unwrap();
    let _owner = place.own(FOREVER);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let store = place.open();
            while !done.load(Ordering::Acquire) {
                store.ask(Request::Gc).unwrap();
            }
        });
        let store = place.open();
        for number in 0..4 {
            let file = vec![File::open(&image).unwrap().into()];
            let asked =
                store.ask_with(import(&format!("disk-{number}")), file, &mut |_| {}, &Stop::new());
            assert!(asked.is_ok(), "{asked:?}");
        }
        done.store(true, Ordering::Release);
    });
}
