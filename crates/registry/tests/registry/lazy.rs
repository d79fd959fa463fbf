//! Blobs that are read where they are.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_block::{BlockDevice as _, BlockSource, ByteLen, ByteOffset, ReadOnly};
use kiln_registry::testing::{Fault, Proxy};
use kiln_registry::{Cache, Descriptor, LazyOptions, Notice, Reader};

use crate::{repository, with_blob};

const CHUNK: usize = 64 << 10;

/// A cache of its own, and what was told.
struct Place {
    _folder: tempfile::TempDir,
    cache: Arc<Cache>,
    told: Arc<Mutex<Vec<Notice>>>,
}

impl Place {
    fn new(limit: ByteLen) -> Place {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Arc::new(Cache::open(folder.path(), limit).expect("a cache"));
        Place { _folder: folder, cache, told: Arc::default() }
    }

    fn options(&self, trace: bool) -> LazyOptions {
        let told = Arc::clone(&self.told);
        let tell = Arc::new(move |notice| told.lock().expect("nobody panicked").push(notice));
        let (cache, patience) = (Some(Arc::clone(&self.cache)), Duration::MAX);
        LazyOptions { cache, trace, patience, tell }
    }
}

fn read(reader: &Reader, at: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    reader.read(at as u64, &mut bytes).expect("it can be read");
    bytes
}

#[test]
fn what_is_read_is_fetched_and_little_else() {
    let (server, bytes, blob) = with_blob(100 * CHUNK + 5);
    let proxy = Proxy::start(server.address(), |_| Fault::None);
    let place = Place::new(ByteLen::gib(1));
    let open = || Reader::open(&repository(proxy.address()), &blob, place.options(false)).unwrap();
    let reader = open();
    for (at, len) in [(0, 1), (50 * CHUNK - 1, 2), (100 * CHUNK, 5), (49 * CHUNK, 100)] {
        assert!(read(&reader, at, len) == bytes[at..at + len], "{at}+{len}");
    }
    assert_eq!(proxy.blob_bytes(), 3 * CHUNK as u64 + 5);
    assert_eq!(proxy.ranges().len(), 3);
    let fetches = reader.fetches();
    assert_eq!((fetches.requests, fetches.bytes), (3, 3 * CHUNK as u64 + 5));
    // The next one finds it.
    assert!(read(&open(), 49 * CHUNK, 2 * CHUNK) == bytes[49 * CHUNK..51 * CHUNK]);
    assert_eq!(proxy.ranges().len(), 3);
    let disk = ReadOnly(reader);
    assert!(disk.read_at(ByteOffset::new(100 * CHUNK as u64), &mut [0; 6]).is_err());
}

#[test]
fn a_reader_in_sequence_needs_fewer_requests_than_chunks() {
    let (server, bytes, blob) = with_blob(200 * CHUNK);
    let proxy = Proxy::start(server.address(), |_| Fault::None);
    let place = Place::new(ByteLen::gib(1));
    let reader = Reader::open(&repository(proxy.address()), &blob, place.options(false)).unwrap();
    for (number, expected) in bytes.chunks(10_000).enumerate() {
        assert!(read(&reader, number * 10_000, expected.len()) == expected);
    }
    assert_eq!(proxy.blob_bytes(), bytes.len() as u64, "nothing twice");
    assert!(proxy.ranges().len() < 40, "{:?}", proxy.ranges());
}

#[test]
fn many_readers_of_one_chunk_fetch_it_once() {
    let (server, bytes, blob) = with_blob(8 * CHUNK);
    let proxy = Proxy::start(server.address(), |_| Fault::None);
    let place = Place::new(ByteLen::gib(1));
    let reader = Reader::open(&repository(proxy.address()), &blob, place.options(false)).unwrap();
    std::thread::scope(|scope| {
        for number in 0..16 {
            let (reader, bytes) = (reader.clone(), &bytes);
            scope.spawn(move || {
                for chunk in [3, 5, 3] {
                    let at = chunk * CHUNK + number;
                    assert!(read(&reader, at, 1000) == bytes[at..at + 1000]);
                }
            });
        }
    });
    assert_eq!(proxy.blob_bytes(), 2 * CHUNK as u64);
}

#[test]
fn a_line_that_is_cut_again_and_again_costs_no_byte_twice() {
    let (server, bytes, blob) = with_blob(40 * CHUNK);
    let proxy =
        Proxy::start(server.address(), |seen| match seen.is_blob() && seen.number % 3 != 0 {
            true => Fault::Cut(3 * CHUNK + 100),
            false => Fault::None,
        });
    let place = Place::new(ByteLen::gib(1));
    let reader = Reader::open(&repository(proxy.address()), &blob, place.options(false)).unwrap();
    assert!(read(&reader, 0, bytes.len()) == bytes);
    assert_eq!(reader.fetches().bytes, bytes.len() as u64);
}

#[test]
fn a_registry_that_fails_for_good_fails_the_read_and_not_the_next_one() {
    let (server, bytes, blob) = with_blob(4 * CHUNK);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let proxy = Proxy::start(server.address(), move |_| {
        match counted.fetch_add(1, Ordering::Relaxed) < 4 {
            true => Fault::Status(500),
            false => Fault::None,
        }
    });
    let place = Place::new(ByteLen::gib(1));
    let reader = Reader::open(&repository(proxy.address()), &blob, place.options(false)).unwrap();
    let error = reader.read(0, &mut [0; 10]).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("500"), "{error}: {cause}");
    assert!(read(&reader, 0, 10) == bytes[..10]);
}

#[test]
fn without_ranges_the_whole_blob_is_fetched_once_and_that_is_told() {
    let (server, bytes, blob) = with_blob(30 * CHUNK + 1);
    let proxy = Proxy::start(server.address(), |_| Fault::NoRange);
    let place = Place::new(ByteLen::gib(1));
    let reader = Reader::open(&repository(proxy.address()), &blob, place.options(false)).unwrap();
    let at = 20 * CHUNK;
    assert!(read(&reader, at, 10) == bytes[at..at + 10]);
    assert!(read(&reader, 0, bytes.len()) == bytes);
    assert_eq!(reader.fetches().bytes, bytes.len() as u64);
    let told = place.told.lock().unwrap();
    assert!(matches!(told.as_slice(), [Notice::NoRanges { .. }]), "{told:?}");
}

#[test]
fn a_stream_of_wrong_bytes_is_found_out_at_its_end() {
    let (server, _, blob) = with_blob(30 * CHUNK);
    let proxy = Proxy::start(server.address(), |seen| match seen.is_blob() {
        true => Fault::Flip(CHUNK),
        false => Fault::None,
    });
    let place = Place::new(ByteLen::gib(1));
    let reader = Reader::open(&repository(proxy.address()), &blob, place.options(false)).unwrap();
    let error = reader.complete().unwrap_err().to_string();
    assert!(error.contains("arrived damaged"), "{error}");
    assert!(!reader.is_whole());
}

#[test]
fn what_turns_out_wrong_is_fetched_again_and_not_for_ever() {
    let (server, bytes, blob) = with_blob(3 * CHUNK);
    let count = AtomicUsize::new(0);
    let proxy = Proxy::start(server.address(), move |seen| {
        match seen.is_blob() && count.fetch_add(1, Ordering::Relaxed) == 0 {
            true => Fault::Flip(7),
            false => Fault::None,
        }
    });
    let place = Place::new(ByteLen::gib(1));
    let reader = Reader::open(&repository(proxy.address()), &blob, place.options(false)).unwrap();
    assert!(read(&reader, CHUNK, 100) != bytes[CHUNK..CHUNK + 100]);
    let range = (ByteOffset::new(CHUNK as u64), ByteLen::new(100));
    assert!(reader.distrust(range.0, range.1));
    assert!(read(&reader, CHUNK, 100) == bytes[CHUNK..CHUNK + 100]);
    assert!(reader.distrust(range.0, range.1));
    assert!(reader.distrust(range.0, range.1), "others may have read the same");
    let again = || {
        read(&reader, CHUNK, 100);
        reader.distrust(range.0, range.1)
    };
    let times = (0..100).take_while(|_| again()).count();
    assert!(times < 10, "so often it is the registry's own fault");
    reader.complete().unwrap();
    assert!(reader.is_whole());
}

#[test]
fn the_second_time_is_fetched_ahead_what_the_first_time_read() {
    let (server, bytes, blob) = with_blob(200 * CHUNK);
    let place = Place::new(ByteLen::gib(1));
    let wanted: Vec<usize> = (0..60).map(|n| n * 37 % 200).collect();
    let first = Proxy::start(server.address(), |_| Fault::None);
    let reader = Reader::open(&repository(first.address()), &blob, place.options(true)).unwrap();
    for chunk in &wanted {
        read(&reader, chunk * CHUNK, 10);
    }
    drop(reader);
    assert!(place.cache.folder().join("traces").join(blob.digest.hex()).exists());
    // As if everything but the trace had been removed.
    std::fs::remove_dir_all(place.cache.folder().join("blobs").join(blob.digest.hex())).unwrap();
    let second = Proxy::start(server.address(), |_| Fault::None);
    let reader = Reader::open(&repository(second.address()), &blob, place.options(true)).unwrap();
    // The last one of the trace comes without anybody asking for one of them.
    while reader.fetches().bytes < 60 * CHUNK as u64 {
        std::thread::yield_now();
    }
    let before = reader.fetches().requests;
    for chunk in &wanted {
        assert!(read(&reader, chunk * CHUNK, 10) == bytes[chunk * CHUNK..chunk * CHUNK + 10]);
    }
    assert_eq!(reader.fetches().requests, before);
}

#[test]
fn a_cache_that_is_too_small_is_no_reason_to_fail() {
    let (server, bytes, blob) = with_blob(300 * CHUNK + 3);
    let place = Place::new(ByteLen::kib(100));
    let reader = Reader::open(&repository(server.address()), &blob, place.options(false)).unwrap();
    assert!(read(&reader, 0, bytes.len()) == bytes);
    reader.complete().unwrap();
    let told = place.told.lock().unwrap();
    assert!(matches!(told.as_slice(), [Notice::CacheFull { .. }]), "{told:?}");
}

#[test]
fn without_a_cache_it_is_read_all_the_same() {
    let (server, bytes, blob) = with_blob(20 * CHUNK);
    let options = LazyOptions {
        cache: None,
        trace: true,
        patience: LazyOptions::PATIENCE,
        tell: Arc::new(|_| {}),
    };
    let reader = Reader::open(&repository(server.address()), &blob, options).unwrap();
    assert!(read(&reader, 0, bytes.len()) == bytes);
    reader.complete().unwrap();
    assert!(!reader.is_whole(), "nobody would know the next time");
}

/// Readers that know nothing of each other, each with a cache opened by itself, as in processes of their own.
fn strangers(place: &Place, address: &str, blob: &Descriptor, count: usize) -> Vec<Reader> {
    let open = || {
        let cache = Cache::open(place.cache.folder(), ByteLen::gib(1)).expect("a cache");
        let options = LazyOptions { cache: Some(Arc::new(cache)), ..place.options(false) };
        Reader::open(&repository(address), blob, options).expect("it opens")
    };
    std::iter::repeat_with(open).take(count).collect()
}

#[test]
fn several_processes_fetch_each_chunk_once() {
    let (server, bytes, blob) = with_blob(150 * CHUNK + 77);
    let proxy = Proxy::start(server.address(), |_| Fault::None);
    let place = Place::new(ByteLen::gib(1));
    let readers = strangers(&place, proxy.address(), &blob, 3);
    std::thread::scope(|scope| {
        for (number, reader) in readers.iter().enumerate() {
            let bytes = &bytes;
            scope.spawn(move || {
                // In sequence, backwards, and all over the place.
                for step in 0..150 {
                    let chunk = [step, 149 - step, step * 37 % 150][number];
                    let (at, len) = (chunk * CHUNK, CHUNK + 77);
                    assert!(read(reader, at, len) == bytes[at..at + len], "chunk {chunk}");
                }
            });
        }
    });
    assert_eq!(proxy.blob_bytes(), bytes.len() as u64, "{:?}", proxy.ranges());
}

#[test]
fn several_processes_fetch_a_blob_without_ranges_once() {
    let (server, bytes, blob) = with_blob(60 * CHUNK);
    let proxy = Proxy::start(server.address(), |_| Fault::NoRange);
    let place = Place::new(ByteLen::gib(1));
    let readers = strangers(&place, proxy.address(), &blob, 2);
    std::thread::scope(|scope| {
        for reader in &readers {
            scope.spawn(|| assert!(read(reader, 0, bytes.len()) == bytes));
        }
    });
    let fetched: u64 = readers.iter().map(|reader| reader.fetches().bytes).sum();
    assert_eq!(fetched, bytes.len() as u64);
}

#[test]
fn what_another_process_never_brings_is_fetched_after_all() {
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc::{F_WRLCK, SEEK_SET, flock};
    let (server, bytes, blob) = with_blob(10 * CHUNK);
    let place = Place::new(ByteLen::gib(1));
    let options = LazyOptions { patience: Duration::from_millis(1), ..place.options(false) };
    let reader = Reader::open(&repository(server.address()), &blob, options).unwrap();
    let map = place.cache.folder().join("blobs").join(blob.digest.hex()).join("map");
    let map = std::fs::File::options().read(true).write(true).open(map).unwrap();
    let kind = |kind: i32| i16::try_from(kind).unwrap();
    let all =
        flock { l_type: kind(F_WRLCK), l_whence: kind(SEEK_SET), l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(&map, FcntlArg::F_OFD_SETLK(&all)).unwrap();
    assert!(read(&reader, 0, bytes.len()) == bytes);
}
