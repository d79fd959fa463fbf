//! One request and its answer: time limits, redirects, bounded bodies, and trying again.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use ureq::http::{self, HeaderMap, Method, StatusCode, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, SendBody};

use crate::RegistryError;
use crate::content::{Content, Part};

/// Redirects that are followed for one request.
const MOST_REDIRECTS: u32 = 5;
/// What is read of an answer that is an error.
const ERROR_TEXT: u64 = 8 << 10;
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// Bytes in a second below which an upload counts as stuck.
const SLOWEST_UPLOAD: u64 = 16 << 10;

/// How patient to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// For a connection.
    pub connect: Duration,
    /// For the first byte of an answer, and for each further one.
    pub silence: Duration,
    /// How often something is tried.
    pub attempts: u32,
    /// The pause after the first try; it doubles, and up to half of it is left out at random.
    pub pause: Duration,
    /// Ends everything early.
    pub stop: Stop,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            attempts: 6,
            pause: Duration::from_millis(200),
            stop: Stop::default(),
        }
    }
}

/// Ends pauses and transfers early, for good.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// Nothing is begun any more.
    pub fn stop(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Whether somebody wants an end.
    pub fn is_set(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits that long, unless it is to end: then true.
    pub fn wait(&self, time: Duration) -> bool {
        let stopped = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.1.wait_timeout_while(stopped, time, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// What is sent along.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Payload<'a> {
    /// Bytes in memory.
    Bytes(&'a [u8]),
    /// A part of what a file holds.
    Part { content: &'a Content, at: u64, len: u64 },
}

/// A request, which can be sent again and again.
#[derive(Debug, Clone)]
pub(crate) struct Request<'a> {
    pub(crate) act: &'static str,
    pub(crate) method: Method,
    pub(crate) url: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) payload: Option<Payload<'a>>,
}

impl<'a> Request<'a> {
    pub(crate) fn new(act: &'static str, method: Method, url: impl Into<String>) -> Request<'a> {
        Request { act, method, url: url.into(), headers: Vec::new(), payload: None }
    }

    pub(crate) fn get(url: impl Into<String>) -> Request<'a> {
        Request::new("get", Method::GET, url)
    }

    #[must_use]
    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Request<'a> {
        self.headers.push((name, value.into()));
        self
    }

    #[must_use]
    pub(crate) fn payload(mut self, payload: Payload<'a>) -> Request<'a> {
        self.payload = Some(payload);
        self
    }
}

/// An answer whose body was not read yet.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) url: String,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Body,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// All of the body, which may have up to `most` bytes.
    pub(crate) fn bytes(self, most: u64) -> Result<Vec<u8>, RegistryError> {
        let url = shown(&self.url);
        let mut bytes = Vec::new();
        let mut reader = self.body.into_with_config().limit(u64::MAX).reader().take(most + 1);
        reader.read_to_end(&mut bytes).map_err(|source| unreachable("get", &url, source))?;
        if bytes.len() as u64 > most {
            let rule = format!("its answer has more than {most} bytes");
            return Err(RegistryError::Protocol { url, rule, passing: false });
        }
        Ok(bytes)
    }

    /// The body, to be read as it comes.
    pub(crate) fn into_reader(self) -> impl Read + Send + 'static {
        self.body.into_with_config().limit(u64::MAX).reader()
    }

    /// An answer that says no.
    pub(crate) fn refused(self, act: &'static str) -> RegistryError {
        let status = self.status.as_u16();
        let pause = self.header("retry-after").and_then(|text| text.trim().parse().ok());
        let pause = pause.map(Duration::from_secs);
        let url = shown(&self.url);
        let mut text = Vec::new();
        // What it says is welcome, and not needed.
        let mut reader = self.into_reader().take(ERROR_TEXT);
        let _ = reader.read_to_end(&mut text);
        RegistryError::Status { act, url, status, said: said(&text), pause }
    }
}

/// What a registry says in an error, in one line.
pub fn said(text: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(Errors { errors }) = serde_json::from_slice(text) else { return String::new() };
    let Some(One { code, message }) = errors.into_iter().next() else { return String::new() };
    let text = if message.is_empty() { code } else { message };
    let clean = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter });
    let text: String = clean.take(200).collect();
    if text.trim().is_empty() { String::new() } else { format!(" ({})", text.trim()) }
}

/// A URL without what may be secret: the query of a signed one is.
pub(crate) fn shown(url: &str) -> String {
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = plain.split_once("://").unwrap_or(("", plain));
    let rest = match rest.split_once('/') {
        Some((authority, path)) => {
            format!("{}/{path}", authority.rsplit('@').next().unwrap_or_default())
        }
        None => rest.rsplit('@').next().unwrap_or_default().to_owned(),
    };
    let text = if scheme.is_empty() { rest } else { format!("{scheme}://{rest}") };
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(300).collect()
}

pub(crate) fn unreachable(act: &'static str, url: &str, source: io::Error) -> RegistryError {
    RegistryError::Unreachable { act, url: shown(url), source }
}

/// Scheme and authority of a URL.
pub(crate) fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((uri.scheme_str()?.to_ascii_lowercase(), uri.authority()?.as_str().to_ascii_lowercase()))
}

/// Where a `Location` leads to from `base`.
pub fn resolve(base: &str, location: &str) -> Option<String> {
    let location = location.split('#').next().unwrap_or_default();
    if location.is_empty() || location.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return None;
    }
    let (scheme, authority) = origin(base)?;
    let lower = location.to_ascii_lowercase();
    let url = if lower.starts_with("http://") || lower.starts_with("https://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.split(['/', '?']).next().is_some_and(|first| first.contains(':')) {
        return None;
    } else {
        let base: Uri = base.parse().ok()?;
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    // A name and a password in a URL would go to whoever wrote it.
    let (_, authority) = origin(&url)?;
    (!authority.contains('@')).then_some(url)
}

/// Sends requests; connections are kept for the next one.
#[derive(Debug)]
pub(crate) struct Http {
    agent: Agent,
    pub(crate) options: Options,
}

impl Http {
    /// `secure` where TLS will be spoken: then the system's certificates are read.
    pub(crate) fn new(options: Options, secure: bool) -> Result<Http, RegistryError> {
        let mut tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
        if secure {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                return Err(RegistryError::Unsupported {
                    what: "TLS".to_owned(),
                    why: "this machine has no certificates of authorities; install ca-certificates"
                        .to_owned(),
                });
            }
            let roots = found.certs.iter().map(|cert| Certificate::from_der(cert).to_owned());
            tls = tls.root_certs(RootCerts::from(roots.collect::<Vec<_>>()));
        }
        let agent = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(options.connect))
            .timeout_connect(Some(options.connect))
            .timeout_recv_response(Some(options.silence))
            .timeout_per_read(Some(options.silence))
            .timeout_per_write(Some(options.silence))
            .max_idle_connections_per_host(8)
            .build()
            .new_agent();
        Ok(Http { agent, options })
    }

    /// Sends once. Redirects of what has no payload are followed, without `authorization` to another server.
    pub(crate) fn send(
        &self,
        request: &Request<'_>,
        authorization: Option<&str>,
    ) -> Result<Answer, RegistryError> {
        let start = origin(&request.url);
        let mut url = request.url.clone();
        let mut redirects = 0;
        loop {
            let is_home = origin(&url) == start;
            let answer = self.exchange(request, &url, authorization.filter(|_| is_home))?;
            if !answer.status.is_redirection() || request.payload.is_some() {
                return Ok(answer);
            }
            let wrong = |rule: &str| RegistryError::Protocol {
                url: shown(&url),
                rule: rule.to_owned(),
                passing: false,
            };
            let target = answer.header("location").and_then(|location| resolve(&url, location));
            let target = target.ok_or_else(|| wrong("it redirects to nowhere"))?;
            redirects += 1;
            if redirects > MOST_REDIRECTS {
                return Err(wrong("it redirects again and again"));
            }
            if url.starts_with("https:") && !target.to_ascii_lowercase().starts_with("https:") {
                return Err(wrong("it redirects from TLS to plain HTTP"));
            }
            url = target;
        }
    }

    fn exchange(
        &self,
        request: &Request<'_>,
        url: &str,
        authorization: Option<&str>,
    ) -> Result<Answer, RegistryError> {
        let act = request.act;
        let failed = |error| unreachable(act, url, as_io(error));
        let mut builder = http::Request::builder().method(request.method.clone()).uri(url);
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        if let Some(authorization) = authorization {
            builder = builder.header("authorization", authorization);
        }
        let wrong = |error: http::Error| {
            unreachable(act, url, io::Error::new(io::ErrorKind::InvalidInput, error))
        };
        let response = match request.payload {
            None => self.agent.run(builder.body(SendBody::none()).map_err(wrong)?),
            Some(payload) => {
                let (len, mut reader) = payload.reader();
                let request = builder
                    .header("content-length", len)
                    .body(SendBody::from_reader(&mut reader))
                    .map_err(wrong)?;
                let time = self.options.silence + Duration::from_secs(len / SLOWEST_UPLOAD);
                let request =
                    self.agent.configure_request(request).timeout_send_body(Some(time)).build();
                self.agent.run(request)
            }
        };
        let (parts, body) = response.map_err(failed)?.into_parts();
        Ok(Answer { url: url.to_owned(), status: parts.status, headers: parts.headers, body })
    }

    /// Tries until it succeeds, fails for good, or was tried often enough.
    pub(crate) fn persist<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        self.persist_in_steps(|_| attempt())
    }

    /// Like [`persist`](Http::persist), for what goes on where it broke off: an attempt that got on, and says so,
    /// does not count.
    pub(crate) fn persist_in_steps<T>(
        &self,
        mut attempt: impl FnMut(&mut bool) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut tries = 0;
        loop {
            if self.options.stop.is_set() {
                return Err(RegistryError::Stopped);
            }
            let mut got_on = false;
            let error = match attempt(&mut got_on) {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            tries = if got_on { 1 } else { tries + 1 };
            if !error.is_passing() || tries >= self.options.attempts {
                return Err(error);
            }
            let asked = match &error {
                RegistryError::Status { pause, .. } => pause.unwrap_or_default(),
                _ => Duration::ZERO,
            };
            let pause = backoff(self.options.pause, tries, random()).max(asked.min(LONGEST_PAUSE));
            if self.options.stop.wait(pause) {
                return Err(RegistryError::Stopped);
            }
        }
    }
}

/// The pause after that many tries; `random` decides how much of its second half is left out.
fn backoff(first: Duration, tries: u32, random: u64) -> Duration {
    let whole = first.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
    let half = whole / 2;
    half + half * u32::try_from(random % 1024).unwrap_or(0) / 1024
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn as_io(error: ureq::Error) -> io::Error {
    match error {
        ureq::Error::Io(error) => error,
        ureq::Error::Timeout(which) => {
            io::Error::new(io::ErrorKind::TimedOut, format!("nothing came in time ({which})"))
        }
        ureq::Error::HostNotFound => {
            io::Error::new(io::ErrorKind::NotFound, "nobody knows that host")
        }
        ureq::Error::BadUri(text) => io::Error::new(io::ErrorKind::InvalidInput, text),
        other => io::Error::other(other),
    }
}

impl Payload<'_> {
    fn reader(&self) -> (u64, PayloadReader<'_>) {
        match *self {
            Payload::Bytes(bytes) => (bytes.len() as u64, PayloadReader::Bytes(bytes)),
            Payload::Part { content, at, len } => (len, PayloadReader::Part(content.part(at, len))),
        }
    }
}

enum PayloadReader<'a> {
    Bytes(&'a [u8]),
    Part(Part<'a>),
}

impl Read for PayloadReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            PayloadReader::Bytes(bytes) => bytes.read(buffer),
            PayloadReader::Part(part) => part.read(buffer),
        }
    }
}

/// Time until which something holds.
pub(crate) fn until(life: Duration) -> Instant {
    // Asked for again a little early, for the answer travels too.
    Instant::now() + life.mul_f32(0.9)
}

/// `text` as a value in a query.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_lead_where_they_say() {
        let base = "https://r.x:5/v2/a/blobs/uploads/?x=1";
        for (location, target) in [
            ("https://s.x/b?sig=1", Some("https://s.x/b?sig=1")),
            ("/v2/a/b?state=2", Some("https://r.x:5/v2/a/b?state=2")),
            ("//s.x/b", Some("https://s.x/b")),
            ("b?c", Some("https://r.x:5/v2/a/blobs/uploads/b?c")),
            ("ftp://s.x/b", None),
            ("javascript:x", None),
            ("https://user:pw@s.x/b", None),
            ("", None),
            ("/a b", None),
            ("http://", None),
        ] {
            assert_eq!(resolve(base, location).as_deref(), target, "{location}");
        }
    }

    #[test]
    fn what_is_shown_of_a_url_is_no_secret() {
        assert_eq!(shown("https://u:p@s.x/b/c?sig=secret#x"), "https://s.x/b/c");
        assert_eq!(shown("http://s.x"), "http://s.x");
    }

    #[test]
    fn pauses_double_up_to_a_limit_and_differ() {
        let first = Duration::from_millis(200);
        assert_eq!(backoff(first, 1, 0), Duration::from_millis(100));
        assert!(backoff(first, 1, 1023) < first);
        assert_eq!(backoff(first, 3, 0), Duration::from_millis(400));
        assert_eq!(backoff(first, 40, 0), LONGEST_PAUSE / 2);
    }

    #[test]
    fn a_registrys_words_are_one_clean_line() {
        let text = br#"{"errors":[{"code":"DENIED","message":"no\n\u001b[31mway"}]}"#;
        assert_eq!(said(text), " (no  [31mway)");
        assert_eq!(said(br#"{"errors":[{"code":"DENIED"}]}"#), " (DENIED)");
        assert_eq!(said(b"<html>"), "");
    }
}
