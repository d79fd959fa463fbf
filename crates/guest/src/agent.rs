//! The loop that talks with the host. It alone reads and writes the channel, starts programs and
//! buries them; it waits for nothing but its own `poll`.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use kiln_model::protocol::{
    Answer, CONTROL, Decoder, Done, ErrorKind, Exec, ExitStatus, HEARTBEAT_EVERY_MS, PROTOCOL,
    Push, Request, SignalTarget, Stream, Welcome,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::process::{Signal, WaitStatus};

use crate::cgroup::Cgroup;
use crate::cmdline::Cmdline;
use crate::disks;
use crate::machine;
use crate::outbox::{Conversation, Outbox};
use crate::port::{Got, Port};
use crate::power;
use crate::reaper::Reaper;
use crate::renewal::{self, Standby};
use crate::session::Session;
use crate::transfer::{self, Line, PushPart};

const HEARTBEAT_EVERY: Duration = Duration::from_millis(HEARTBEAT_EVERY_MS);
/// How often to look whether the host is there again; its absence cannot be waited for with `poll`.
const LOOK_FOR_HOST_EVERY: Duration = Duration::from_millis(20);
/// How long the last word may take to be sent.
const FAREWELL: Duration = Duration::from_secs(5);
const MAX_WORKERS: usize = 16;
const MAX_SESSIONS: usize = 64;

/// Whether we are the machine or a guest in somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Init,
    Process,
}

/// What became readable or writable.
#[derive(Clone, Copy, Debug)]
enum Ready {
    Port,
    Outbox,
    Children,
    Uevents,
    Output(u32, Stream),
    Input(u32),
}

/// The agent's whole state.
#[derive(Debug)]
pub(crate) struct Agent {
    role: Role,
    port: Port,
    uevents: Option<OwnedFd>,
    cmdline: Arc<Cmdline>,
    reaper: Reaper,
    decoder: Decoder,
    outbox: Arc<Outbox>,
    /// The frame being written, and how much of it is.
    writing: (Vec<u8>, usize),
    host_absent: bool,
    nonce: Option<u64>,
    conversation: Conversation,
    last_channel: u32,
    sessions: BTreeMap<u32, Session>,
    pushes: HashMap<u32, Sender<PushPart>>,
    workers: Arc<AtomicUsize>,
    rescans_wanted: Arc<AtomicUsize>,
    next_beat: Instant,
    empty_cgroups: Vec<Cgroup>,
    /// What was made before the machine was saved, so that those who are restored find it.
    spare_cgroup: Option<Cgroup>,
    standby: Standby,
}

impl Agent {
    pub(crate) fn new(
        role: Role,
        port: Port,
        uevents: Option<OwnedFd>,
        cmdline: Cmdline,
    ) -> io::Result<Agent> {
        Ok(Agent {
            role,
            port,
            uevents,
            cmdline: Arc::new(cmdline),
            reaper: Reaper::start()?,
            decoder: Decoder::new(),
            outbox: Arc::new(Outbox::new()?),
            writing: (Vec::new(), 0),
            host_absent: false,
            nonce: None,
            conversation: 0,
            last_channel: 0,
            sessions: BTreeMap::new(),
            pushes: HashMap::new(),
            workers: Arc::new(AtomicUsize::new(0)),
            rescans_wanted: Arc::new(AtomicUsize::new(0)),
            next_beat: Instant::now(),
            empty_cgroups: Vec::new(),
            spare_cgroup: None,
            standby: Standby::default(),
        })
    }

    /// Serves until the channel fails; a socket's end is the orderly way out.
    pub(crate) fn serve(&mut self) -> io::Result<()> {
        loop {
            for ready in self.wait()? {
                match ready {
                    Ready::Port => {}
                    Ready::Outbox => self.outbox.clear_wake(),
                    Ready::Children => self.bury(),
                    Ready::Uevents => self.drain_uevents(),
                    Ready::Output(channel, stream) => {
                        self.forward(channel, stream);
                    }
                    Ready::Input(channel) => {
                        if let Some(session) = self.sessions.get_mut(&channel) {
                            session.write_queue();
                        }
                    }
                }
            }
            if self.read_port()? == Got::Absent && self.port.is_socket {
                self.end_conversation();
                return Ok(());
            }
            self.give_credit();
            self.finish_sessions();
            self.beat();
            self.empty_cgroups.retain(|cgroup| !cgroup.remove());
            self.write_port()?;
        }
    }

    fn wait(&self) -> io::Result<Vec<Ready>> {
        let mut fds = Vec::new();
        let mut names = Vec::new();
        let mut watch = |name, fd, flags| {
            names.push(name);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        let sending = self.writing.1 < self.writing.0.len();
        if !self.host_absent {
            let wanted = if sending { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            watch(Ready::Port, self.port.fd(), wanted);
        }
        watch(Ready::Outbox, self.outbox.wake_fd(), PollFlags::IN);
        watch(Ready::Children, self.reaper.fd(), PollFlags::IN);
        if let Some(uevents) = &self.uevents {
            watch(Ready::Uevents, uevents.as_fd(), PollFlags::IN);
        }
        let now = Instant::now();
        let mut until = self.nonce.map(|_| self.next_beat);
        let mut no_later = |instant: Instant| {
            until = Some(until.map_or(instant, |until| until.min(instant)));
        };
        if self.host_absent {
            no_later(now + LOOK_FOR_HOST_EVERY);
        }
        for (&channel, session) in &self.sessions {
            let has_budget = self.outbox.budget(channel) > 0;
            if has_budget {
                for (stream, fd) in session.outputs() {
                    watch(Ready::Output(channel, stream), fd, PollFlags::IN);
                }
                session.wake_at().into_iter().for_each(&mut no_later);
            }
            if let Some(fd) = session.wants_to_write() {
                watch(Ready::Input(channel), fd, PollFlags::OUT);
            }
        }
        if !self.empty_cgroups.is_empty() {
            no_later(now + Duration::from_millis(100));
        }
        let timeout = until.map(|until| machine::timespec(until.saturating_duration_since(now)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = names.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(name, _)| *name).collect())
    }

    fn read_port(&mut self) -> io::Result<Got> {
        let mut buffer = [0; 16 * 1024];
        // Bounded, so that a host that talks without pause cannot keep us from everything else.
        for _ in 0..16 {
            match self.port.read(&mut buffer)? {
                Got::Bytes(count) => {
                    self.host_absent = false;
                    self.decoder.feed(&buffer[..count]);
                    while let Some(frame) = self.decoder.next_frame() {
                        // Not understood means not meant for us: another version's message.
                        if let Ok(request) = Request::decode(&frame) {
                            self.handle(frame.channel, request);
                        }
                    }
                }
                Got::Nothing => {
                    self.host_absent = false;
                    return Ok(Got::Nothing);
                }
                Got::Absent => {
                    self.host_absent = true;
                    self.decoder.forget_partial();
                    return Ok(Got::Absent);
                }
            }
        }
        Ok(Got::Nothing)
    }

    fn write_port(&mut self) -> io::Result<()> {
        loop {
            let (frame, written) = &mut self.writing;
            if *written == frame.len() {
                match self.outbox.next() {
                    Some(next) => self.writing = (next, 0),
                    None => return Ok(()),
                }
                continue;
            }
            match self.port.write(&frame[*written..])? {
                0 => return Ok(()),
                count => *written += count,
            }
        }
    }

    fn handle(&mut self, channel: u32, request: Request) {
        match request {
            Request::Hello { nonce, .. } => self.hello(nonce),
            // Whatever comes before the first hello was meant for somebody else.
            _ if self.nonce.is_none() => {}
            Request::Stdin(bytes) => self.input(channel, &bytes),
            Request::CloseStdin => {
                self.session(channel, Session::close_input);
            }
            Request::Resize(size) => self.session(channel, |session| session.resize(size)),
            Request::Signal { signal, target } => {
                if let Some(signal) = Signal::from_named_raw(i32::from(signal)) {
                    self.session(channel, |session| session.signal(signal, target));
                }
            }
            Request::Credit(bytes) => self.outbox.grant(channel, bytes),
            Request::PushData(bytes) => self.push_data(channel, bytes),
            Request::PushEnd { crc32c, length } => {
                if let Some(parts) = self.pushes.remove(&channel) {
                    let _ = parts.send(PushPart::End { crc32c, length });
                }
            }
            Request::Cancel => self.cancel(channel),
            opening => self.open(channel, opening),
        }
    }

    fn hello(&mut self, nonce: u64) {
        if self.nonce != Some(nonce) {
            self.end_conversation();
            self.nonce = Some(nonce);
        }
        let welcome = Welcome {
            nonce,
            protocol: PROTOCOL,
            release: rustix::system::uname().release().to_bytes().to_vec(),
            uptime_ms: machine::uptime_ms(),
        };
        self.outbox.send(self.conversation, CONTROL, &Answer::Welcome(welcome));
        // The welcome was a sign of life.
        self.next_beat = Instant::now() + HEARTBEAT_EVERY;
    }

    /// Kills and forgets all that was done for the host that spoke last.
    fn end_conversation(&mut self) {
        self.conversation = self.outbox.begin();
        self.last_channel = 0;
        self.pushes.clear();
        for session in std::mem::take(&mut self.sessions).into_values() {
            session.signal(Signal::KILL, SignalTarget::Everything);
            self.empty_cgroups.extend(session.into_cgroup());
        }
    }

    /// The last word of this conversation: whoever restores the machine begins the next one.
    fn rest(&mut self, channel: u32) {
        self.end_conversation();
        self.nonce = None;
        if self.role == Role::Init {
            self.standby = Standby::prepare();
            let name = format!("spare-{}", self.conversation);
            self.spare_cgroup = self.spare_cgroup.take().or_else(|| Cgroup::make(&name));
        }
        self.outbox.open(channel);
        let answer = Answer::Done(Done::default());
        self.outbox.finish(self.conversation, channel, &answer);
    }

    fn session(&mut self, channel: u32, act: impl FnOnce(&mut Session)) {
        if let Some(session) = self.sessions.get_mut(&channel) {
            act(session);
        }
    }

    fn input(&mut self, channel: u32, bytes: &[u8]) {
        let Some(session) = self.sessions.get_mut(&channel) else { return };
        if !session.input(bytes) {
            self.cancel(channel);
        }
    }

    fn push_data(&mut self, channel: u32, bytes: Vec<u8>) {
        let Some(parts) = self.pushes.get(&channel) else { return };
        if parts.send(PushPart::Data(bytes)).is_err() {
            // The worker failed and has told the host why.
            self.pushes.remove(&channel);
        }
    }

    fn cancel(&mut self, channel: u32) {
        self.pushes.remove(&channel);
        if let Some(session) = self.sessions.remove(&channel) {
            session.signal(Signal::KILL, SignalTarget::Everything);
            self.empty_cgroups.extend(session.into_cgroup());
        }
        let answer = Answer::Error { kind: ErrorKind::Failed, text: b"cancelled".to_vec() };
        self.outbox.finish(self.conversation, channel, &answer);
        self.outbox.close(channel);
    }

    /// The first message of an operation.
    fn open(&mut self, channel: u32, request: Request) {
        if channel <= self.last_channel {
            // Sent twice, or by a host that does not count: its channel has a meaning already.
            return;
        }
        self.last_channel = channel;
        self.outbox.open(channel);
        let line =
            Line { outbox: Arc::clone(&self.outbox), conversation: self.conversation, channel };
        match request {
            Request::LoadModules(_)
            | Request::RescanDisks
            | Request::SetClock(_)
            | Request::SeedEntropy(_)
            | Request::Renew(_)
                if self.role == Role::Process =>
            {
                line.finish(Err(machine::refused("this agent does not own its machine")));
            }
            Request::Exec(exec) => self.exec(channel, &exec, &line),
            Request::Ping(number) => line.finish(Ok(Answer::Pong(number))),
            Request::Push(push) => self.push(channel, push, line),
            Request::Pull { patterns, limits } => {
                self.work(line, move |line| transfer::pull(&patterns, limits, line));
            }
            Request::Stat(path) => self.work(line, move |_| transfer::stat(&path)),
            Request::Sync => self.work(line, |_| {
                rustix::fs::sync();
                Ok(Answer::Done(Done::default()))
            }),
            Request::LoadModules(names) => {
                let cmdline = Arc::clone(&self.cmdline);
                self.work(line, move |_| machine::load_modules(&names, &cmdline));
            }
            Request::RescanDisks => self.work(line, |_| machine::rescan_disks()),
            Request::SetClock(nanoseconds) => line.finish(machine::set_clock(nanoseconds)),
            Request::SeedEntropy(bytes) => line.finish(machine::seed_entropy(&bytes)),
            Request::Renew(renewal) => {
                let standby = std::mem::take(&mut self.standby);
                line.finish(Ok(renewal::renew(&renewal, &self.cmdline, standby)));
            }
            Request::Rest => self.rest(channel),
            Request::PowerOff => self.power_off(line),
            // The others open nothing and are handled before.
            _ => {}
        }
    }

    fn exec(&mut self, channel: u32, exec: &Exec, line: &Line) {
        if self.sessions.len() >= MAX_SESSIONS {
            line.finish(Err(machine::refused("too many programs run already")));
            return;
        }
        let cgroup = match self.role {
            Role::Init => {
                let name = format!("exec-{}-{channel}", self.conversation);
                self.spare_cgroup.take().or_else(|| Cgroup::make(&name))
            }
            Role::Process => None,
        };
        match Session::start(exec, cgroup) {
            Ok(session) => {
                let pid = u32::try_from(session.leader().as_raw_nonzero().get()).unwrap_or(0);
                self.sessions.insert(channel, session);
                self.outbox.send(self.conversation, channel, &Answer::Started(pid));
            }
            Err(error) => {
                let program = exec.argv.first().map(|name| String::from_utf8_lossy(name));
                let program = program.unwrap_or_default();
                line.finish(Err(transfer::io_error("run", Path::new(&*program), &error)));
            }
        }
        self.reaper.watch_again();
    }

    fn push(&mut self, channel: u32, push: Push, line: Line) {
        let (sender, parts) = mpsc::channel();
        self.pushes.insert(channel, sender);
        self.work(line, move |line| transfer::push(&push, &parts, line));
    }

    /// Runs an operation in a thread of its own.
    fn work(&self, line: Line, act: impl FnOnce(&Line) -> Result<Answer, Answer> + Send + 'static) {
        let workers = Arc::clone(&self.workers);
        if workers.fetch_add(1, Ordering::Relaxed) >= MAX_WORKERS {
            workers.fetch_sub(1, Ordering::Relaxed);
            line.finish(Err(machine::refused("too many operations at once")));
            return;
        }
        let for_thread = line.clone();
        let started =
            thread::Builder::new().name("worker".into()).stack_size(256 * 1024).spawn(move || {
                let result = act(&for_thread);
                workers.fetch_sub(1, Ordering::Relaxed);
                for_thread.finish(result);
            });
        if let Err(error) = started {
            self.workers.fetch_sub(1, Ordering::Relaxed);
            line.finish(Err(machine::refused(&format!("cannot start a thread: {error}"))));
        }
    }

    fn power_off(&mut self, line: Line) {
        for session in self.sessions.values() {
            session.signal(Signal::KILL, SignalTarget::Everything);
        }
        let role = self.role;
        self.work(line, move |line| {
            if role == Role::Process {
                return Ok(Answer::Done(Done::default()));
            }
            power::quiesce();
            line.finish(Ok(Answer::Done(Done::default())));
            // Should nobody take it, the host sees the machine end.
            line.outbox.wait_until_sent(FAREWELL);
            power::off()
        });
    }

    fn bury(&mut self) {
        for (pid, status) in self.reaper.bury() {
            let status = exit_status(status);
            if let Some(session) = self.sessions.values_mut().find(|s| s.leader() == pid) {
                session.ended(status);
            }
        }
    }

    fn drain_uevents(&mut self) {
        let Some(uevents) = &self.uevents else { return };
        let mut about_disks = false;
        let mut buffer = [0; 8192];
        while let Ok(count) = rustix::io::read(uevents, &mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..count]);
            about_disks |= text.split('\0').any(|line| line == "SUBSYSTEM=block");
            if count == 0 {
                break;
            }
        }
        if about_disks {
            self.rescan_disks_soon();
        }
    }

    /// In a thread of its own: a serial is asked of the disk itself, which may not answer.
    fn rescan_disks_soon(&self) {
        // Whoever scans already looks again before it ends.
        if self.rescans_wanted.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        let wanted = Arc::clone(&self.rescans_wanted);
        let scan = move || {
            loop {
                let seen = wanted.load(Ordering::Acquire);
                let _ = disks::rescan();
                let idle = wanted.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire);
                if idle.is_ok() {
                    break;
                }
            }
        };
        if thread::Builder::new().name("disks".into()).stack_size(128 * 1024).spawn(scan).is_err() {
            self.rescans_wanted.store(0, Ordering::Release);
        }
    }

    /// Sends what a program wrote, as far as the host wants it. True if there was anything.
    fn forward(&mut self, channel: u32, stream: Stream) -> bool {
        let budget = self.outbox.budget(channel);
        let Some(session) = self.sessions.get_mut(&channel).filter(|_| budget > 0) else {
            return false;
        };
        let Some(bytes) = session.read(stream, budget) else { return false };
        self.outbox.send_metered(channel, &Answer::Output { stream, bytes });
        true
    }

    fn give_credit(&mut self) {
        for (&channel, session) in &mut self.sessions {
            if let Some(bytes) = session.take_owed() {
                self.outbox.send(self.conversation, channel, &Answer::Credit(bytes));
            }
        }
    }

    fn finish_sessions(&mut self) {
        let now = Instant::now();
        let candidates: Vec<u32> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.is_finished(now))
            .map(|(&channel, _)| channel)
            .collect();
        for channel in candidates {
            let streams: Vec<Stream> = self.sessions[&channel].outputs().map(|(s, _)| s).collect();
            let mut silent = true;
            for stream in streams {
                // Out of credit is no silence: what is left is sent once the host wants it.
                silent &= self.outbox.budget(channel) > 0 && !self.forward(channel, stream);
            }
            if !silent && !self.sessions[&channel].is_overrun() {
                continue;
            }
            let Some(session) = self.sessions.remove(&channel) else { continue };
            if let Some(status) = session.status() {
                self.outbox.finish(self.conversation, channel, &Answer::Exited(status));
            }
            self.empty_cgroups.extend(session.into_cgroup());
        }
    }

    fn beat(&mut self) {
        let now = Instant::now();
        if self.nonce.is_none() || now < self.next_beat {
            return;
        }
        self.next_beat = now + HEARTBEAT_EVERY;
        let heartbeat = machine::vital_signs(self.sessions.len());
        self.outbox.beat(&Answer::Heartbeat(heartbeat));
    }
}

fn exit_status(status: WaitStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, Some(signal)) => ExitStatus::Signal(signal),
        (None, None) => ExitStatus::Code(-1),
    }
}
