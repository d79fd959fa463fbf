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
use std::time::{Duration, Instant};

use kiln_export::nbd::{Address, ListenError, Listener, ParseAddressError, Reception};
use rustix::event::{PollFd, PollFlags, poll};

use super::http::{Answer, LONGEST, answer, end_of_head};

/// Clients served at once.
const CLIENTS: usize = 8;
/// What a client has for its whole visit.
const VISIT: Duration = Duration::from_secs(5);

/// Serves metrics until it is dropped.
#[derive(Debug)]
pub struct MetricsServer {
    reception: Reception,
}

impl MetricsServer {
    /// Listens, and asks `metrics` for the text whenever a client wants it; from several threads at once. Where there
    /// is none just now, clients are told to come again.
    pub fn start(
        address: &Address,
        metrics: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) -> Result<MetricsServer, ListenError> {
        MetricsServer::with_visits_of(VISIT, address, metrics)
    }

    fn with_visits_of(
        visit: Duration,
        address: &Address,
        metrics: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) -> Result<MetricsServer, ListenError> {
        if let Address::Tcp(wanted) = address
            && !wanted.ip().is_loopback()
        {
            let address = wanted.to_string();
            return Err(ParseAddressError::NotLoopback { address }.into());
        }
        let listener = Listener::bind(address)?;
        let on_port = matches!(address, Address::Tcp(_));
        let house = Arc::new(House {
            metrics: Box::new(metrics),
            visit,
            on_port,
            inside: AtomicUsize::new(0),
        });
        let reception =
            Reception::open(listener, "metrics", move |client| welcome(client, &house))?;
        Ok(MetricsServer { reception })
    }

    /// Where it listens, with the port that was found free.
    pub fn address(&self) -> &Address {
        self.reception.address()
    }
}

struct House {
    metrics: Box<dyn Fn() -> Option<String> + Send + Sync>,
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

fn welcome(client: OwnedFd, house: &Arc<House>) {
    let place = Place(Arc::clone(house));
    if house.inside.fetch_add(1, Ordering::AcqRel) >= CLIENTS {
        // Fits into the socket's buffer, or is lost with a client that was one too many.
        let _ = Stream::new(client, house).write_now(&Answer::Busy.bytes(|| None));
        return;
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A short path: that of a unix socket may have 107 bytes.
    fn place() -> (tempfile::TempDir, Address, PathBuf) {
        let folder = tempfile::Builder::new().prefix("kiln-metrics").tempdir_in("/tmp").unwrap();
        let path = folder.path().join("s");
        (folder, Address::Unix(path.clone()), path)
    }

    fn told(stream: &mut impl Read) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn asked(path: &PathBuf, request: &str) -> String {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        told(&mut stream)
    }

    /// A server whose clients are never too slow, however loaded the machine is.
    fn served(address: &Address, text: Option<&'static str>) -> MetricsServer {
        let metrics = move || text.map(str::to_owned);
        MetricsServer::with_visits_of(Duration::from_secs(600), address, metrics).unwrap()
    }

    const GET: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

    #[test]
    fn whoever_asks_on_this_machine_gets_the_metrics_and_the_path_goes_with_the_server() {
        let (_folder, address, path) = place();
        let server = served(&address, Some("a 1\n"));
        let told_unix = asked(&path, GET);
        assert!(told_unix.starts_with("HTTP/1.1 200 OK\r\n"), "{told_unix}");
        assert!(told_unix.contains("\r\nContent-Type: text/plain; version=0.0.4"), "{told_unix}");
        assert!(told_unix.ends_with("\r\n\r\na 1\n"), "{told_unix}");
        drop(server);
        assert!(!path.exists());

        let any = Address::Tcp(([127, 0, 0, 1], 0).into());
        let server = served(&any, Some("b 2\n"));
        let Address::Tcp(found) = server.address() else { panic!("not a port") };
        let mut stream = TcpStream::connect(found).unwrap();
        stream
            .write_all(format!("GET /metrics HTTP/1.1\r\nHost: {found}\r\n\r\n").as_bytes())
            .unwrap();
        assert!(told(&mut stream).ends_with("\r\n\r\nb 2\n"));
        let mut stream = TcpStream::connect(found).unwrap();
        stream.write_all(GET.replace("localhost", "evil.example").as_bytes()).unwrap();
        assert!(told(&mut stream).starts_with("HTTP/1.1 403 "));
    }

    #[test]
    fn other_machines_are_refused_before_anything_listens() {
        let everybody = Address::Tcp(([0, 0, 0, 0], 0).into());
        let error = MetricsServer::start(&everybody, || None).unwrap_err();
        assert!(matches!(error, ListenError::Address(_)), "{error}");
    }

    #[test]
    fn one_that_dawdles_keeps_nobody_waiting() {
        let (_folder, address, path) = place();
        let _server = served(&address, Some("a 1\n"));
        let mut slow = UnixStream::connect(&path).unwrap();
        slow.write_all(b"GET /metr").unwrap();
        assert!(asked(&path, GET).ends_with("a 1\n"));
        slow.write_all(&GET.as_bytes()[9..]).unwrap();
        assert!(told(&mut slow).ends_with("a 1\n"), "its time was not over");
    }

    #[test]
    fn one_whose_time_is_over_is_hung_up_on() {
        let visit = Duration::from_millis(1);
        let (_folder, address, path) = place();
        let _server =
            MetricsServer::with_visits_of(visit, &address, || Some("a 1\n".to_owned())).unwrap();
        let mut silent = UnixStream::connect(&path).unwrap();
        assert!(told(&mut silent).starts_with("HTTP/1.1 408 "));
        // And one that reads nothing of what does not fit into its socket: nobody holds the metrics for it any more.
        let (_folder, address, path) = place();
        let held = Arc::new(());
        let theirs = Arc::clone(&held);
        let much = move || {
            let _ = &theirs;
            Some("x".repeat(8 << 20))
        };
        let server = MetricsServer::with_visits_of(Duration::from_secs(1), &address, much).unwrap();
        let mut deaf = UnixStream::connect(&path).unwrap();
        // Fails where its time is over already; then too it was answered.
        let _ = deaf.write_all(GET.as_bytes());
        let mut first = [0; 4];
        deaf.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP");
        drop(server);
        while Arc::strong_count(&held) > 1 {
            std::thread::yield_now();
        }
        drop(deaf);
    }

    #[test]
    fn a_long_request_is_refused_and_what_is_no_request_is_told_so() {
        let (_folder, address, path) = place();
        let _server = served(&address, Some("a 1\n"));
        let long =
            format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: {}", "y".repeat(LONGEST));
        assert!(asked(&path, &long).starts_with("HTTP/1.1 431 "));
        assert!(asked(&path, "\x16\x03\x01\r\n\r\n").starts_with("HTTP/1.1 400 "));
        assert!(asked(&path, "DELETE /metrics HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 405 "));
        drop(UnixStream::connect(&path).unwrap());
        assert!(asked(&path, GET).ends_with("a 1\n"), "one that says nothing harms nobody");
        let (_folder, address, path) = place();
        let _server = served(&address, None);
        assert!(
            asked(&path, GET).starts_with("HTTP/1.1 503 "),
            "the pool cannot be asked just now"
        );
    }

    #[test]
    fn one_too_many_is_told_so_and_a_place_that_is_left_is_taken_again() {
        let (_folder, address, path) = place();
        let _server = served(&address, Some("a 1\n"));
        let waiting: Vec<_> = (0..CLIENTS).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let mut turned_away = UnixStream::connect(&path).unwrap();
        assert!(told(&mut turned_away).starts_with("HTTP/1.1 503 "));
        drop(waiting);
        // Their places become free when the server sees that they left.
        loop {
            let mut stream = UnixStream::connect(&path).unwrap();
            // Fails when it is turned away at once.
            let _ = stream.write_all(GET.as_bytes());
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text);
            if text.ends_with("a 1\n") {
                break;
            }
        }
    }
}
