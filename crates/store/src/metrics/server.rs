//! [`MetricsServer`]: hands metrics to whoever asks on this machine.
//!
//! A client has a few seconds for its whole visit and a few kilobytes for its question, and only so many are served at
//! once: one that dawdles keeps nobody else waiting, and costs nothing once its time is over.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kiln_export::nbd::{Address, ListenError, Listener, ParseAddressError};
use rustix::event::{PollFd, PollFlags, poll};

use super::http::{Answer, LONGEST, answer, end_of_head};

/// Clients served at once.
const CLIENTS: usize = 8;
/// What a client has for its whole visit.
const VISIT: Duration = Duration::from_secs(5);

/// Serves metrics until it is dropped.
#[derive(Debug)]
pub struct MetricsServer {
    address: Address,
    /// Closed to end the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Listens, and asks `metrics` for the text whenever a client wants it; from several threads at once.
    pub fn start(
        address: &Address,
        metrics: impl Fn() -> String + Send + Sync + 'static,
    ) -> Result<MetricsServer, ListenError> {
        MetricsServer::with_visits_of(VISIT, address, metrics)
    }

    fn with_visits_of(
        visit: Duration,
        address: &Address,
        metrics: impl Fn() -> String + Send + Sync + 'static,
    ) -> Result<MetricsServer, ListenError> {
        if let Address::Tcp(wanted) = address
            && !wanted.ip().is_loopback()
        {
            let address = wanted.to_string();
            return Err(ParseAddressError::NotLoopback { address }.into());
        }
        let listener = Listener::bind(address)?;
        let address = listener.address().clone();
        let failed =
            |source| ListenError::Io { act: "listen on", address: address.to_string(), source };
        let (stop, stopped) = UnixStream::pair().map_err(failed)?;
        let on_port = matches!(address, Address::Tcp(_));
        let house = Arc::new(House { metrics: Box::new(metrics), visit, on_port, inside: AtomicUsize::new(0) });
        let thread = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || welcome(&listener, &stopped, &house))
            .map_err(failed)?;
        Ok(MetricsServer { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens, with the port that was found free.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // It fails only where it panicked, which was told already.
            let _ = thread.join();
        }
    }
}

struct House {
    metrics: Box<dyn Fn() -> String + Send + Sync>,
    visit: Duration,
    on_port: bool,
    inside: AtomicUsize,
}

/// One client's place, free again when this is dropped.
struct Place(Arc<House>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::AcqRel);
    }
}

fn welcome(listener: &Listener, stopped: &UnixStream, house: &Arc<House>) {
    loop {
        let mut both = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(stopped, PollFlags::IN),
        ];
        match poll(&mut both, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        if !both[1].revents().is_empty() {
            return;
        }
        let client = match listener.accept() {
            Ok(Some(client)) => client,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(%error, "a reader of metrics was not let in");
                // Out of descriptors, say: what is short now may not be for long.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let place = Place(Arc::clone(house));
        if house.inside.fetch_add(1, Ordering::AcqRel) >= CLIENTS {
            // Fits into the socket's buffer, or is lost with a client that was one too many.
            let _ = Stream::new(client, house).write_now(&Answer::Busy.bytes(String::new));
            continue;
        }
        let name = "metrics-client".to_owned();
        let visit = std::thread::Builder::new().name(name).spawn(move || {
            let mut stream = Stream::new(client, &place.0);
            if let Err(error) = serve(&mut stream, &place.0) {
                tracing::debug!(%error, "a reader of metrics left");
            }
        });
        if let Err(error) = visit {
            tracing::warn!(%error, "a reader of metrics was not served");
        }
    }
}

fn serve(stream: &mut Stream, house: &House) -> io::Result<()> {
    let until = Instant::now() + house.visit;
    let mut head = Vec::new();
    let what = loop {
        if let Some(end) = end_of_head(&head) {
            break answer(&head[..end], house.on_port);
        }
        if head.len() >= LONGEST {
            break Answer::TooLong;
        }
        let mut some = [0; 1024];
        let space = (LONGEST - head.len()).min(some.len());
        match stream.read_until(&mut some[..space], until) {
            Ok(0) => return Ok(()),
            Ok(len) => head.extend_from_slice(&some[..len]),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => break Answer::TooSlow,
            Err(error) => return Err(error),
        }
    };
    let bytes = what.bytes(|| (house.metrics)());
    stream.write_until(&bytes, until.max(Instant::now() + house.visit / 5))?;
    stream.finish(until);
    Ok(())
}

/// A connection whose every call ends in time.
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn new(client: OwnedFd, house: &House) -> Stream {
        match house.on_port {
            true => Stream::Tcp(client.into()),
            false => Stream::Unix(client.into()),
        }
    }

    /// Waits until something can be done, or time is up.
    fn wait(&self, what: PollFlags, until: Instant) -> io::Result<()> {
        let fd = match self {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
        };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = left.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
            match poll(&mut [PollFd::from_borrowed_fd(fd, what)], Some(&timeout)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn read_until(&mut self, bytes: &mut [u8], until: Instant) -> io::Result<usize> {
        self.wait(PollFlags::IN, until)?;
        match self {
            Stream::Unix(stream) => stream.read(bytes),
            Stream::Tcp(stream) => stream.read(bytes),
        }
    }

    /// What can be written at once.
    fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => {
                stream.set_nonblocking(true)?;
                stream.write(bytes)
            }
            Stream::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                stream.write(bytes)
            }
        }
    }

    fn write_until(&mut self, mut bytes: &[u8], until: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            self.wait(PollFlags::OUT, until)?;
            match self.write_now(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => bytes = &bytes[len..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends the connection so that the answer arrives: closing one with unread bytes would take it back.
    fn finish(&mut self, until: Instant) {
        let _ = match self {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
        };
        let mut rest = [0; 1024];
        for _ in 0..64 {
            match self.read_until(&mut rest, until) {
                Ok(len) if len > 0 => {}
                _ => return,
            }
        }
    }
}
