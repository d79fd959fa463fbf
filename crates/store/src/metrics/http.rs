//! Just enough of HTTP/1.1 to be asked for one page: a request's head in, an answer out.

/// Bytes of the longest head that is read.
pub(super) const LONGEST: usize = 8 << 10;

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The metrics; without them where only the head was asked for.
    Metrics {
        body: bool,
    },
    /// A page that says where they are.
    Index {
        body: bool,
    },
    BadRequest,
    /// A page of somebody else's, whose name was made to lead here.
    Forbidden,
    NotFound,
    /// Only `GET` and `HEAD` are.
    NotAllowed,
    TooSlow,
    TooLong,
    Busy,
    Version,
}

impl Answer {
    fn status(self) -> &'static str {
        match self {
            Answer::Metrics { .. } | Answer::Index { .. } => "200 OK",
            Answer::BadRequest => "400 Bad Request",
            Answer::Forbidden => "403 Forbidden",
            Answer::NotFound => "404 Not Found",
            Answer::NotAllowed => "405 Method Not Allowed",
            Answer::TooSlow => "408 Request Timeout",
            Answer::TooLong => "431 Request Header Fields Too Large",
            Answer::Busy => "503 Service Unavailable",
            Answer::Version => "505 HTTP Version Not Supported",
        }
    }

    /// The whole answer, after which the connection is closed. `metrics` are made only if they were asked for; where
    /// there are none just now, the client is told to come again.
    pub(super) fn bytes(self, metrics: impl FnOnce() -> Option<String>) -> Vec<u8> {
        if let Answer::Metrics { body } = self {
            return match metrics() {
                Some(text) => self.with(super::CONTENT_TYPE, &text, body),
                None => Answer::Busy.bytes_alone(),
            };
        }
        self.bytes_alone()
    }

    /// The same where no metrics are wanted.
    fn bytes_alone(self) -> Vec<u8> {
        let (text, body) = match self {
            Answer::Index { body } => ("/metrics".to_owned(), body),
            other => (other.status().to_owned(), true),
        };
        self.with("text/plain; charset=utf-8", &format!("{text}\n"), body)
    }

    fn with(self, kind: &str, text: &str, body: bool) -> Vec<u8> {
        let allow = if self == Answer::NotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
        let mut bytes = format!(
            "HTTP/1.1 {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}\
             X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
            self.status(),
            text.len()
        )
        .into_bytes();
        if body {
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    }
}

/// Where a request's head ends, once all of it is there.
pub(super) fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 2)
}

/// What to answer to a head, whose every line still has its end. On a port, a request must name this machine.
pub(super) fn answer(head: &[u8], on_port: bool) -> Answer {
    let Ok(head) = std::str::from_utf8(head) else { return Answer::BadRequest };
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Answer::BadRequest;
    };
    match version {
        "HTTP/1.1" | "HTTP/1.0" => {}
        other if other.starts_with("HTTP/") => return Answer::Version,
        _ => return Answer::BadRequest,
    }
    let mut host = None;
    for line in lines.filter(|line| !line.is_empty()) {
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let Some((name, value)) = line.split_once(':') else { return Answer::BadRequest };
        let wrong = |c: char| c.is_control() && c != '\t';
        if name.is_empty() || !name.chars().all(token) || value.contains(wrong) {
            return Answer::BadRequest;
        }
        if name.eq_ignore_ascii_case("host") && host.replace(value.trim()).is_some() {
            return Answer::BadRequest;
        }
    }
    match host {
        None if version == "HTTP/1.1" => return Answer::BadRequest,
        Some(host) if on_port && !names_this_machine(host) => return Answer::Forbidden,
        _ => {}
    }
    let body = match method {
        "GET" => true,
        "HEAD" => false,
        _ => return Answer::NotAllowed,
    };
    let path = target.split('?').next().unwrap_or_default();
    match path
        .strip_prefix("http://")
        .and_then(|rest| rest.find('/').map(|at| &rest[at..]))
        .unwrap_or(path)
    {
        "/metrics" => Answer::Metrics { body },
        "/" => Answer::Index { body },
        _ => Answer::NotFound,
    }
}

/// Whether a `Host` is this machine's own name for itself. A browser that a page has led here by a name of its own
/// says that name.
fn names_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Answer {
        let bytes = text.as_bytes();
        answer(&bytes[..end_of_head(bytes).expect("a whole head")], true)
    }

    #[test]
    fn metrics_are_at_their_path_for_who_asks_this_machine() {
        let whole = |host: &str| asked(&format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        for host in ["localhost", "LOCALHOST:9", "127.0.0.1:9477", "127.9.9.9", "[::1]:80"] {
            assert_eq!(whole(host), Answer::Metrics { body: true }, "{host}");
        }
        for host in ["evil.example", "evil.example:9477", "10.0.0.1", "[::2]", "", "127.0.0.1.evil"]
        {
            assert_eq!(whole(host), Answer::Forbidden, "{host}");
        }
        assert_eq!(asked("HEAD /metrics?x=1 HTTP/1.0\r\n\r\n"), Answer::Metrics { body: false });
        assert_eq!(asked("GET / HTTP/1.0\r\n\r\n"), Answer::Index { body: true });
        assert_eq!(asked("GET /metrics/ HTTP/1.0\r\n\r\n"), Answer::NotFound);
        let absolute = "GET http://localhost:1/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert_eq!(asked(absolute), Answer::Metrics { body: true });
    }

    #[test]
    fn what_is_no_request_is_told_so() {
        assert_eq!(asked("POST /metrics HTTP/1.0\r\n\r\n"), Answer::NotAllowed);
        assert_eq!(asked("GET /metrics HTTP/2.0\r\n\r\n"), Answer::Version);
        for bad in [
            "\r\n\r\n",
            "GET /metrics\r\n\r\n",
            "GET  /metrics HTTP/1.1\r\n\r\n",
            "GET /metrics HTTP/1.1\r\n\r\n",
            "GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
            "GET /metrics HTTP/1.0\r\nno colon\r\n\r\n",
            "GET /metrics HTTP/1.0\r\nbad name: x\r\n\r\n",
            "GET /metrics HTTP/1.0\r\na: b\nc: d\r\n\r\n",
            "GET /metrics FTP/1.0\r\n\r\n",
        ] {
            assert_eq!(asked(bad), Answer::BadRequest, "{bad:?}");
        }
        assert_eq!(answer(b"GET /\xff HTTP/1.0\r\n", true), Answer::BadRequest);
    }

    #[test]
    fn an_answer_has_the_length_it_says_and_a_head_alone_has_no_body() {
        let text = String::from_utf8(Answer::Metrics { body: true }.bytes(|| Some("abc\n".into())))
            .unwrap();
        assert!(
            text.contains("Content-Length: 4\r\n") && text.ends_with("\r\n\r\nabc\n"),
            "{text}"
        );
        let head =
            String::from_utf8(Answer::Metrics { body: false }.bytes(|| Some("abc\n".into())))
                .unwrap();
        assert!(
            head.contains("Content-Length: 4\r\n") && head.ends_with("close\r\n\r\n"),
            "{head}"
        );
        let refused = String::from_utf8(Answer::NotAllowed.bytes(|| unreachable!())).unwrap();
        assert!(refused.contains("Allow: GET, HEAD\r\n"), "{refused}");
    }
}
