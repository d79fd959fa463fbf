//! The process that owns a pool: it alone has the pool open, and does what its clients ask.

use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown, sockopt};
use serde::{Deserialize, Serialize};

use crate::connection::{Answer, Connection, Hello, VERSION};
use crate::door::{Door, Inside};
use crate::error::{Refusal, StoreError, Why};
use crate::frame::{self, FrameError};
use crate::house::{Guest, House};
use crate::layered::Layers;
use crate::place::{Listener, Place};
use crate::reply::Reply;
use crate::request::{Progress, Request, Stop};

/// How long an owner waits for the pool while short-lived tools have it open.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long clients' requests and their clients' may take when an owner is told to end.
const GRACE: Duration = Duration::from_secs(20);
/// How long the temporary disks of an owner that was killed wait to be adopted.
const ADOPTION: Duration = Duration::from_secs(10);
/// Requests of one client that may wait. One that sends more does not wait for answers.
const MOST_WAITING: usize = 16;
/// How long an owner that is asked to leave waits for other clients to be gone.
const PARTING: Duration = Duration::from_secs(1);
/// How often a client hears how far its request is.
const NEWS: Duration = Duration::from_millis(100);

/// An owner that is ready for clients.
#[derive(Debug)]
pub struct Owner {
    house: Arc<House>,
    listener: Listener,
    door: Arc<Door>,
    /// Temporary disks that nobody has adopted yet.
    orphans: bool,
}

/// What became of an attempt to own a pool.
#[derive(Debug)]
pub enum Opened {
    /// This process owns it now.
    Owner(Box<Owner>),
    /// Another process does.
    Already,
}

/// What a started owner says on its standard output, in one line, before it closes it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Readiness {
    Ready,
    Refused(Refusal),
}

/// Makes an owner leave, from any thread.
#[derive(Debug, Clone)]
pub struct Dismissal(Arc<Door>);

impl Dismissal {
    /// No more clients; those that are there are answered and hung up on.
    pub fn dismiss(&self) {
        self.0.close();
    }
}

/// A process of its own: not the terminal's any more, and in nobody's folder.
pub fn detach() {
    // Fails for a process that leads a group already, and then there is nothing to leave.
    let _ = rustix::process::setsid();
    let _ = std::env::set_current_dir("/");
}

/// Tells whoever started this process, by its standard output, that it is ready or why it is not.
pub fn tell_readiness(refused: Option<&StoreError>) {
    let word = match refused {
        None => Readiness::Ready,
        Some(error) => Readiness::Refused(refusal(error)),
    };
    let mut line = serde_json::to_vec(&word).unwrap_or_default();
    line.push(b'\n');
    // Whoever is not there any more does not want to know.
    let mut stdout = io::stdout();
    let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
    // The end of the pipe is part of the message.
    if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}

/// An error in the words that cross a socket.
fn refusal(error: &StoreError) -> Refusal {
    match error {
        StoreError::Refused(refusal) => refusal.clone(),
        StoreError::Stopped => Refusal::of(Why::Stopped, error),
        StoreError::Busy { path, holder } => {
            let holder = holder.as_ref().map_or(String::new(), |holder| format!(": {holder}"));
            let name = path.display().to_string();
            Refusal::new(Why::InUse { name }, format!("{error}{holder}"))
        }
        StoreError::NoPool { .. } => Refusal::of(Why::Request, error),
        _ => Refusal::of(Why::Setup, error),
    }
}

impl Owner {
    /// Opens a pool and a socket for its clients, as soon as no other process has it open.
    pub fn open(pool: &Path, layers: &Layers) -> Result<Opened, StoreError> {
        let pool = real(pool)?;
        let failed = |source| StoreError::Io {
            act: format!("listen beside pool {}", pool.display()),
            source,
        };
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(2);
        let house = loop {
            match House::open(&pool, std::process::id(), layers) {
                Ok(house) => break Arc::new(house),
                Err(kiln_parallax::PoolError::Busy { path }) => {
                    if Connection::open(&pool)?.is_some() {
                        return Ok(Opened::Already);
                    }
                    if Instant::now() > deadline {
                        return Err(StoreError::Busy { path, holder: crate::store::holder(&pool) });
                    }
                }
                Err(error) => return Err(error.into()),
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        };
        let mut refused = io::Error::from(io::ErrorKind::NotFound);
        for place in Place::all(&pool).map_err(failed)? {
            match place.listen() {
                Ok(listener) => {
                    let orphans = house.has_orphans();
                    let owner = Owner { house, listener, door: Door::new(), orphans };
                    return Ok(Opened::Owner(Box::new(owner)));
                }
                Err(error) => refused = error,
            }
        }
        Err(failed(refused))
    }

    /// Where its socket is.
    pub fn socket(&self) -> PathBuf {
        self.listener.path()
    }

    /// Ends it from elsewhere.
    pub fn dismissal(&self) -> Dismissal {
        Dismissal(Arc::clone(&self.door))
    }

    /// What it counted so far; for who shows it elsewhere than on the socket.
    /// Nothing any more when it has left.
    pub fn metrics(&self) -> impl Fn() -> Option<Reply> + Send + Sync + 'static {
        let house = Arc::downgrade(&self.house);
        move || house.upgrade().map(|house| house.metrics())
    }

    /// Does what clients ask until none was there for `idle`, or it is dismissed. When it returns, the pool is stored,
    /// its lock is free and the socket is gone.
    pub fn run(self, idle: Duration) -> Result<(), StoreError> {
        let failed = |source| StoreError::Io { act: "wait for clients".to_owned(), source };
        let Owner { house, listener, door, orphans } = self;
        let enough = eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let sockets: Sockets = Arc::default();
        thread::scope(|scope| {
            let accepting = thread::Builder::new()
                .name("owner-accept".to_owned())
                .spawn_scoped(scope, || accept(&listener, &enough, &house, &door, &sockets))
                .map_err(failed)?;
            if orphans && !door.wait_until(Instant::now() + ADOPTION) {
                house.remove_orphans();
            }
            door.close_when_idle(idle);
            // The counter cannot overflow: it is written once.
            let _ = rustix::io::write(&enough, &1_u64.to_ne_bytes());
            // A panic there has been told; there is nothing to take over from it.
            let _ = accepting.join();
            Ok::<(), StoreError>(())
        })?;
        // From here on clients look for the next owner, which waits for the lock.
        drop(listener);
        for socket in sockets.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = shutdown(&**socket, Shutdown::Read);
        }
        if !door.wait_until_empty(GRACE) {
            tracing::warn!("some clients did not end in time");
        }
        house.pool.checkpoint()?;
        Ok(())
    }
}

/// A pool's path without links, where its owner's socket is looked for.
pub(crate) fn real(pool: &Path) -> Result<PathBuf, StoreError> {
    pool.canonicalize().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => StoreError::NoPool { path: pool.to_owned() },
        _ => StoreError::Io { act: format!("find pool {}", pool.display()), source },
    })
}

type Sockets = Arc<Mutex<Vec<Arc<OwnedFd>>>>;

fn accept(
    listener: &Listener,
    enough: &OwnedFd,
    house: &Arc<House>,
    door: &Arc<Door>,
    sockets: &Sockets,
) {
    loop {
        let mut waiting =
            [PollFd::new(&listener.fd, PollFlags::IN), PollFd::new(enough, PollFlags::IN)];
        if poll(&mut waiting, None).is_err() {
            continue;
        }
        if !waiting[1].revents().is_empty() {
            return;
        }
        match accept_with(&listener.fd, SocketFlags::CLOEXEC) {
            Ok(socket) => welcome(socket, house, door, sockets),
            Err(
                rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR,
            ) => {}
            // Out of descriptors or memory: somebody has to leave before anybody can come.
            Err(_) => {
                let pause = rustix::time::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
                let _ = poll(&mut [PollFd::new(enough, PollFlags::IN)], Some(&pause));
            }
        }
    }
}

/// Takes a client in, or hangs up on it.
fn welcome(socket: OwnedFd, house: &Arc<House>, door: &Arc<Door>, sockets: &Sockets) {
    let Ok(peer) = sockopt::socket_peercred(&socket) else { return };
    let (uid, own) = (peer.uid.as_raw(), rustix::process::geteuid().as_raw());
    if uid != own && uid != 0 {
        tracing::warn!(uid, "a process of another user was turned away");
        return;
    }
    let pid = u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap_or(0);
    let Some(inside) = door.enter() else { return };
    let socket = Arc::new(socket);
    sockets.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&socket));
    house.connections.fetch_add(1, Ordering::Relaxed);
    let client = Client {
        guest: Guest::new(Arc::clone(house), pid),
        socket,
        sockets: Arc::clone(sockets),
        house: Arc::clone(house),
        door: Arc::clone(door),
        _inside: inside,
    };
    // Without a thread the closure is dropped, and with it the client.
    let _ = thread::Builder::new().name("owner-client".to_owned()).spawn(move || client.serve());
}

/// One client. The order of the fields is the order in which they go: what it holds first, its being inside last.
struct Client {
    guest: Guest,
    socket: Arc<OwnedFd>,
    sockets: Sockets,
    house: Arc<House>,
    door: Arc<Door>,
    _inside: Inside,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.guest.end();
        // Whoever waits for the end learns of it after what was held is gone.
        let _ = shutdown(&*self.socket, Shutdown::Both);
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.retain(|socket| !Arc::ptr_eq(socket, &self.socket));
        self.house.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

type Came = Result<(Request, Vec<OwnedFd>), FrameError>;

impl Client {
    fn serve(mut self) {
        let hello = Hello {
            version: VERSION,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
        };
        if answer(&self.socket, &Answer::Hello(hello)).is_err() {
            return;
        }
        let stop = Stop::new();
        let (tell, told) = mpsc::sync_channel(MOST_WAITING);
        let (socket, hung_up) = (Arc::clone(&self.socket), stop.clone());
        let reading = thread::Builder::new()
            .name("owner-reader".to_owned())
            .spawn(move || read(&socket, &tell, &hung_up));
        if reading.is_err() {
            return;
        }
        for came in told {
            let said = match came {
                Ok((Request::Leave, _)) => self.leave(),
                Ok((request, files)) => self.carry_out(request, files, &stop),
                Err(error) => Err(Refusal::of(Why::Request, &error)),
            };
            let said = said.map_or_else(Answer::Refused, Answer::Done);
            if answer(&self.socket, &said).is_err() {
                break;
            }
        }
        if self.door.is_closed() {
            // Who is not there any more does not want to know.
            let _ = answer(&self.socket, &Answer::Leaving);
        }
        // Wakes the reader, if it was the answer that failed.
        let _ = shutdown(&*self.socket, Shutdown::Read);
    }

    fn carry_out(
        &mut self,
        request: Request,
        files: Vec<OwnedFd>,
        stop: &Stop,
    ) -> Result<Reply, Refusal> {
        let socket = Arc::clone(&self.socket);
        let mut last = Instant::now();
        let mut on_progress = |progress: Progress| {
            if last.elapsed() >= NEWS {
                last = Instant::now();
                // Whether anybody listens is the reader's to find out.
                let _ = answer(&socket, &Answer::Progress(progress));
            }
        };
        let asked = self.guest.handle(request, files, &mut on_progress, stop);
        asked.map_err(|error| refusal(&error))
    }

    /// The owner goes if this is its only client and nothing is held.
    fn leave(&self) -> Result<Reply, Refusal> {
        let leases = self.house.leases();
        // Whoever has just gone may not have been noticed yet.
        if leases == 0 && self.door.close_once_at_most(1, PARTING) {
            return Ok(Reply::Done);
        }
        let text = match (leases, self.house.connections.load(Ordering::Relaxed)) {
            (0, others) => format!("{} other processes are working with it", others.max(2) - 1),
            (leases, _) => format!("{leases} disks are served or temporary"),
        };
        Err(Refusal::new(Why::InUse { name: String::new() }, text))
    }
}

fn answer(socket: &OwnedFd, said: &Answer) -> Result<(), FrameError> {
    match frame::send(socket, said, &[], frame::LONGEST_ANSWER) {
        Err(error @ FrameError::TooLong { .. }) => {
            let refusal = Refusal::of(Why::Failed, &error).tried("the answer is too long");
            frame::send(socket, &Answer::Refused(refusal), &[], frame::LONGEST_ANSWER)
        }
        sent => sent,
    }
}

/// Reads what a client asks until it hangs up or breaks the rules, and tells whoever works for it.
fn read(socket: &OwnedFd, tell: &mpsc::SyncSender<Came>, stop: &Stop) {
    loop {
        let came: Came = frame::receive(socket, frame::LONGEST_REQUEST);
        // Only a text that is not understood ends where the next frame begins.
        let last = !matches!(came, Ok(_) | Err(FrameError::Text(_)));
        if matches!(came, Err(FrameError::End | FrameError::Io(_))) {
            break;
        }
        match tell.try_send(came) {
            Ok(()) if !last => {}
            Err(TrySendError::Full(_)) => {
                // It does not wait for answers and may not listen for them either: whoever is telling it one would
                // wait for ever, and so would it, for nobody reads any more what it asks.
                let _ = shutdown(socket, Shutdown::Both);
                break;
            }
            Ok(()) | Err(TrySendError::Disconnected(_)) => break,
        }
    }
    stop.stop();
}
