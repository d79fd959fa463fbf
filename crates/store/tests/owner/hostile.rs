//! Whatever comes over its socket, an owner stays, and serves the others.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use kiln_block::testing::Dice;
use kiln_store::wire::{Answer, LONGEST_ANSWER, receive, send};
use kiln_store::{Refusal, Why};

use crate::house::{FOREVER, Place, create, names};

fn greeted(place: &Place) -> UnixStream {
    let client = UnixStream::connect(place.socket()).expect("it works");
    let (hello, _) = receive::<Answer>(&client, LONGEST_ANSWER).expect("it works");
    assert!(matches!(hello, Answer::Hello(_)), "{hello:?}");
    client
}

fn refused(client: &UnixStream) -> Refusal {
    match receive::<Answer>(client, LONGEST_ANSWER).expect("it works").0 {
        Answer::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_that_is_not_understood_is_refused_and_the_next_one_heard() {
    let place = Place::new();
    let _owner = place.own(FOREVER);
    let client = greeted(&place);
    for text in [
        serde_json::json!({"do": "dance"}),
        serde_json::json!({"do": "stat"}),
        serde_json::json!({"do": "stat", "disk": "base", "also": 1}),
        serde_json::json!([]),
        serde_json::json!(null),
    ] {
        send(&client, &text, &[], 1 << 20).unwrap();
        let said = refused(&client);
        assert_eq!(said.why, Why::Request, "{text}: {said:?}");
    }
    send(&client, &serde_json::json!({"do": "list"}), &[client.as_fd()], 1 << 20).unwrap();
    let answer = receive::<Answer>(&client, LONGEST_ANSWER).unwrap().0;
    assert!(matches!(answer, Answer::Done(_)), "files that nobody needs are closed: {answer:?}");
}

#[test]
fn a_frame_that_cannot_be_read_ends_that_connection_alone() {
    let place = Place::new();
    let _owner = place.own(FOREVER);
    let mut bad = greeted(&place);
    bad.write_all(&u32::MAX.to_le_bytes()).unwrap();
    assert_eq!(refused(&bad).why, Why::Request);
    assert_eq!(bad.read(&mut [0; 1]).unwrap(), 0, "it is hung up on");
    create(&place.open(), "base", 4096);
}

#[test]
fn who_asks_without_waiting_for_answers_is_hung_up_on_and_costs_no_memory() {
    let place = Place::new();
    let _owner = place.own(FOREVER);
    let mut client = greeted(&place);
    let request = br#"{"do":"list"}"#;
    let mut frame = u32::try_from(request.len()).unwrap().to_le_bytes().to_vec();
    frame.extend(request);
    // Ends when the owner has had enough.
    while client.write_all(&frame).is_ok() {}
    create(&place.open(), "base", 4096);
}

#[test]
fn rubbish_ends_connections_and_nothing_else() {
    let place = Place::new();
    let _owner = place.own(FOREVER);
    let mut dice = Dice::seeded(20);
    for _ in 0..200 {
        let mut client = greeted(&place);
        let mut bytes = vec![0; usize::try_from(dice.below(300)).unwrap()];
        dice.fill(&mut bytes);
        if dice.below(2) == 0 && bytes.len() > 4 {
            let len = u32::try_from(bytes.len() - 4).unwrap();
            bytes[..4].copy_from_slice(&len.to_le_bytes());
        }
        // It may be hung up on before all of it is sent.
        let _ = client.write_all(&bytes);
        let _ = client.shutdown(std::net::Shutdown::Write);
        let _ = client.read_to_end(&mut Vec::new());
    }
    assert!(names(&place.open()).is_empty());
}

/// The socket's mode keeps others away; should it ever be wider, the kernel's word on who connects does.
#[test]
fn a_process_of_another_user_is_turned_away() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    let _owner = place.own(FOREVER);
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(place.folder.path(), 0o755);
    mode(&place.socket(), 0o666);
    if !rustix::process::geteuid().is_root() {
        // Only root can be somebody else.
        return;
    }
    let socket = place.socket();
    let as_nobody = std::thread::spawn(move || {
        let nobody = rustix::process::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let mut client = UnixStream::connect(socket).unwrap();
        client.read(&mut [0; 1]).unwrap()
    });
    assert_eq!(as_nobody.join().unwrap(), 0, "it is hung up on without a word");
    create(&place.open(), "base", 4096);
}
