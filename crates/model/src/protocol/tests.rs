//! Every message survives the wire, and nothing on the wire makes a reader panic.

use proptest::prelude::*;

use super::*;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..40)
}

fn list() -> impl Strategy<Value = Vec<Vec<u8>>> {
    proptest::collection::vec(bytes(), 0..5)
}

fn pty() -> impl Strategy<Value = Pty> {
    (any::<u16>(), any::<u16>()).prop_map(|(rows, cols)| Pty { rows, cols })
}

fn exec() -> impl Strategy<Value = Exec> {
    let env = proptest::collection::vec((bytes(), bytes()), 0..4);
    (list(), env, bytes(), proptest::option::of(pty()), any::<bool>()).prop_map(
        |(argv, env, cwd, pty, kill_leftovers)| Exec { argv, env, cwd, pty, kill_leftovers },
    )
}

fn request() -> impl Strategy<Value = Request> {
    let target =
        proptest::sample::select(&[SignalTarget::Foreground, SignalTarget::Everything][..]);
    prop_oneof![
        (any::<u64>(), any::<u16>())
            .prop_map(|(nonce, protocol)| Request::Hello { nonce, protocol }),
        exec().prop_map(Request::Exec),
        bytes().prop_map(Request::Stdin),
        pty().prop_map(Request::Resize),
        (any::<u8>(), target).prop_map(|(signal, target)| Request::Signal { signal, target }),
        any::<u32>().prop_map(Request::Credit),
        (bytes(), any::<u32>()).prop_map(|(path, mode)| Request::Push(Push { path, mode })),
        bytes().prop_map(Request::PushData),
        (any::<u32>(), any::<u64>())
            .prop_map(|(crc32c, length)| Request::PushEnd { crc32c, length }),
        (list(), any::<u32>(), any::<u64>()).prop_map(|(patterns, entries, bytes)| {
            Request::Pull { patterns, limits: PullLimits { entries, bytes } }
        }),
        list().prop_map(Request::LoadModules),
        bytes().prop_map(Request::Stat),
        any::<u64>().prop_map(Request::SetClock),
        bytes().prop_map(Request::SeedEntropy),
        any::<u64>().prop_map(Request::Ping),
        proptest::sample::select(vec![
            Request::CloseStdin,
            Request::Sync,
            Request::PowerOff,
            Request::Cancel,
            Request::RescanDisks,
            Request::Rest,
        ]),
        (any::<u64>(), bytes(), bytes(), bytes()).prop_map(
            |(since_epoch, hostname, machine_id, entropy)| {
                Request::Renew(Renewal { since_epoch, hostname, machine_id, entropy })
            }
        ),
    ]
}

fn entry_kind() -> impl Strategy<Value = EntryKind> {
    use EntryKind::{File, Folder, Link, Special};
    proptest::sample::select(vec![File, Folder, Link, Special])
}

fn answer() -> impl Strategy<Value = Answer> {
    let stream = proptest::sample::select(vec![Stream::Stdout, Stream::Stderr, Stream::Terminal]);
    let error_kind =
        proptest::sample::select(vec![ErrorKind::NotFound, ErrorKind::Refused, ErrorKind::Failed]);
    prop_oneof![
        (any::<u64>(), any::<u16>(), bytes(), any::<u64>()).prop_map(
            |(nonce, protocol, release, uptime_ms)| Answer::Welcome(Welcome {
                nonce,
                protocol,
                release,
                uptime_ms
            })
        ),
        any::<u32>().prop_map(Answer::Started),
        (stream, bytes()).prop_map(|(stream, bytes)| Answer::Output { stream, bytes }),
        any::<i32>().prop_map(|n| Answer::Exited(ExitStatus::Code(n))),
        any::<i32>().prop_map(|n| Answer::Exited(ExitStatus::Signal(n))),
        any::<u32>().prop_map(Answer::Credit),
        (bytes(), entry_kind(), any::<u32>(), bytes()).prop_map(|(path, kind, mode, target)| {
            Answer::Entry(Entry { path, kind, mode, target })
        }),
        bytes().prop_map(Answer::Data),
        (any::<u32>(), any::<u64>())
            .prop_map(|(crc32c, length)| Answer::EntryEnd { crc32c, length }),
        bytes().prop_map(Answer::Trouble),
        (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(count, bytes, truncated)| {
            Answer::Done(Done { count, bytes, truncated })
        }),
        (entry_kind(), any::<u32>(), any::<u64>())
            .prop_map(|(kind, mode, size)| Answer::Stat(Stat { kind, mode, size })),
        any::<u64>().prop_map(Answer::Pong),
        (any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>(), any::<u32>()).prop_map(
            |(uptime_ms, load_centi, memory_total, memory_available, sessions)| {
                Answer::Heartbeat(Heartbeat {
                    uptime_ms,
                    load_centi,
                    memory_total,
                    memory_available,
                    sessions,
                })
            }
        ),
        (error_kind, bytes()).prop_map(|(kind, text)| Answer::Error { kind, text }),
    ]
}

fn only_frame(bytes: &[u8]) -> Frame {
    let mut decoder = Decoder::new();
    decoder.feed(bytes);
    decoder.next_frame().unwrap()
}

proptest! {
    #[test]
    fn a_request_survives_the_wire(request in request(), channel in any::<u32>()) {
        let mut bytes = Vec::new();
        request.encode(channel, &mut bytes).unwrap();
        let frame = only_frame(&bytes);
        prop_assert_eq!(frame.channel, channel);
        prop_assert_eq!(Request::decode(&frame).unwrap(), request);
        prop_assert!(Answer::decode(&frame).is_err(), "a request is never taken for an answer");
    }

    #[test]
    fn an_answer_survives_the_wire(answer in answer(), channel in any::<u32>()) {
        let mut bytes = Vec::new();
        answer.encode(channel, &mut bytes).unwrap();
        let frame = only_frame(&bytes);
        prop_assert_eq!(Answer::decode(&frame).unwrap(), answer);
        prop_assert!(Request::decode(&frame).is_err(), "an answer is never taken for a request");
    }

    #[test]
    fn whatever_a_reader_understands_has_one_form_and_nothing_makes_it_panic(
        kind in prop_oneof![1_u8..25, 129_u8..145, any::<u8>()],
        payload in proptest::collection::vec(prop_oneof![0_u8..4, any::<u8>()], 0..40),
    ) {
        let frame = Frame { kind, channel: 1, payload };
        let mut again = Vec::new();
        if let Ok(request) = Request::decode(&frame) {
            request.encode(1, &mut again).unwrap();
            prop_assert_eq!(&only_frame(&again), &frame);
        } else if let Ok(answer) = Answer::decode(&frame) {
            answer.encode(1, &mut again).unwrap();
            prop_assert_eq!(&only_frame(&again), &frame);
        }
    }
}

#[test]
fn a_message_too_long_for_a_frame_is_refused_and_nothing_is_written() {
    let exec = Exec { argv: vec![vec![b'x'; MAX_PAYLOAD]], ..Exec::default() };
    let mut out = vec![1, 2, 3];
    let error = Request::Exec(exec).encode(1, &mut out).unwrap_err();
    assert!(matches!(error, MessageError::TooLong { .. }), "{error}");
    assert_eq!(out, [1, 2, 3]);
}
