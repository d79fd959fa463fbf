//! What stands between a client and its registry, and does to what passes what networks do.

use std::collections::BTreeSet;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// A request as the proxy saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `GET`.
    pub method: String,
    /// With its query.
    pub path: String,
    /// Of `Range`, or empty.
    pub range: String,
    /// Of `Authorization`, or empty.
    pub authorization: String,
    /// How many requests came before it.
    pub number: usize,
    /// Bytes of the answer's body that were passed on.
    pub sent: u64,
}

impl Seen {
    /// Whether it asks for bytes of a blob.
    pub fn is_blob(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/sha256:")
    }
}

/// What to do to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Answers this status itself.
    Status(u16),
    /// Sends this many bytes of the body and hangs up.
    Cut(usize),
    /// Flips a bit of this byte of the body.
    Flip(usize),
    /// Hides the range from the registry.
    NoRange,
    /// Sends the client elsewhere.
    Redirect(String),
    /// Says nothing until the proxy goes.
    Silence,
}

/// Tokens that the proxy wants to see.
#[derive(Debug, Clone)]
pub struct Lock {
    /// How many requests a token is good for.
    pub uses: usize,
    /// What the token server wants as basic authentication; anything, if empty.
    pub basic: String,
}

type Decide = dyn Fn(&Seen) -> Fault + Send + Sync;

struct Shared {
    upstream: String,
    address: String,
    decide: Box<Decide>,
    lock: Option<Lock>,
    /// Bytes in a second, for all together.
    rate: Option<u64>,
    /// How long each answer takes to begin.
    delay: Duration,
    free_at: Mutex<Instant>,
    seen: Mutex<Vec<Seen>>,
    tokens: Mutex<Vec<usize>>,
    /// Connections, until the proxy ends.
    open: Mutex<Option<Vec<TcpStream>>>,
}

/// Listens on a port of its own.
pub struct Proxy {
    shared: Arc<Shared>,
    accepting: Option<thread::JoinHandle<()>>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("address", &self.shared.address).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Passes on what `decide` does not break.
    pub fn start(upstream: &str, decide: impl Fn(&Seen) -> Fault + Send + Sync + 'static) -> Proxy {
        Proxy::with(upstream, None, None, Duration::ZERO, decide)
    }

    /// Wants tokens, which it gives out itself.
    pub fn locked(
        upstream: &str,
        lock: Lock,
        decide: impl Fn(&Seen) -> Fault + Send + Sync + 'static,
    ) -> Proxy {
        Proxy::with(upstream, Some(lock), None, Duration::ZERO, decide)
    }

    /// Passes on so many bytes in a second, and begins each answer so much later.
    pub fn throttled(upstream: &str, rate: u64, delay: Duration) -> Proxy {
        Proxy::with(upstream, None, Some(rate), delay, |_| Fault::None)
    }

    fn with(
        upstream: &str,
        lock: Option<Lock>,
        rate: Option<u64>,
        delay: Duration,
        decide: impl Fn(&Seen) -> Fault + Send + Sync + 'static,
    ) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            address: listener.local_addr().unwrap().to_string(),
            decide: Box::new(decide),
            lock,
            rate,
            delay,
            free_at: Mutex::new(Instant::now()),
            seen: Mutex::default(),
            tokens: Mutex::default(),
            open: Mutex::new(Some(Vec::new())),
        });
        let own = Arc::clone(&shared);
        let accepting = thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(copy) = client.try_clone() else { return };
                let mut open = own.open.lock().unwrap();
                // The last one only wakes us.
                let Some(open) = open.as_mut() else { return };
                open.push(copy);
                let shared = Arc::clone(&own);
                thread::spawn(move || {
                    // Who breaks off here is a client, or the proxy itself on purpose.
                    let _ = attend(&client, &shared);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        Proxy { shared, accepting: Some(accepting) }
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.shared.address
    }

    /// What was asked so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Bytes of blobs that were passed on.
    pub fn blob_bytes(&self) -> u64 {
        self.seen().iter().filter(|seen| seen.is_blob()).map(|seen| seen.sent).sum()
    }

    /// The different ranges of blobs that were asked for.
    pub fn ranges(&self) -> BTreeSet<String> {
        self.seen().into_iter().filter(Seen::is_blob).map(|seen| seen.range).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for client in self.shared.open.lock().unwrap().take().into_iter().flatten() {
            // It may have hung up.
            let _ = client.shutdown(Shutdown::Both);
        }
        let woken = TcpStream::connect(&self.shared.address);
        if let (Ok(_), Some(accepting)) = (woken, self.accepting.take()) {
            let _ = accepting.join();
        }
    }
}

/// A request or an answer without its body.
struct Head {
    lines: Vec<String>,
}

impl Head {
    fn read(from: &mut impl io::BufRead) -> io::Result<Option<Head>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if from.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                return Ok(Some(Head { lines }));
            }
            lines.push(line);
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.lines[1..].iter().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn without(&self, names: &[&str]) -> String {
        let keep = |line: &&String| {
            let name = line.split(':').next().unwrap_or_default();
            !names.iter().any(|other| name.eq_ignore_ascii_case(other))
        };
        let rest = self.lines[1..].iter().filter(keep).map(|line| format!("{line}\r\n"));
        format!("{}\r\n{}", self.lines[0], rest.collect::<String>())
    }
}

fn attend(client: &TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client.try_clone()?);
    let mut writer = client.try_clone()?;
    while let Some(head) = Head::read(&mut reader)? {
        let len = head.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut body = vec![0; len];
        reader.read_exact(&mut body)?;
        let mut words = head.lines[0].split(' ').map(str::to_owned);
        let text = |name: &str| head.get(name).unwrap_or_default().to_owned();
        let seen = {
            let mut all = shared.seen.lock().unwrap();
            let seen = Seen {
                method: words.next().unwrap_or_default(),
                path: words.next().unwrap_or_default(),
                range: text("range"),
                authorization: text("authorization"),
                number: all.len(),
                sent: 0,
            };
            all.push(seen.clone());
            seen
        };
        if let Some(answer) = shared.unlocked(&seen) {
            writer.write_all(answer.as_bytes())?;
            continue;
        }
        let fault = (shared.decide)(&seen);
        match &fault {
            Fault::Status(status) => {
                let text = r#"{"errors":[{"code":"FAULT","message":"as was wanted"}]}"#;
                let len = text.len();
                write!(
                    writer,
                    "HTTP/1.1 {status} Fault\r\nretry-after: 0\r\ncontent-length: {len}\r\n\r\n{text}"
                )?;
                continue;
            }
            Fault::Redirect(url) => {
                write!(
                    writer,
                    "HTTP/1.1 307 There\r\nlocation: {url}\r\ncontent-length: 0\r\n\r\n"
                )?;
                continue;
            }
            Fault::Silence => {
                // Until somebody hangs up.
                let _ = io::copy(&mut reader, &mut io::sink());
                return Ok(());
            }
            _ => {}
        }
        let hidden: &[&str] = match fault {
            Fault::NoRange => &["connection", "range", "authorization"],
            _ if shared.lock.is_some() => &["connection", "authorization"],
            _ => &["connection"],
        };
        let mut upstream = TcpStream::connect(&shared.upstream)?;
        write!(upstream, "{}connection: close\r\n\r\n", head.without(hidden))?;
        upstream.write_all(&body)?;
        let mut upstream = BufReader::new(upstream);
        let Some(answer) = Head::read(&mut upstream)? else { return Ok(()) };
        thread::sleep(shared.delay);
        let length = answer.get("content-length").and_then(|text| text.parse::<u64>().ok());
        let has_body = seen.method != "HEAD" && length != Some(0);
        let Some(length) = length else {
            // Answers without a length have no body here, or end with the connection.
            write!(writer, "{}connection: close\r\n\r\n", answer.without(&["connection"]))?;
            io::copy(&mut upstream, &mut writer)?;
            return writer.shutdown(Shutdown::Both);
        };
        write!(writer, "{}\r\n", answer.without(&["connection"]))?;
        if !has_body {
            continue;
        }
        let mut left = length;
        let mut at = 0;
        let mut piece = vec![0; 16 << 10];
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            let read = upstream.read(&mut piece[..most])?;
            if read == 0 {
                return Ok(());
            }
            let bytes = &mut piece[..read];
            match fault {
                Fault::Flip(byte) if (at..at + read).contains(&byte) => bytes[byte - at] ^= 0x10,
                Fault::Cut(end) if at + read >= end => {
                    writer.write_all(&bytes[..end - at])?;
                    return writer.shutdown(Shutdown::Both);
                }
                _ => {}
            }
            shared.pace(read as u64);
            // Before anybody can have them.
            shared.seen.lock().unwrap()[seen.number].sent += read as u64;
            writer.write_all(bytes)?;
            at += read;
            left -= read as u64;
        }
    }
    Ok(())
}

impl Shared {
    /// Waits for the turn of these bytes on the line.
    fn pace(&self, len: u64) {
        let Some(rate) = self.rate else { return };
        let turn = {
            let mut free_at = self.free_at.lock().unwrap();
            let time = Duration::from_nanos(len * 1_000_000_000 / rate);
            *free_at = (*free_at).max(Instant::now()) + time;
            *free_at
        };
        thread::sleep(turn.saturating_duration_since(Instant::now()));
    }

    /// What a locked proxy says itself: to whom has no token, and to whom wants one.
    fn unlocked(&self, seen: &Seen) -> Option<String> {
        let lock = self.lock.as_ref()?;
        let mut tokens = self.tokens.lock().unwrap();
        if seen.path.starts_with("/token") {
            if !lock.basic.is_empty() && seen.authorization != lock.basic {
                return Some("HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n".to_owned());
            }
            tokens.push(lock.uses);
            let text = format!(r#"{{"token":"t{}","expires_in":3600}}"#, tokens.len() - 1);
            let len = text.len();
            return Some(format!("HTTP/1.1 200 Yes\r\ncontent-length: {len}\r\n\r\n{text}"));
        }
        let token = seen.authorization.strip_prefix("Bearer t");
        let left = token.and_then(|token| tokens.get_mut(token.parse::<usize>().ok()?));
        if let Some(left) = left.filter(|left| **left > 0) {
            *left -= 1;
            return None;
        }
        let realm = format!("http://{}/token", self.address);
        Some(format!(
            "HTTP/1.1 401 No\r\nwww-authenticate: Bearer realm=\"{realm}\",service=\"test\"\r\ncontent-length: 0\r\n\r\n"
        ))
    }
}
