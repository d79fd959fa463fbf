//! The agent as an ordinary process behind a socket, spoken to by the host's own client.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln_model::protocol::Exec;
use kiln_vm::agent::{Agent, ExitStatus, Session, SessionEvent, Stream};

/// Long enough for the slowest machine; reached only by a test that fails.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(120)
}

/// An agent process and our end of its socket. Both are gone when this is dropped.
pub(crate) struct Guest {
    process: Child,
    pub(crate) stream: Option<UnixStream>,
}

impl Guest {
    pub(crate) fn start() -> Guest {
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

    pub(crate) fn agent(&self) -> Agent {
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

pub(crate) fn command(argv: &[&str]) -> Exec {
    Exec {
        argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
        kill_leftovers: true,
        ..Exec::default()
    }
}

pub(crate) fn shell(script: &str) -> Exec {
    command(&["/bin/sh", "-c", script])
}

/// All output by stream, and the end.
pub(crate) fn outcome(session: &mut Session) -> (BTreeMap<&'static str, String>, ExitStatus) {
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

pub(crate) fn run(agent: &Agent, exec: Exec) -> (BTreeMap<&'static str, String>, ExitStatus) {
    outcome(&mut agent.exec(exec, soon()).unwrap())
}

/// Reads output until it contains `text`.
pub(crate) fn read_until(session: &mut Session, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        match session.next(soon()).unwrap() {
            Some(SessionEvent::Output { bytes, .. }) => seen += &String::from_utf8_lossy(&bytes),
            other => panic!("after {seen:?} came {other:?} instead of {text:?}"),
        }
    }
    seen
}

pub(crate) fn is_alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
}
