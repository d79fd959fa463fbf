use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;

use super::*;

const KEY: &str = "0123abcd";

fn about() -> About {
    About {
        kernel: "6.12.0".into(),
        after: None,
        memory: 64 << 20,
        cpus: 1,
        saved_at: 0,
        boot: String::new(),
        bytes: 0,
        disks: None,
    }
}

struct Store {
    _folder: tempfile::TempDir,
    store: WarmStore,
}

fn store() -> Store {
    let folder = tempfile::tempdir().unwrap();
    let store = WarmStore::at(&folder.path().join("warm"));
    Store { _folder: folder, store }
}

impl Store {
    fn look(&self, key: &str) -> (Look, Vec<String>) {
        let mut said = Vec::new();
        let look = self.store.look(key, Duration::ZERO, &mut |text| said.push(text)).unwrap();
        (look, said)
    }

    fn save(&self, key: &str) {
        let (Look::Save(saving), _) = self.look(key) else { panic!("{key} is there already") };
        let memory = saving.memory(0).unwrap();
        (&memory).write_all(b"memory").unwrap();
        saving.publish(&memory, b"state".to_vec(), about()).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.store.folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn what_was_saved_is_found_whole() {
    let store = store();
    store.save(KEY);
    let (Look::Found(found), said) = store.look(KEY) else { panic!("it is not found") };
    assert_eq!(found.state, b"state");
    let mut memory = [0; 6];
    found.memory.read_exact_at(&mut memory, 0).unwrap();
    assert_eq!(&memory, b"memory");
    assert_eq!(said, Vec::<String>::new());
}

#[test]
fn a_saver_that_dies_leaves_nothing() {
    let store = store();
    let (Look::Save(saving), _) = store.look(KEY) else { panic!("it is there already") };
    let memory = saving.memory(0).unwrap();
    (&memory).write_all(b"half").unwrap();
    drop((saving, memory));
    assert_eq!(store.names(), ["locks"]);
    assert!(matches!(store.look(KEY).0, Look::Save(_)), "and the next may save");
}

#[test]
fn damage_is_told_and_never_used() {
    let store = store();
    type Harm<'a> = (&'a str, &'a dyn Fn(&Path));
    let harm: [Harm<'_>; 4] = [
        ("machine", &|path| fs::write(path, b"no machine").unwrap()),
        ("machine", &|path| File::options().write(true).open(path).unwrap().set_len(100).unwrap()),
        ("memory", &|path| fs::remove_file(path).unwrap()),
        // The same bytes, but written by somebody; a coarse clock could make both as old.
        ("memory", &|path| {
            fs::remove_file(path).unwrap();
            fs::write(path, b"memory").unwrap();
            let file = File::options().write(true).open(path).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        }),
    ];
    for (kind, harm) in harm {
        store.save(KEY);
        harm(&store.store.path(KEY, kind));
        let (look, said) = store.look(KEY);
        assert!(matches!(look, Look::Save(_)), "{look:?}");
        assert!(said.len() == 1 && said[0].contains("is not used: "), "{said:?}");
        assert_eq!(store.names(), ["locks"]);
    }
}

#[test]
fn one_saves_while_the_others_wait_for_it() {
    let store = store();
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        let (Look::Save(saving), _) = store.look(KEY) else { panic!("it is there already") };
        let waits = scope.spawn(|| {
            barrier.wait();
            store.store.look(KEY, Duration::from_secs(60), &mut |text| panic!("{text}")).unwrap()
        });
        barrier.wait();
        let memory = saving.memory(0).unwrap();
        saving.publish(&memory, b"state".to_vec(), about()).unwrap();
        assert!(matches!(waits.join().unwrap(), Look::Found(_)));
    });
}

#[test]
fn who_waits_for_a_saver_that_gives_up_boots() {
    let store = store();
    let (Look::Save(saving), _) = store.look(KEY) else { panic!("it is there already") };
    assert!(matches!(store.look(KEY).0, Look::Boot), "out of patience");
    drop(saving);
    assert!(matches!(store.look(KEY).0, Look::Save(_)));
}

#[test]
fn saved_machines_are_listed_removed_and_pruned_with_what_nothing_leads_to() {
    let store = store();
    store.save("aa11");
    store.save("bb22");
    let listed = store.store.list().unwrap();
    assert!(listed.len() == 2 && listed.iter().all(|machine| machine.usable), "{listed:?}");
    assert!(matches!(store.store.remove("").unwrap_err(), WarmError::NoSuch { found: 2, .. }));
    assert_eq!(store.store.remove("aa").unwrap().key, "aa11");
    fs::write(store.store.path("cc33", "memory"), b"of nobody").unwrap();
    let limits = PruneLimits { max_age: Some(Duration::ZERO), dry_run: true };
    assert_eq!(store.store.prune(&limits).unwrap().len(), 1);
    assert!(store.names().contains(&"bb22.machine".to_owned()), "a dry run removes nothing");
    let pruned = store.store.prune(&PruneLimits { dry_run: false, ..limits }).unwrap();
    assert_eq!(pruned[0].key, "bb22");
    assert_eq!(store.names(), ["locks"]);
}

#[test]
fn the_latest_stay() {
    let store = store();
    for number in 0..MOST + 3 {
        store.save(&format!("{number:04}"));
    }
    assert_eq!(store.store.list().unwrap().len(), MOST);
}
