//! Programs that the agent runs: what they get, what is heard of them, and how they end.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use kiln_model::protocol::{ErrorKind, Exec, INITIAL_CREDIT, Pty};
use kiln_vm::agent::{Agent, AgentError, ExitStatus, Session, SessionEvent, SignalTarget};

use crate::process::{Guest, command, is_alive, outcome, read_until, run, shell, soon};

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
fn a_program_is_looked_for_where_its_environment_says_and_may_be_a_script_without_a_first_line() {
    let guest = Guest::start();
    let agent = guest.agent();
    let [locked, open] = [0o644, 0o755].map(|mode| {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("greet");
        fs::write(&script, "echo \"$0 $1\"\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(mode)).unwrap();
        folder
    });
    let mut exec = command(&["greet", "you"]);
    let path = format!("/nowhere:{}:{}", locked.path().display(), open.path().display());
    exec.env = [&b"/nothing"[..], path.as_bytes()].map(|is| (b"PATH".to_vec(), is.to_vec())).into();
    let (output, status) = run(&agent, exec);
    assert_eq!(status, ExitStatus::Code(0));
    assert_eq!(output["out"], format!("{}/greet you\n", open.path().display()));
}

#[test]
fn a_program_whose_folder_is_not_there_does_not_start() {
    let guest = Guest::start();
    let agent = guest.agent();
    let mut exec = shell("echo never");
    exec.cwd = b"/no/such/folder".to_vec();
    let error = agent.exec(exec, soon()).unwrap_err();
    assert!(matches!(error, AgentError::Guest { kind: ErrorKind::NotFound, .. }), "{error}");
}

#[test]
fn a_program_dies_of_a_broken_pipe() {
    let guest = Guest::start();
    let agent = guest.agent();
    assert_eq!(run(&agent, shell("kill -PIPE $$")).1, ExitStatus::Signal(13));
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

/// A killed process closes its files, and so tells its end, before it is gone.
fn until_gone(agent: &Agent, pid: &str) {
    while is_alive(pid) {
        agent.ping(soon()).unwrap();
    }
}

#[test]
fn what_a_program_leaves_behind_dies_with_it() {
    let guest = Guest::start();
    let agent = guest.agent();
    // It holds the output open, so that the end could never come while it lives.
    let (output, status) = run(&agent, shell("sleep 1000 & echo $!"));
    assert_eq!(status, ExitStatus::Code(0));
    until_gone(&agent, &output["out"]);
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
    seen.lines().for_each(|pid| until_gone(&agent, pid));
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
    until_gone(&agent, &pid);
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
