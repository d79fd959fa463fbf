//! What an image is called: `HOST/REPOSITORY:TAG@DIGEST`, as docker writes it.

use std::fmt;
use std::str::FromStr;

use crate::Digest;

/// The registry that names without a host mean.
const DEFAULT_HOST: &str = "docker.io";
/// Where that one listens.
const DEFAULT_ADDRESS: &str = "registry-1.docker.io";
/// The longest name anybody accepts.
const LONGEST: usize = 255;

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not an image of a registry: {rule}; write HOST/REPOSITORY:TAG, such as localhost:5000/disks/root:1"
)]
pub struct ParseReferenceError {
    text: String,
    rule: &'static str,
}

impl Reference {
    /// An image by its parts, checked as if they had been written in one.
    pub fn new(host: &str, repository: &str, tag: &str) -> Result<Reference, ParseReferenceError> {
        format!("{host}/{repository}:{tag}").parse()
    }

    /// The registry, as people write it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The registry's address: a host, perhaps with a port.
    pub fn address(&self) -> &str {
        if self.host == DEFAULT_HOST { DEFAULT_ADDRESS } else { &self.host }
    }

    /// What the registry calls the image's folder.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` where neither a tag nor a digest was written.
    pub fn tag(&self) -> Option<&str> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag),
            (None, None) => Some("latest"),
            (None, Some(_)) => None,
        }
    }

    /// The digest of the manifest, if it was written.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What to ask the registry for: the digest, or else the tag.
    pub fn selector(&self) -> String {
        match &self.digest {
            Some(digest) => digest.to_string(),
            None => self.tag().unwrap_or("latest").to_owned(),
        }
    }

    /// The very same image, whatever its tag will name tomorrow.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Reference {
        Reference { digest: Some(digest), ..self.clone() }
    }

    /// Whether the registry is on this machine, where nothing listens in.
    pub fn is_loopback(&self) -> bool {
        let host = match self.address().strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.address().split(':').next().unwrap_or_default(),
        };
        host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

/// The full form, which reads back as itself.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = self.tag() {
            write!(f, ":{tag}")?;
        }
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Reference, ParseReferenceError> {
        let wrong = |rule| ParseReferenceError { text: text.chars().take(300).collect(), rule };
        if text.len() > 4 * LONGEST {
            return Err(wrong("it is too long"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|_| wrong("its digest is none"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon before the last slash belongs to a port.
        let name_end = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_end..].split_once(':') {
            Some((last, tag)) => (&rest[..name_end + last.len()], Some(tag)),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong("its tag has up to 128 letters, digits, `_`, `.` and `-`"));
        }
        let (host, path) = match name.split_once('/') {
            Some((host, path))
                if host.contains(['.', ':'])
                    || host == "localhost"
                    || host.starts_with('[')
                    || host.chars().any(|letter| letter.is_ascii_uppercase()) =>
            {
                (host, path.to_owned())
            }
            Some(_) => (DEFAULT_HOST, name.to_owned()),
            None => (DEFAULT_HOST, format!("library/{name}")),
        };
        if !is_host(host) {
            return Err(wrong("its host is none"));
        }
        if path.len() > LONGEST || !path.split('/').all(is_component) {
            return Err(wrong(
                "its name has lower-case letters, digits, and `.`, `_` or `-` between them",
            ));
        }
        let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
        let tag = tag.map(str::to_owned);
        Ok(Reference { host: host.to_owned(), repository: path, tag, digest })
    }
}

fn is_tag(tag: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&tag.len())
        && tag.bytes().next().is_some_and(letter)
        && tag.bytes().all(|byte| letter(byte) || byte == b'.' || byte == b'-')
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) => (name, port.strip_prefix(':')),
            None => return false,
        },
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let is_number = host.starts_with('[');
    let allowed = |byte: u8| {
        if is_number {
            byte.is_ascii_hexdigit() || byte == b':' || byte == b'.'
        } else {
            byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.'
        }
    };
    let ends = [name.bytes().next(), name.bytes().last()];
    let is_end =
        |byte: &Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || is_number);
    ends.iter().all(is_end)
        && name.len() <= LONGEST
        && name.bytes().all(allowed)
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Words of lower-case letters and digits, with `.`, `_`, `__` or dashes between them.
fn is_component(part: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends =
        bytes.first().copied().is_some_and(letter) && bytes.last().copied().is_some_and(letter);
    let separators = bytes.split(|byte| letter(*byte)).filter(|between| !between.is_empty());
    let mut separators = separators;
    ends && separators.all(|between| {
        matches!(between, b"." | b"_" | b"__") || between.iter().all(|byte| *byte == b'-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_docker_takes_them_for() {
        for (text, full) in [
            ("ubuntu", "docker.io/library/ubuntu:latest"),
            ("a/b", "docker.io/a/b:latest"),
            ("index.docker.io/a/b:1", "docker.io/a/b:1"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b/c:v1.2", "localhost:5000/a/b/c:v1.2"),
            ("[::1]:5000/a:1", "[::1]:5000/a:1"),
            ("quay.io/x__y/z-_.w:1", ""),
            ("quay.io/x__y/z--w:1", "quay.io/x__y/z--w:1"),
        ] {
            let read = text.parse::<Reference>().map(|found| found.to_string());
            if full.is_empty() {
                assert!(read.is_err(), "{text}");
            } else {
                assert_eq!(read.as_deref(), Ok(full), "{text}");
                assert_eq!(
                    full.parse::<Reference>().map(|again| again.to_string()).as_deref(),
                    Ok(full)
                );
            }
        }
    }

    #[test]
    fn a_digest_needs_no_tag() {
        let text = format!("h.x/a@sha256:{}", "0".repeat(64));
        let found: Reference = text.parse().unwrap();
        assert_eq!((found.tag(), found.to_string()), (None, text.clone()));
        assert_eq!(found.selector(), text.split_once('@').unwrap().1);
    }

    #[test]
    fn what_names_no_image_is_refused_with_the_rule() {
        for text in [
            "",
            "/",
            "A",
            "a b",
            "h.x/",
            "h.x/A",
            "h.x/a:",
            "h.x/a:-",
            "h.x/a@sha256:1",
            "h.x:0/a",
            "h.x:99999/a",
            "[::1/a",
            "../a",
            "h.x/../a",
            "h.x/a//b",
            "-/a",
            "user@h.x/a",
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains("is not an image"), "{text}: {error}");
        }
    }

    #[test]
    fn this_machine_is_known_by_its_names() {
        for text in ["localhost/a", "localhost:1/a", "127.0.0.1:5/a", "127.8.0.1:5/a", "[::1]:5/a"]
        {
            assert!(text.parse::<Reference>().unwrap().is_loopback(), "{text}");
        }
        for text in ["ubuntu", "localhost.example/a", "10.0.0.1/a", "127.0.0.1.example/a"] {
            assert!(!text.parse::<Reference>().unwrap().is_loopback(), "{text}");
        }
    }
}
