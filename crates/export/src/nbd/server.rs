//! A server: accepts clients, gives each a thread, and stops without dropping what was begun.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::address::Address;
use super::channel::Socket;
use super::listener::{ListenError, Listener};
use super::reception::Reception;
use super::tls::Tls;
use crate::Exports;

/// Clients at once; the next ones are hung up on.
const MOST_CLIENTS: usize = 256;

/// Serves disks on one address until it is stopped or dropped.
#[derive(Debug)]
pub struct Server {
    clients: Arc<Clients>,
    /// Whether clients have to start TLS.
    secured: bool,
    reception: Reception,
}

#[derive(Debug, Default)]
struct Clients {
    state: Mutex<ClientState>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct ClientState {
    sockets: HashMap<u64, Arc<Socket>>,
    next: u64,
    stopping: bool,
}

impl Server {
    /// Listens, and serves from then on, in threads of its own.
    ///
    /// A unix socket can be reached by its user alone. What a dead server left at its path is replaced; a
    /// server that lives, or a file of another kind, is left alone. The path goes with the server.
    ///
    /// Only this machine can reach it: other addresses are refused.
    pub fn start(address: &Address, exports: Exports) -> Result<Server, ListenError> {
        Server::run(Listener::bind(address)?, exports, None)
    }

    /// Like [`start`](Server::start), but clients have to start TLS before they are told anything, and other
    /// machines may be among them.
    pub fn start_secured(
        address: &Address,
        exports: Exports,
        tls: Tls,
    ) -> Result<Server, ListenError> {
        Server::run(Listener::bind_anywhere(address)?, exports, Some(tls))
    }

    fn run(listener: Listener, exports: Exports, tls: Option<Tls>) -> Result<Server, ListenError> {
        let secured = tls.is_some();
        let clients = Arc::new(Clients::default());
        let (inside, service) = (Arc::clone(&clients), (exports, tls));
        let reception =
            Reception::open(listener, "nbd-accept", move |fd| welcome(fd, &inside, &service))?;
        Ok(Server { clients, secured, reception })
    }

    /// Where clients connect; with the port that was found free if none was named.
    pub fn address(&self) -> &Address {
        self.reception.address()
    }

    /// How clients name an export here: an NBD URI. It does not say where their certificates are.
    pub fn uri(&self, export: &str) -> String {
        let uri = self.address().uri(export);
        match uri.strip_prefix("nbd").filter(|_| self.secured) {
            Some(rest) => format!("nbds{rest}"),
            None => uri,
        }
    }

    /// How many clients are connected.
    pub fn clients(&self) -> usize {
        self.clients.lock().sockets.len()
    }

    /// Stops: no more clients and no more requests; what was received is carried out and answered,
    /// for as long as `grace` lasts, and then clients are hung up on. Returns how many of them were.
    ///
    /// Nothing is flushed that no client asked to flush.
    pub fn stop(mut self, grace: Duration) -> usize {
        self.end(grace)
    }

    fn end(&mut self, grace: Duration) -> usize {
        if !self.reception.close() {
            return 0;
        }
        let mut state = self.clients.lock();
        state.stopping = true;
        for socket in state.sockets.values() {
            socket.stop_receiving();
        }
        let deadline = Instant::now() + grace;
        while !state.sockets.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.clients.left.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let cut_off = state.sockets.len();
        for socket in state.sockets.values() {
            super::Channel::hang_up(socket.as_ref());
        }
        cut_off
    }
}

/// Stops, with ten seconds for what was begun.
impl Drop for Server {
    fn drop(&mut self) {
        self.end(Duration::from_secs(10));
    }
}

impl Clients {
    fn lock(&self) -> std::sync::MutexGuard<'_, ClientState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a client in, unless there are too many.
    fn enter(&self, socket: Arc<Socket>) -> Option<u64> {
        let mut state = self.lock();
        if state.stopping || state.sockets.len() >= MOST_CLIENTS {
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.sockets.insert(number, socket);
        Some(number)
    }
}

/// Takes a client out again, however its thread ends.
struct Present {
    clients: Arc<Clients>,
    number: u64,
}

impl Drop for Present {
    fn drop(&mut self) {
        self.clients.lock().sockets.remove(&self.number);
        self.clients.left.notify_all();
    }
}

/// What is served, and what clients need to be told of it.
type Service = (Exports, Option<Tls>);

fn welcome(fd: OwnedFd, clients: &Arc<Clients>, service: &Service) {
    let socket = Arc::new(Socket::new(fd));
    let Some(number) = clients.enter(Arc::clone(&socket)) else { return };
    let present = Present { clients: Arc::clone(clients), number };
    let (exports, tls) = service.clone();
    let serve = move || {
        let _present = present;
        // A client that breaks the protocol is hung up on; it alone would want to know.
        let _ = super::serve_as(socket.as_ref(), &exports, tls.as_ref());
    };
    // Without a thread the closure is dropped, and with it the connection.
    let _ = thread::Builder::new().name("nbd".to_owned()).spawn(serve);
}
