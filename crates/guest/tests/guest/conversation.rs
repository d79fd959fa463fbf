//! How the agent and its host come to speak with each other, and what neither believes of the other.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use kiln_model::protocol::{
    Answer, CONTROL, Decoder, Frame, HEADER_LEN, MAX_PAYLOAD, PROTOCOL, Request,
};
use kiln_vm::agent::{Agent, AgentError, Stream};

use crate::process::{Guest, command, is_alive, soon};

#[test]
fn a_new_hello_ends_what_the_old_one_began() {
    let guest = Guest::start();
    let first = guest.agent();
    let mut session = first.exec(command(&["sleep", "1000"]), soon()).unwrap();
    let pid = session.pid().to_string();
    let second = guest.stream.as_ref().unwrap().try_clone().unwrap();
    // Both read the same socket here; what matters is that the second is welcomed and the first's
    // program is gone.
    let mut bytes = Vec::new();
    Request::Hello { nonce: 1, protocol: PROTOCOL }.encode(CONTROL, &mut bytes).unwrap();
    (&second).write_all(&bytes).unwrap();
    while is_alive(&pid) {
        std::thread::yield_now();
    }
    let error = session.next(Instant::now()).unwrap_err();
    assert!(error.is_timeout(), "{error}");
}

/// Talks to the agent without the client, to say what the client never would.
struct Raw<'a> {
    stream: &'a UnixStream,
    decoder: Decoder,
}

impl Raw<'_> {
    fn send(&mut self, channel: u32, request: &Request) {
        let mut bytes = Vec::new();
        request.encode(channel, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next answer that is no heartbeat.
    fn answer(&mut self) -> (u32, Answer) {
        loop {
            while let Some(frame) = self.decoder.next_frame() {
                let Frame { channel, .. } = frame;
                match Answer::decode(&frame).unwrap() {
                    Answer::Heartbeat(_) => {}
                    answer => return (channel, answer),
                }
            }
            let mut buffer = [0; 4096];
            let count = self.stream.read(&mut buffer).unwrap();
            assert!(count > 0, "the agent hung up");
            self.decoder.feed(&buffer[..count]);
        }
    }
}

#[test]
fn the_agent_finds_a_hello_behind_garbage_and_behind_a_frame_cut_short() {
    let guest = Guest::start();
    let mut raw = Raw { stream: guest.stream.as_ref().unwrap(), decoder: Decoder::new() };
    raw.stream.write_all(b"Linux version 6.12\r\n\x8bKLN\x8bKLN\x8b").unwrap();
    raw.send(CONTROL, &Request::Hello { nonce: 5, protocol: PROTOCOL });
    assert!(matches!(raw.answer(), (CONTROL, Answer::Welcome(welcome)) if welcome.nonce == 5));
    let mut cut = Vec::new();
    Request::Stdin(vec![0; MAX_PAYLOAD]).encode(9, &mut cut).unwrap();
    raw.stream.write_all(&cut[..HEADER_LEN + 10]).unwrap();
    raw.send(CONTROL, &Request::Hello { nonce: 6, protocol: PROTOCOL });
    raw.stream.write_all(&[0; MAX_PAYLOAD]).unwrap();
    assert!(matches!(raw.answer(), (CONTROL, Answer::Welcome(welcome)) if welcome.nonce == 6));
}

#[test]
fn nothing_is_done_before_a_hello_and_nothing_twice() {
    let guest = Guest::start();
    let mut raw = Raw { stream: guest.stream.as_ref().unwrap(), decoder: Decoder::new() };
    raw.send(1, &Request::Ping(1));
    raw.send(CONTROL, &Request::Hello { nonce: 5, protocol: PROTOCOL });
    raw.send(CONTROL, &Request::Hello { nonce: 5, protocol: PROTOCOL });
    raw.send(3, &Request::Ping(3));
    raw.send(3, &Request::Ping(4));
    raw.send(2, &Request::Ping(5));
    raw.send(4, &Request::Ping(6));
    let mut answers = Vec::new();
    while answers.len() < 4 {
        match raw.answer() {
            (_, Answer::Pong(number)) => answers.push(format!("pong {number}")),
            (_, Answer::Welcome(_)) => answers.push("welcome".to_owned()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answers, ["welcome", "welcome", "pong 3", "pong 6"]);
}

#[test]
fn the_client_ignores_what_was_meant_for_another_and_resends_its_hello() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let guest = std::thread::spawn(move || {
        let mut decoder = Decoder::new();
        let mut hellos = 0;
        let mut buffer = [0; 4096];
        loop {
            let count = (&theirs).read(&mut buffer).unwrap();
            decoder.feed(&buffer[..count]);
            while let Some(frame) = decoder.next_frame() {
                let Request::Hello { nonce, .. } = Request::decode(&frame).unwrap() else {
                    continue;
                };
                hellos += 1;
                let welcome = |nonce| {
                    let release = b"6.6".to_vec();
                    Answer::Welcome(kiln_model::protocol::Welcome {
                        nonce,
                        protocol: PROTOCOL,
                        release,
                        uptime_ms: 1,
                    })
                };
                let mut bytes = b"garbage".to_vec();
                welcome(nonce ^ 1).encode(CONTROL, &mut bytes).unwrap();
                Answer::Pong(1).encode(1, &mut bytes).unwrap();
                // The first two hellos are lost.
                if hellos == 3 {
                    welcome(nonce).encode(CONTROL, &mut bytes).unwrap();
                }
                (&theirs).write_all(&bytes).unwrap();
                if hellos == 3 {
                    return theirs;
                }
            }
        }
    });
    let agent = Agent::greet(ours, soon()).unwrap();
    assert_eq!(agent.welcome().release, b"6.6");
    let theirs = guest.join().unwrap();
    drop(theirs);
    let error = agent.ping(soon()).unwrap_err();
    assert!(matches!(error, AgentError::Disconnected), "{error}");
}

#[test]
fn a_guest_that_sends_more_than_it_may_is_cut_off() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let guest = std::thread::spawn(move || {
        let mut raw = (Decoder::new(), [0; 4096]);
        loop {
            let count = (&theirs).read(&mut raw.1).unwrap_or(0);
            if count == 0 {
                return;
            }
            raw.0.feed(&raw.1[..count]);
            while let Some(frame) = raw.0.next_frame() {
                let mut bytes = Vec::new();
                match Request::decode(&frame).unwrap() {
                    Request::Hello { nonce, .. } => {
                        Answer::Welcome(kiln_model::protocol::Welcome {
                            nonce,
                            protocol: PROTOCOL,
                            release: Vec::new(),
                            uptime_ms: 0,
                        })
                        .encode(CONTROL, &mut bytes)
                        .unwrap();
                    }
                    Request::Exec(_) => {
                        Answer::Started(1).encode(frame.channel, &mut bytes).unwrap();
                        for _ in 0..20 {
                            let output = vec![b'x'; 32 * 1024];
                            Answer::Output { stream: Stream::Stdout, bytes: output }
                                .encode(frame.channel, &mut bytes)
                                .unwrap();
                        }
                    }
                    _ => {}
                }
                let _ = (&theirs).write_all(&bytes);
            }
        }
    });
    let agent = Agent::greet(ours, soon()).unwrap();
    // Nobody reads the output, so nothing more is granted.
    let _session = agent.exec(command(&["x"]), soon());
    let error = agent.ping(soon()).unwrap_err();
    assert!(matches!(error, AgentError::Protocol { .. }), "{error}");
    drop(agent);
    guest.join().unwrap();
}

#[test]
fn a_silent_guest_is_a_timeout_and_an_absent_one_is_named() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let error = Agent::greet(ours, Instant::now() + Duration::from_millis(50)).unwrap_err();
    assert!(error.is_timeout(), "{error}");
    let error = Agent::connect(Path::new("/nowhere/socket"), Instant::now()).unwrap_err();
    assert!(error.to_string().contains("/nowhere/socket"), "{error}");
}
