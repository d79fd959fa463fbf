//! The agent as an ordinary process behind a socket, spoken to by the host's own client: everything
//! of the protocol that needs no machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln_model::protocol::{
    Answer, CONTROL, Decoder, ErrorKind, Exec, Frame, HEADER_LEN, INITIAL_CREDIT, MAX_PAYLOAD,
    PROTOCOL, Pty, Request,
};
use kiln_vm::agent::{
    Agent, AgentError, ExitStatus, PullLimits, Session, SessionEvent, SignalTarget, Stream,
};

/// Long enough for the slowest machine; reached only by a test that fails.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(120)
}

const NO_LIMITS: PullLimits = PullLimits { entries: 10_000, bytes: 1 << 30 };

/// An agent process and our end of its socket. Both are gone when this is dropped.
struct Guest {
    process: Child,
    stream: Option<UnixStream>,
}

impl Guest {
    fn start() -> Guest {
        // Sockets have short names only: never below the checkout.
        let folder = tempfile::Builder::new().prefix("kiln-").tempdir_in("/tmp").unwrap();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_kiln-guest"))
            .arg("--agent-socket")
            .arg(&socket)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let (stream, _) = listener.accept().unwrap();
        Guest { process, stream: Some(stream) }
    }

    fn agent(&self) -> Agent {
        let stream = self.stream.as_ref().unwrap().try_clone().unwrap();
        Agent::greet(stream, soon()).unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The end of the stream is the agent's reason to end.
        if let Some(stream) = self.stream.take() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        self.process.wait().unwrap();
    }
}

fn command(argv: &[&str]) -> Exec {
    Exec {
        argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
        kill_leftovers: true,
        ..Exec::default()
    }
}

fn shell(script: &str) -> Exec {
    command(&["/bin/sh", "-c", script])
}

/// All output by stream, and the end.
fn outcome(session: &mut Session) -> (BTreeMap<&'static str, String>, ExitStatus) {
    let mut output = BTreeMap::<&'static str, Vec<u8>>::new();
    let status = session
        .wait(soon(), |stream, bytes| {
            let name = match stream {
                Stream::Stdout => "out",
                Stream::Stderr => "err",
                Stream::Terminal => "tty",
            };
            output.entry(name).or_default().extend(bytes);
        })
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.into_iter().map(|(name, bytes)| (name, text(bytes))).collect(), status)
}

fn run(agent: &Agent, exec: Exec) -> (BTreeMap<&'static str, String>, ExitStatus) {
    outcome(&mut agent.exec(exec, soon()).unwrap())
}

/// Reads output until it contains `text`.
fn read_until(session: &mut Session, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        match session.next(soon()).unwrap() {
            Some(SessionEvent::Output { bytes, .. }) => seen += &String::from_utf8_lossy(&bytes),
            other => panic!("after {seen:?} came {other:?} instead of {text:?}"),
        }
    }
    seen
}

fn is_alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
}

#[test]
fn a_program_is_heard_on_both_streams_and_its_status_is_told() {
    let guest = Guest::start();
    let agent = guest.agent();
    let (output, status) = run(&agent, shell("echo out; echo err >&2; exit 3"));
    assert_eq!(output, BTreeMap::from([("out", "out\n".into()), ("err", "err\n".into())]));
    assert_eq!(status, ExitStatus::Code(3));
    assert_eq!(status.to_string(), "exit status 3");
    assert_eq!(run(&agent, shell("kill -SEGV $$")).1, ExitStatus::Signal(11));
}

#[test]
fn a_program_gets_its_environment_and_its_folder() {
    let guest = Guest::start();
    let agent = guest.agent();
    let folder = tempfile::tempdir().unwrap();
    let mut exec = shell(r#"echo "$COLOUR $PATH"; pwd -P"#);
    exec.env = vec![(b"COLOUR".to_vec(), b"blue".to_vec())];
    exec.cwd = folder.path().as_os_str().as_encoded_bytes().to_vec();
    let (output, _) = run(&agent, exec);
    let real = folder.path().canonicalize().unwrap();
    let expected = format!(
        "blue /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n{}\n",
        real.display()
    );
    assert_eq!(output["out"], expected);
}

#[test]
fn a_program_that_is_not_there_is_an_error_that_names_it() {
    let guest = Guest::start();
    let agent = guest.agent();
    let error = agent.exec(command(&["no-such-program"]), soon()).unwrap_err();
    let AgentError::Guest { kind, text } = error else { panic!("{error}") };
    assert_eq!(kind, ErrorKind::NotFound);
    assert!(text.contains("no-such-program"), "{text}");
    let error = agent.exec(Exec::default(), soon()).unwrap_err();
    assert!(matches!(error, AgentError::Guest { .. }), "{error}");
    // The agent took no harm.
    assert_eq!(run(&agent, shell("exit 0")).1, ExitStatus::Code(0));
}

#[test]
fn input_reaches_a_program_whole_and_its_end_is_seen() {
    let guest = Guest::start();
    let agent = guest.agent();
    let mut session = agent.exec(command(&["cat"]), soon()).unwrap();
    // Four times what either side may send without being granted more.
    let sent: Vec<u8> = (0_u32..INITIAL_CREDIT).flat_map(u32::to_le_bytes).collect();
    let handle = session.handle();
    let received = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            handle.write(&sent, soon()).unwrap();
            handle.close_stdin(soon()).unwrap();
        });
        let mut received: Vec<u8> = Vec::new();
        let status = session.wait(soon(), |_, bytes| received.extend(bytes)).unwrap();
        assert_eq!(status, ExitStatus::Code(0));
        sender.join().unwrap();
        received
    });
    assert!(received == sent, "{} of {} bytes, or others", received.len(), sent.len());
}

#[test]
fn input_for_a_program_that_does_not_read_it_harms_nobody() {
    let guest = Guest::start();
    let agent = guest.agent();
    let mut session = agent.exec(shell("exec <&-; read x </dev/null; exit 4"), soon()).unwrap();
    let bytes = vec![b'x'; 2 * usize::try_from(INITIAL_CREDIT).unwrap()];
    session.handle().write(&bytes, soon()).unwrap();
    assert_eq!(outcome(&mut session).1, ExitStatus::Code(4));
}

#[test]
fn a_terminal_has_a_size_that_follows_and_control_c_interrupts() {
    let guest = Guest::start();
    let agent = guest.agent();
    let script = "stty size; trap 'stty size; exit 7' WINCH; trap 'echo int' INT; echo ready; \
                  while :; do read x; done";
    let mut exec = shell(script);
    exec.pty = Some(Pty { rows: 33, cols: 77 });
    let mut session = agent.exec(exec, soon()).unwrap();
    let seen = read_until(&mut session, "ready");
    assert!(seen.starts_with("33 77\r\n"), "{seen:?}");
    session.handle().write(b"\x03", soon()).unwrap();
    read_until(&mut session, "int\r\n");
    session.handle().resize(12, 34, soon()).unwrap();
    let (output, status) = outcome(&mut session);
    assert!(output["tty"].contains("12 34"), "{output:?}");
    assert_eq!(status, ExitStatus::Code(7));
}

#[test]
fn the_end_of_input_on_a_terminal_is_its_end_of_file_character() {
    let guest = Guest::start();
    let agent = guest.agent();
    let mut exec = command(&["cat"]);
    exec.pty = Some(Pty { rows: 24, cols: 80 });
    let mut session = agent.exec(exec, soon()).unwrap();
    session.handle().write(b"line\n", soon()).unwrap();
    session.handle().close_stdin(soon()).unwrap();
    let (output, status) = outcome(&mut session);
    assert_eq!(status, ExitStatus::Code(0));
    assert_eq!(output["tty"], "line\r\nline\r\n");
}

#[test]
fn all_a_terminal_showed_arrives_before_the_end() {
    let guest = Guest::start();
    let agent = guest.agent();
    for _ in 0..5 {
        let mut exec = shell("i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; done");
        exec.pty = Some(Pty { rows: 24, cols: 80 });
        let (output, _) = run(&agent, exec);
        assert!(output["tty"].ends_with("2999\r\n3000\r\n"));
    }
}

#[test]
fn a_signal_reaches_the_program() {
    let guest = Guest::start();
    let agent = guest.agent();
    let mut session = agent
        .exec(shell("trap 'exit 9' TERM; echo ready; while :; do sleep 1; done"), soon())
        .unwrap();
    read_until(&mut session, "ready");
    session.handle().signal(15, SignalTarget::Foreground, soon()).unwrap();
    assert_eq!(outcome(&mut session).1, ExitStatus::Code(9));
}

#[test]
fn what_a_program_leaves_behind_dies_with_it() {
    let guest = Guest::start();
    let agent = guest.agent();
    // It holds the output open, so that the end could never come while it lives.
    let (output, status) = run(&agent, shell("sleep 1000 & echo $!"));
    assert_eq!(status, ExitStatus::Code(0));
    assert!(!is_alive(&output["out"]), "{output:?}");
}

#[test]
fn what_may_stay_lives_on_and_does_not_hold_up_the_end() {
    let guest = Guest::start();
    let agent = guest.agent();
    let mut exec = shell("sleep 1000 & echo $!");
    exec.kill_leftovers = false;
    let (output, _) = run(&agent, exec);
    assert!(is_alive(&output["out"]), "{output:?}");
    run(&agent, shell(&format!("kill {}", output["out"].trim())));
}

#[test]
fn a_script_that_forks_and_never_ends_is_killed_with_its_forks() {
    let guest = Guest::start();
    let agent = guest.agent();
    let script = "while :; do sleep 1000 & echo $!; sleep 0.01; done";
    let mut session = agent.exec(shell(script), soon()).unwrap();
    let seen = read_until(&mut session, "\n");
    session.handle().signal(9, SignalTarget::Everything, soon()).unwrap();
    let (output, status) = outcome(&mut session);
    assert_eq!(status, ExitStatus::Signal(9));
    let seen = format!("{seen}{}", output.get("out").cloned().unwrap_or_default());
    let alive: Vec<&str> = seen.lines().filter(|pid| is_alive(pid)).collect();
    assert_eq!(alive, Vec::<&str>::new());
}

#[test]
fn a_flood_waits_for_its_reader_while_others_and_the_heartbeat_do_not() {
    let guest = Guest::start();
    let agent = guest.agent();
    let mut flood = agent.exec(command(&["yes"]), soon()).unwrap();
    // Nobody reads the flood; all of this happens beside it.
    let first = loop {
        if let Some(beat) = agent.heartbeat() {
            break beat;
        }
        assert_eq!(run(&agent, shell("exit 0")).1, ExitStatus::Code(0));
    };
    loop {
        agent.ping(soon()).unwrap();
        let beat = agent.heartbeat().unwrap();
        if beat.uptime_ms > first.uptime_ms {
            assert!(beat.sessions >= 1, "{beat:?}");
            assert!(beat.memory_total >= beat.memory_available && beat.memory_available > 0);
            break;
        }
        run(&agent, shell("sleep 0.1"));
    }
    // Read, it goes on: more than was let through without a reader.
    let mut seen = 0;
    while seen < 8 << 20 {
        match flood.next(soon()).unwrap() {
            Some(SessionEvent::Output { bytes, .. }) => seen += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    flood.handle().signal(9, SignalTarget::Everything, soon()).unwrap();
    assert_eq!(flood.wait(soon(), |_, _| {}).unwrap(), ExitStatus::Signal(9));
}

#[test]
fn many_programs_run_at_once() {
    let guest = Guest::start();
    let agent = guest.agent();
    let mut sessions: Vec<Session> = (0..20)
        .map(|n| agent.exec(shell(&format!("read x; echo {n} $x")), soon()).unwrap())
        .collect();
    for (n, session) in sessions.iter_mut().enumerate().rev() {
        session.handle().write(b"go\n", soon()).unwrap();
        assert_eq!(outcome(session).0["out"], format!("{n} go\n"));
    }
}

#[test]
fn a_dropped_session_kills_its_program() {
    let guest = Guest::start();
    let agent = guest.agent();
    let session = agent.exec(command(&["sleep", "1000"]), soon()).unwrap();
    let pid = session.pid().to_string();
    assert!(is_alive(&pid));
    drop(session);
    while is_alive(&pid) {
        agent.ping(soon()).unwrap();
    }
}

#[test]
fn a_file_is_pushed_whole_with_its_mode_and_pulled_as_it_was() {
    let guest = Guest::start();
    let agent = guest.agent();
    let inside = tempfile::tempdir().unwrap();
    let here = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0_u32..500_000).flat_map(|n| n.wrapping_mul(7).to_le_bytes()).collect();
    let path = inside.path().join("new/folder/big.bin");
    let pushed = agent.push(&path, 0o750, &mut content.as_slice(), soon()).unwrap();
    assert_eq!(pushed, 2_000_000);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o750);
    assert!(fs::read(&path).unwrap() == content);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");

    let pattern = format!("{}/new/*/*.b?n", inside.path().display());
    let report = agent.pull(&[pattern], here.path(), NO_LIMITS, soon()).unwrap();
    assert_eq!(report.troubles, Vec::<String>::new());
    assert_eq!(report.files.len(), 1);
    assert_eq!(report.files[0].bytes, 2_000_000);
    assert!(fs::read(here.path().join(&report.files[0].path)).unwrap() == content);
}

#[test]
fn a_push_that_cannot_be_written_says_why_and_leaves_nothing() {
    let guest = Guest::start();
    let agent = guest.agent();
    let inside = tempfile::tempdir().unwrap();
    let blocked = inside.path().join("file");
    fs::write(&blocked, "x").unwrap();
    let content = vec![0; 3 << 20];
    let error =
        agent.push(&blocked.join("below"), 0o644, &mut content.as_slice(), soon()).unwrap_err();
    assert!(matches!(error, AgentError::Guest { .. }), "{error}");
    let error = agent.push(Path::new("relative"), 0o644, &mut &b"x"[..], soon()).unwrap_err();
    assert!(error.to_string().contains("relative"), "{error}");
    assert_eq!(fs::read_dir(inside.path()).unwrap().count(), 1);
}

#[test]
fn a_folder_is_pulled_with_all_it_holds_and_links_are_told_not_followed() {
    let guest = Guest::start();
    let agent = guest.agent();
    let inside = tempfile::tempdir().unwrap();
    let here = tempfile::tempdir().unwrap();
    fs::create_dir_all(inside.path().join("logs/deep")).unwrap();
    fs::write(inside.path().join("logs/a.log"), "a").unwrap();
    fs::write(inside.path().join("logs/.hidden"), "h").unwrap();
    fs::write(inside.path().join("logs/deep/b.log"), "").unwrap();
    symlink("/etc", inside.path().join("logs/etc")).unwrap();
    let base = inside.path().display().to_string();
    let patterns = [format!("{base}/logs"), format!("{base}/nothing*")];
    let report = agent.pull(&patterns, here.path(), NO_LIMITS, soon()).unwrap();
    let mut names: Vec<String> =
        report.files.iter().map(|file| file.path.display().to_string()).collect();
    names.sort();
    let relative = base.trim_start_matches('/');
    let expected = [".hidden", "a.log", "deep/b.log"].map(|name| format!("{relative}/logs/{name}"));
    assert_eq!(names, expected);
    assert_eq!(report.links, [(format!("{base}/logs/etc"), "/etc".to_owned())]);
    assert_eq!(report.troubles, [format!("nothing matches {base}/nothing*")]);
    assert!(!here.path().join(relative).join("logs/etc").exists());
    assert!(here.path().join(relative).join("logs/deep").is_dir());
}

#[test]
fn a_pull_stops_at_its_limits() {
    let guest = Guest::start();
    let agent = guest.agent();
    let inside = tempfile::tempdir().unwrap();
    let here = tempfile::tempdir().unwrap();
    for n in 0..10 {
        fs::write(inside.path().join(format!("{n}")), vec![b'x'; 1000]).unwrap();
    }
    let patterns = [format!("{}/*", inside.path().display())];
    let limits = PullLimits { entries: 100, bytes: 2500 };
    let report = agent.pull(&patterns, here.path(), limits, soon()).unwrap();
    assert!(report.truncated);
    let bytes: Vec<u64> = report.files.iter().map(|file| file.bytes).collect();
    assert_eq!(bytes, [1000, 1000, 500]);
    let limits = PullLimits { entries: 4, bytes: 1 << 20 };
    let report = agent.pull(&patterns, here.path(), limits, soon()).unwrap();
    assert_eq!((report.files.len(), report.truncated), (4, true));
    // A file without end is one that is too long.
    let endless = ["/dev/zero".to_owned(), "/proc/self/status".to_owned()];
    let report = agent.pull(&endless, here.path(), limits, soon()).unwrap();
    assert_eq!(report.files.len(), 1, "{report:?}");
    assert!(report.troubles[0].contains("/dev/zero"), "{report:?}");
}

#[test]
fn a_path_is_looked_at() {
    let guest = Guest::start();
    let agent = guest.agent();
    let inside = tempfile::tempdir().unwrap();
    fs::write(inside.path().join("f"), "12345").unwrap();
    let stat = agent.stat(&inside.path().join("f"), soon()).unwrap().unwrap();
    assert_eq!(stat.size, 5);
    assert!(agent.stat(&inside.path().join("g"), soon()).unwrap().is_none());
}

#[test]
fn an_ordinary_process_refuses_to_change_the_machine() {
    let guest = Guest::start();
    let agent = guest.agent();
    let error = agent.set_clock(Duration::ZERO, soon()).unwrap_err();
    assert!(matches!(error, AgentError::Guest { kind: ErrorKind::Refused, .. }), "{error}");
    let error = agent.load_modules(&["loop".into()], soon()).unwrap_err();
    assert!(matches!(error, AgentError::Guest { kind: ErrorKind::Refused, .. }), "{error}");
}

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
