//! What goes wrong on the way, and is mended or told.

use std::io::Cursor;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kiln_registry::testing::{Fault, Proxy, Seen, impatient};
use kiln_registry::{Options, Pushed, RegistryError};
use rustix::net::{AddressFamily, SocketType};

use crate::{noise, repository, repository_as, with_blob};

/// Breaks the first requests for blobs, and no more.
fn at_first(times: usize, fault: Fault) -> impl Fn(&Seen) -> Fault + Send + Sync + 'static {
    let count = AtomicUsize::new(0);
    move |seen| match seen.is_blob() && count.fetch_add(1, Ordering::Relaxed) < times {
        true => fault.clone(),
        false => Fault::None,
    }
}

#[test]
fn what_passes_is_tried_again_and_the_bytes_are_right() {
    let (server, bytes, blob) = with_blob(200_000);
    for fault in [Fault::Status(500), Fault::Status(503), Fault::Status(429), Fault::Cut(1000)] {
        let proxy = Proxy::start(server.address(), at_first(2, fault.clone()));
        let mut out = Cursor::new(Vec::new());
        repository(proxy.address()).pull(&blob, &mut out, &mut |_| {}).unwrap();
        assert!(out.into_inner() == bytes, "{fault:?}");
    }
}

#[test]
fn a_cut_download_goes_on_where_it_was_cut() {
    let (server, bytes, blob) = with_blob(200_000);
    let proxy = Proxy::start(server.address(), at_first(20, Fault::Cut(8192)));
    let mut out = Cursor::new(Vec::new());
    repository(proxy.address()).pull(&blob, &mut out, &mut |_| {}).unwrap();
    assert!(out.into_inner() == bytes, "more often than anything is tried in vain");
    assert!(proxy.blob_bytes() < 400_000);
}

#[test]
fn a_cut_download_without_ranges_starts_again() {
    let (server, bytes, blob) = with_blob(200_000);
    let count = AtomicUsize::new(0);
    let proxy = Proxy::start(server.address(), move |seen| {
        match count.fetch_add(usize::from(seen.is_blob()), Ordering::Relaxed) {
            0 => Fault::Cut(50_000),
            _ => Fault::NoRange,
        }
    });
    let mut out = Cursor::new(Vec::new());
    repository(proxy.address()).pull(&blob, &mut out, &mut |_| {}).unwrap();
    assert!(out.into_inner() == bytes);
}

#[test]
fn wrong_bytes_are_never_taken_for_right_ones() {
    let (server, _, blob) = with_blob(200_000);
    let proxy = Proxy::start(server.address(), at_first(1, Fault::Flip(123_456)));
    let error =
        repository(proxy.address()).pull(&blob, Cursor::new(Vec::new()), &mut |_| {}).unwrap_err();
    assert!(matches!(error, RegistryError::WrongBytes { .. }), "{error}");
}

#[test]
fn what_does_not_pass_is_told_with_the_registrys_words() {
    let (server, _, blob) = with_blob(1000);
    let proxy = Proxy::start(server.address(), |_| Fault::Status(500));
    let repository = repository(proxy.address());
    let error = repository.pull(&blob, Cursor::new(Vec::new()), &mut |_| {}).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("500") && text.contains("as was wanted"), "{text}");
    assert_eq!(proxy.seen().len(), 4, "tried as often as was allowed");
}

#[test]
fn a_silent_registry_is_not_waited_for() {
    let (server, _, blob) = with_blob(1000);
    let proxy = Proxy::start(server.address(), |_| Fault::Silence);
    let mut access = impatient();
    let silence = Duration::from_millis(20);
    access.options = Options { silence, attempts: 2, ..access.options };
    let error = repository_as(proxy.address(), &access).blob_size(&blob.digest).unwrap_err();
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
}

#[test]
fn nobody_at_home_is_told_with_the_address() {
    // Bound, so that nobody else gets the port, and nobody listens.
    let port = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&port, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let bound = rustix::net::getsockname(&port).unwrap();
    let address = SocketAddrV4::try_from(bound).unwrap().to_string();
    let error = repository(&address).manifest("1").unwrap_err();
    assert!(error.to_string().contains(&address), "{error}");
}

#[test]
fn an_upload_that_breaks_down_is_begun_again() {
    let (server, _, _) = with_blob(1);
    let count = AtomicUsize::new(0);
    let proxy = Proxy::start(server.address(), move |seen| {
        let is_upload = seen.method == "PUT" && seen.path.contains("/blobs/uploads/");
        match is_upload && count.fetch_add(1, Ordering::Relaxed) < 2 {
            true => Fault::Status(502),
            false => Fault::None,
        }
    });
    let repository = repository(proxy.address());
    let bytes = noise(300_000, 5);
    let (digest, pushed) = repository.push_bytes(&bytes).unwrap();
    assert_eq!(pushed, Pushed::Sent);
    assert_eq!(std::fs::read(server.blob_path(&digest)).unwrap(), bytes);
}

#[test]
fn redirects_without_end_come_to_one() {
    let (server, _, blob) = with_blob(1000);
    let proxy = Proxy::start(server.address(), |_| Fault::Redirect("/v2/again".to_owned()));
    let error = repository(proxy.address()).blob_size(&blob.digest).unwrap_err();
    assert!(error.to_string().contains("again and again"), "{error}");
    assert_eq!(proxy.seen().len(), 6);
}
