//! The guest's side of Kiln, one static executable: PID 1 of the initramfs, the agent that runs
//! programs for the host (`docs/formats/agent-protocol.md`), and `modprobe`.
//!
//! What it is depends on how it is called: as `modprobe` it loads modules; as process 1 it sets the
//! machine up and serves the virtio-serial port; with `--agent-socket PATH` it connects to a socket
//! and serves that, as an ordinary process and without touching the system, which is how most tests
//! run it.

mod agent;
mod appliance;
mod cgroup;
mod cmdline;
mod console;
mod disks;
mod init;
mod machine;
mod modules;
mod outbox;
mod port;
mod power;
mod program;
mod reaper;
mod renewal;
mod root;
mod session;
mod transfer;
mod unpack;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fd::OwnedFd;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use rustix::process::{Pid, getpid, set_child_subreaper};

use agent::{Agent, Role};
use cmdline::Cmdline;
use console::say;
use port::Port;

const USAGE: &str = "usage: kiln-guest --agent-socket PATH  (or as process 1, or as modprobe)";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let called = PathBuf::from(arguments.next().unwrap_or_default());
    let arguments: Vec<String> =
        arguments.map(|argument| argument.to_string_lossy().into_owned()).collect();
    if called.file_name().is_some_and(|name| name == "modprobe") {
        let status = modules::modprobe(&arguments);
        return ExitCode::from(u8::try_from(status).unwrap_or(1));
    }
    if getpid() == Pid::INIT {
        return be_init();
    }
    match arguments.as_slice() {
        [option, path] if option == "--agent-socket" => serve_socket(Path::new(path)),
        [option, rest @ ..] if option == "--unpack-layer" => match unpack::run(rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say!("{error}");
                ExitCode::FAILURE
            }
        },
        [option] if option == "--version" => {
            say!("{}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            say!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Never returns in a useful way: a PID 1 that returns makes the kernel panic.
fn be_init() -> ExitCode {
    power::off_on_panic();
    appliance::take_over();
    let cmdline = init::set_up();
    if let Some(names) = cmdline.kiln("modules") {
        let names: Vec<&str> = names.split(',').filter(|name| !name.is_empty()).collect();
        if let Err(trouble) = modules::load(&names, "", &cmdline) {
            say!("{}", trouble.text);
        }
    }
    if let Err(trouble) = modules::load_drivers(&cmdline) {
        say!("{}", trouble.text);
    }
    if let Err(trouble) = root::enter(&cmdline) {
        say!("{trouble}");
        // Whatever runs without its root would blame the kernel for what is missing.
        power::off();
    }
    init::furnish();
    if let Err(error) = disks::rescan() {
        say!("cannot link disks by their serials: {error}");
    }
    let port = Port::virtio(&cmdline);
    let served = Agent::new(Role::Init, port, uevents(), cmdline).and_then(|mut a| a.serve());
    match served {
        Ok(()) => say!("the agent ended"),
        Err(error) => say!("the agent failed: {error}"),
    }
    power::quiesce();
    power::off()
}

/// The kernel's announcements of devices; without them the disks' links are made anew only now and then.
fn uevents() -> Option<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let kind = Some(KOBJECT_UEVENT);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, kind).ok()?;
    bind(&socket, &SocketAddrNetlink::new(0, 1)).ok()?;
    Some(socket)
}

fn serve_socket(path: &Path) -> ExitCode {
    // Programs that outlive their parent are ours to bury, as they are PID 1's.
    let subreaper = set_child_subreaper(Some(getpid()));
    let served = subreaper
        .map_err(std::io::Error::from)
        .and_then(|()| Port::socket(path))
        .and_then(|port| Agent::new(Role::Process, port, None, Cmdline::default()))
        .and_then(|mut agent| agent.serve());
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("cannot serve {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}
