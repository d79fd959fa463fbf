//! A stream that ends early goes on where it was cut.

use std::ops::ControlFlow;
use std::sync::Arc;

use kiln_block::{BlockDevice as _, ByteLen, MemoryDevice};
use kiln_parallax::stream::{ReceiveOptions, SendOptions, StreamError, Token};
use kiln_parallax::{DiskOptions, Pool};

use crate::{assert_same, assert_sound, change, options, pool, pool_with, receive, send};

fn pair() -> (Pool, Vec<u8>) {
    let from = pool_with("base");
    change(&from, "base", 20, 12);
    from.snapshot("base", "a").unwrap();
    change(&from, "base", 21, 12);
    from.snapshot("base", "b").unwrap();
    let whole = send(&from, "base", "a", &SendOptions::default());
    (from, whole)
}

/// Where each record of a stream starts.
fn records(stream: &[u8]) -> Vec<usize> {
    let mut at = 512;
    let mut found = Vec::new();
    while at < stream.len() {
        found.push(at);
        let len = u32::from_le_bytes(stream[at + 24..at + 28].try_into().unwrap());
        at += 36 + len as usize;
    }
    found
}

fn token_of(error: &StreamError) -> Token {
    match error {
        StreamError::Cut { token, .. } => *token,
        other => panic!("not cut but {other}"),
    }
}

#[test]
fn a_stream_cut_at_any_record_goes_on_from_its_token_and_sends_nothing_twice() {
    let (from, whole) = pair();
    let changes = SendOptions { from: Some("a"), ..Default::default() };
    let later = send(&from, "base", "b", &changes);
    for (stream, of, name) in [(&whole, SendOptions::default(), "a"), (&later, changes, "b")] {
        let cuts: Vec<usize> = records(stream).into_iter().flat_map(|at| [at, at + 30]).collect();
        for cut in cuts.into_iter().chain([stream.len() - 1]) {
            let device = Arc::new(MemoryDevice::new(ByteLen::mib(128)));
            let to = Pool::create(device.clone(), &options()).unwrap();
            if name == "b" {
                receive(&to, &whole).unwrap();
            }
            let names = |pool: &Pool| -> Vec<String> {
                let snapshots = pool.snapshots("base").unwrap_or_default();
                snapshots.into_iter().map(|snapshot| snapshot.name).collect()
            };
            let before = names(&to);
            let error = receive(&to, &stream[..cut]).unwrap_err();
            let token = token_of(&error);
            assert!(error.to_string().contains(&token.to_string()), "{error}");
            // It is not there yet, and whoever looks finds the token again.
            assert_eq!(names(&to), before);
            drop(to);
            let to = Pool::open(device, &options()).unwrap();
            let partials = to.partials();
            assert_eq!(partials.len(), 1);
            assert_eq!((partials[0].token, &*partials[0].disk), (token, "base"));
            let text = token.to_string();
            let resume = Some(text.parse().unwrap());
            let rest = send(&from, "base", name, &SendOptions { resume, ..of });
            assert!(rest.len() <= stream.len() - cut + 512 + 36 + (1 << 20), "{cut}");
            receive(&to, &rest).unwrap();
            assert_same(&from, &to, "base", name);
            assert_eq!(to.partials(), []);
            assert_eq!(to.disks().len(), 1);
            assert_sound(&to);
        }
    }
}

#[test]
fn what_was_cut_may_also_be_sent_from_the_start_again() {
    let (from, whole) = pair();
    let to = pool();
    let places = records(&whole);
    let middle = places[places.len() / 2];
    let token = token_of(&receive(&to, &whole[..middle]).unwrap_err());
    // Cut again, further ahead: nothing is taken back.
    let again = token_of(&receive(&to, &whole[..places[1]]).unwrap_err());
    assert_eq!(again, token);
    receive(&to, &whole).unwrap();
    assert_same(&from, &to, "base", "a");
}

#[test]
fn what_goes_on_from_further_than_what_is_here_is_refused() {
    let (from, whole) = pair();
    let places = records(&whole);
    let near = token_of(&receive(&pool(), &whole[..places[1]]).unwrap_err());
    let far = token_of(&receive(&pool(), &whole[..places[places.len() - 2]]).unwrap_err());
    let rest = send(&from, "base", "a", &SendOptions { resume: Some(far), ..Default::default() });
    let to = pool();
    let error = receive(&to, &rest).unwrap_err();
    assert!(error.to_string().contains("nothing of it: send it from the start"), "{error}");
    assert_eq!(to.disks(), []);
    receive(&to, &whole[..places[1]]).unwrap_err();
    let error = receive(&to, &rest).unwrap_err();
    assert!(error.to_string().contains(&near.to_string()), "{error}");
    let rest = send(&from, "base", "a", &SendOptions { resume: Some(near), ..Default::default() });
    receive(&to, &rest).unwrap();
    assert_same(&from, &to, "base", "a");
}

#[test]
fn a_token_of_another_stream_is_refused_by_the_sender() {
    let (from, whole) = pair();
    let token = token_of(&receive(&pool(), &whole[..records(&whole)[3]]).unwrap_err());
    let options = SendOptions { from: Some("a"), resume: Some(token), ..Default::default() };
    let outcome =
        from.send("base", "b", &options, &mut Vec::new(), &mut |_| ControlFlow::Continue(()));
    assert!(matches!(outcome, Err(StreamError::OtherToken { .. })));
    for text in ["", "x", "-", "0-0", "00000000000000000000000000000000-1", "é-0"] {
        assert!(text.parse::<Token>().is_err(), "{text}");
    }
}

#[test]
fn who_wants_no_more_can_go_on_later() {
    let (from, whole) = pair();
    let to = pool();
    let mut calls = 0;
    let error = to
        .receive(&mut &whole[..], &ReceiveOptions::default(), &mut |_| {
            calls += 1;
            if calls == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap_err();
    let token = token_of(&error);
    assert!(token.position() > 0);
    let rest = send(&from, "base", "a", &SendOptions { resume: Some(token), ..Default::default() });
    assert!(rest.len() < whole.len());
    receive(&to, &rest).unwrap();
    assert_same(&from, &to, "base", "a");
}

#[test]
fn a_base_that_was_removed_meanwhile_is_missed_at_the_end_and_nothing_is_lost() {
    let (from, whole) = pair();
    let to = pool();
    receive(&to, &whole).unwrap();
    let changes = SendOptions { from: Some("a"), ..Default::default() };
    let later = send(&from, "base", "b", &changes);
    let places = records(&later);
    let token = token_of(&receive(&to, &later[..places[2]]).unwrap_err());
    to.delete_snapshot("base", "a").unwrap();
    to.gc().unwrap();
    let rest = send(&from, "base", "b", &SendOptions { resume: Some(token), ..changes });
    let error = receive(&to, &rest).unwrap_err();
    assert!(matches!(error, StreamError::WrongBase { .. }), "{error}");
    let disk = to.open_disk("base").unwrap();
    assert_eq!(disk.size(), from.stat("base").unwrap().size);
    assert!(crate::bytes_of(&disk) == crate::content(&from, "base", "a"));
    drop(disk);
    // What is left can be removed like any disk.
    let name = to.partials()[0].name.clone();
    to.delete(&name).unwrap();
    to.gc().unwrap();
    assert_sound(&to);
    to.create_disk("unrelated", ByteLen::mib(1), &DiskOptions::default()).unwrap();
}
