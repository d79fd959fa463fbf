//! A registry's folder of blobs and manifests: asked for, fetched, and added to.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use ureq::http::{Method, StatusCode};

use crate::client::Client;
use crate::content::Content;
use crate::digest::Digester;
use crate::http::{Answer, Payload, Request, escaped, resolve, shown, unreachable};
use crate::manifest::{
    DOCKER_LIST, DOCKER_MANIFEST, LARGEST_MANIFEST, Manifest, OCI_INDEX, OCI_MANIFEST, choose,
};
use crate::{Access, Descriptor, Digest, ImageManifest, Platform, Reference, RegistryError};

/// Blobs up to this size are sent in one piece; of larger ones, pieces of it.
const PIECE: u64 = 32 << 20;

/// A repository. Calls can be made from many threads at once.
#[derive(Debug)]
pub struct Repository {
    pub(crate) client: Client,
    name: String,
}

/// A manifest as it was fetched.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// What it is called.
    pub digest: Digest,
    /// What is in it.
    pub manifest: Manifest,
}

/// Part of a blob, on its way.
pub(crate) struct Range {
    /// Where it starts; 0 where the registry knows no ranges and sends everything.
    pub(crate) at: u64,
    pub(crate) whole: bool,
    pub(crate) reader: Box<dyn Read + Send>,
    pub(crate) url: String,
}

/// How a blob got there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Already,
    /// It was in another repository of this registry.
    Mounted,
    /// It was sent.
    Sent,
}

impl Repository {
    /// The repository an image is in. Asks nobody yet.
    pub fn new(reference: &Reference, access: &Access) -> Result<Repository, RegistryError> {
        let client = Client::new(reference, access)?;
        Ok(Repository { client, name: reference.repository().to_owned() })
    }

    /// Where its blobs are, as an image's configuration says it.
    pub fn blobs_url(&self) -> String {
        self.client.url(&format!("{}/blobs", self.name))
    }

    fn pull_scope(&self) -> String {
        format!("repository:{}:pull", self.name)
    }

    fn push_scope(&self) -> String {
        format!("repository:{}:pull,push", self.name)
    }

    fn url(&self, kind: &str, what: &str) -> String {
        self.client.url(&format!("{}/{kind}/{what}", self.name))
    }

    fn missing(&self, what: impl std::fmt::Display) -> RegistryError {
        let host = self.client.host().to_owned();
        RegistryError::Missing { host, what: format!("{}: {what}", self.name) }
    }

    /// Turns an answer that says no into an error.
    fn expect(
        &self,
        answer: Answer,
        act: &'static str,
        what: &str,
    ) -> Result<Answer, RegistryError> {
        match answer.status.as_u16() {
            200..300 => Ok(answer),
            404 => Err(self.missing(what)),
            403 => {
                let host = self.client.host().to_owned();
                let what = format!("{}: {what}", self.name);
                let why = match answer.refused(act) {
                    RegistryError::Status { said, .. } if !said.is_empty() => {
                        said.trim().to_owned()
                    }
                    _ => format!("it is forbidden; `docker login {host}` as somebody who may"),
                };
                Err(RegistryError::Denied { host, act, what, why })
            }
            _ => Err(answer.refused(act)),
        }
    }

    /// Fetches a manifest by its tag or digest.
    pub fn manifest(&self, selector: &str) -> Result<Fetched, RegistryError> {
        let wanted: Option<Digest> = selector.parse().ok();
        let accept = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST].join(", ");
        let url = self.url("manifests", selector);
        self.client.http.persist(|| {
            let request = Request::get(&url).header("accept", &accept);
            let answer = self.client.call(&request, &self.pull_scope())?;
            let answer = self.expect(answer, "get", selector)?;
            let media_type = answer.header("content-type").unwrap_or_default().to_owned();
            let claimed = answer.header("docker-content-digest").and_then(|text| text.parse().ok());
            let bytes = answer.bytes(LARGEST_MANIFEST)?;
            let digest = Digest::of(&bytes);
            if let Some(wanted) = wanted.or(claimed).filter(|wanted| *wanted != digest) {
                let what = format!("the manifest {selector}");
                return Err(RegistryError::WrongBytes { what, wanted, found: digest });
            }
            let manifest = Manifest::parse(&bytes, &media_type).map_err(|rule| {
                RegistryError::Protocol { url: shown(&url), rule, passing: false }
            })?;
            Ok(Fetched { digest, manifest })
        })
    }

    /// Fetches the manifest of an image; of several, that for a machine.
    pub fn image(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<(Digest, ImageManifest), RegistryError> {
        let mut selector = reference.selector();
        // An index of indexes is allowed, and nobody makes one.
        for _ in 0..3 {
            let fetched = self.manifest(&selector)?;
            match fetched.manifest {
                Manifest::Image(image) => return Ok((fetched.digest, *image)),
                Manifest::Index(images) => match choose(&images, platform) {
                    Some(image) => selector = image.digest.to_string(),
                    None => {
                        let platforms = images.iter().filter_map(|image| image.platform.as_ref());
                        let names = platforms.map(|one| format!("{}/{}", one.os, one.architecture));
                        let names: Vec<String> = names.take(20).collect();
                        let (os, wanted) = (&platform.os, &platform.architecture);
                        let why = format!("it is for {}, not for {os}/{wanted}", names.join(", "));
                        let what = reference.to_string();
                        return Err(RegistryError::Unsupported { what, why });
                    }
                },
            }
        }
        let why = "it is an index of indexes of indexes".to_owned();
        Err(RegistryError::Unsupported { what: reference.to_string(), why })
    }

    /// How many bytes a blob has, if it is there.
    pub fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        let url = self.url("blobs", &digest.to_string());
        self.client.http.persist(|| {
            let request = Request::new("look for", Method::HEAD, &url);
            let answer = self.client.call(&request, &self.pull_scope())?;
            if answer.status == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            let answer = self.expect(answer, "look for", &digest.to_string())?;
            Ok(answer.header("content-length").and_then(|text| text.parse().ok()).or(Some(0)))
        })
    }

    /// Begins to fetch bytes of a blob; once, without trying again.
    pub(crate) fn begin_range(
        &self,
        blob: &Descriptor,
        at: u64,
        len: u64,
    ) -> Result<Range, RegistryError> {
        let url = self.url("blobs", &blob.digest.to_string());
        let last = at + len.max(1) - 1;
        let request = Request::get(&url).header("range", format!("bytes={at}-{last}"));
        let answer = self.client.call(&request, &self.pull_scope())?;
        let answer = self.expect(answer, "get", &blob.digest.to_string())?;
        let url = answer.url.clone();
        let wrong =
            |rule: String| RegistryError::Protocol { url: shown(&url), rule, passing: true };
        if answer.status == StatusCode::PARTIAL_CONTENT {
            let range = answer.header("content-range").unwrap_or_default();
            let (first, last, total) = content_range(range)
                .ok_or_else(|| wrong(format!("{range:?} is no range of content")))?;
            if first != at || last >= at + len || total.is_some_and(|total| total != blob.size) {
                return Err(wrong(format!(
                    "it sends bytes {range:?} instead of {len} at {at} of {}",
                    blob.size
                )));
            }
            let reader = Box::new(answer.into_reader().take(last - first + 1));
            return Ok(Range { at, whole: false, reader, url });
        }
        if answer.status != StatusCode::OK {
            return Err(answer.refused("get"));
        }
        let length = answer.header("content-length").and_then(|text| text.parse::<u64>().ok());
        if let Some(length) = length.filter(|length| *length != blob.size) {
            return Err(wrong(format!("a blob of {} bytes has {length} there", blob.size)));
        }
        let reader = Box::new(answer.into_reader().take(blob.size));
        Ok(Range { at: 0, whole: true, reader, url })
    }

    /// Fetches a whole blob, in one go, and checks it. `progress` hears how many bytes have come.
    pub fn pull(
        &self,
        blob: &Descriptor,
        mut out: impl Write + std::io::Seek,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), RegistryError> {
        let mut sum = Digester::default();
        let mut done = 0;
        let local = |source| RegistryError::Io {
            act: "write",
            path: blob.digest.to_string().into(),
            source,
        };
        self.client.http.persist_in_steps(|got_on| {
            if done == blob.size {
                return Ok(());
            }
            let mut range = self.begin_range(blob, done, blob.size - done)?;
            if range.whole {
                // It starts again where it cannot go on.
                (sum, done) = (Digester::default(), 0);
                out.seek(std::io::SeekFrom::Start(0)).map_err(local)?;
            }
            let mut buffer = vec![0; 128 << 10];
            while done < blob.size {
                if self.client.http.options.stop.is_set() {
                    return Err(RegistryError::Stopped);
                }
                let read = match range.reader.read(&mut buffer) {
                    Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
                    read => read,
                };
                let read = read.map_err(|source| unreachable("get", &range.url, source))?;
                out.write_all(&buffer[..read]).map_err(local)?;
                sum.update(&buffer[..read]);
                done += read as u64;
                *got_on = !range.whole;
                progress(done);
            }
            Ok(())
        })?;
        let found = sum.finish();
        if found != blob.digest {
            let what = format!("a blob of {}", self.name);
            return Err(RegistryError::WrongBytes { what, wanted: blob.digest, found });
        }
        Ok(())
    }

    /// Sends a blob from memory, unless it is there.
    pub fn push_bytes(&self, bytes: &[u8]) -> Result<(Digest, Pushed), RegistryError> {
        let digest = Digest::of(bytes);
        let pushed = self.push(&digest, bytes.len() as u64, None, &|at, len| {
            let range = at..at + len;
            let range =
                usize::try_from(range.start).unwrap_or(0)..usize::try_from(range.end).unwrap_or(0);
            Payload::Bytes(bytes.get(range).unwrap_or_default())
        })?;
        Ok((digest, pushed))
    }

    /// Sends a file whose digest is known, unless it is there, perhaps in the repository `mount_from`.
    pub fn push_file(
        &self,
        path: &Path,
        digest: &Digest,
        mount_from: Option<&str>,
    ) -> Result<Pushed, RegistryError> {
        self.push_content(&Content::of_file(path)?, digest, mount_from)
    }

    /// Sends a content whose digest is known, as [`push_file`](Repository::push_file) does.
    pub fn push_content(
        &self,
        content: &Content,
        digest: &Digest,
        mount_from: Option<&str>,
    ) -> Result<Pushed, RegistryError> {
        let piece = |at, len| Payload::Part { content, at, len };
        self.push(digest, content.size(), mount_from, &piece)
    }

    fn push<'a>(
        &self,
        digest: &Digest,
        len: u64,
        mount_from: Option<&str>,
        piece: &dyn Fn(u64, u64) -> Payload<'a>,
    ) -> Result<Pushed, RegistryError> {
        if self.blob_size(digest)?.is_some() {
            return Ok(Pushed::Already);
        }
        if let Some(from) = mount_from
            && self.mount(digest, from)?
        {
            return Ok(Pushed::Mounted);
        }
        // An upload that broke down is begun again: what it had is known to the registry alone.
        self.client.http.persist(|| {
            let mut place = self.begin_upload("")?.ok_or_else(|| RegistryError::Protocol {
                url: self.url("blobs", "uploads/"),
                rule: "it takes an upload without saying where to".to_owned(),
                passing: false,
            })?;
            let mut sent = 0;
            while len > PIECE && sent < len {
                if self.client.http.options.stop.is_set() {
                    return Err(RegistryError::Stopped);
                }
                let size = PIECE.min(len - sent);
                place = self.send_piece(&place, sent, size, piece(sent, size))?;
                sent += size;
            }
            let separator = if place.contains('?') { '&' } else { '?' };
            let url = format!("{place}{separator}digest={}", escaped(&digest.to_string()));
            let rest = piece(sent, len - sent);
            let request = Request::new("send", Method::PUT, url)
                .header("content-type", "application/octet-stream")
                .payload(rest);
            let answer = self.client.call(&request, &self.push_scope())?;
            self.expect(answer, "send", &digest.to_string())?;
            Ok(Pushed::Sent)
        })
    }

    /// Takes a blob over from another repository; `false` where that does not work.
    fn mount(&self, digest: &Digest, from: &str) -> Result<bool, RegistryError> {
        let query = format!("?mount={}&from={}", escaped(&digest.to_string()), escaped(from));
        let scope = format!("{} repository:{from}:pull", self.push_scope());
        let url = self.url("blobs", &format!("uploads/{query}"));
        let request = Request::new("mount", Method::POST, url).payload(Payload::Bytes(&[]));
        let answer = match self.client.call(&request, &scope) {
            // We may be allowed to write here, and not to read there.
            Err(RegistryError::Denied { .. }) => return Ok(false),
            answer => answer?,
        };
        match answer.status {
            StatusCode::CREATED => Ok(true),
            StatusCode::ACCEPTED => {
                // It began an upload instead, which nobody is going to use.
                let place = answer.header("location").and_then(|to| resolve(&answer.url, to));
                if let Some(place) = place {
                    let cancel = Request::new("cancel", Method::DELETE, place);
                    let _ = self.client.call(&cancel, &self.push_scope());
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    fn begin_upload(&self, query: &str) -> Result<Option<String>, RegistryError> {
        let url = self.url("blobs", &format!("uploads/{query}"));
        let request =
            Request::new("begin an upload to", Method::POST, url).payload(Payload::Bytes(&[]));
        let answer = self.client.call(&request, &self.push_scope())?;
        let answer = self.expect(answer, "begin an upload to", "uploads")?;
        Ok(answer.header("location").and_then(|place| resolve(&answer.url, place)))
    }

    fn send_piece(
        &self,
        place: &str,
        at: u64,
        len: u64,
        piece: Payload<'_>,
    ) -> Result<String, RegistryError> {
        let request = Request::new("send", Method::PATCH, place)
            .header("content-type", "application/octet-stream")
            .header("content-range", format!("{at}-{}", at + len - 1))
            .payload(piece);
        let answer = self.client.call(&request, &self.push_scope())?;
        let answer = self.expect(answer, "send", "an upload")?;
        let next = answer.header("location").and_then(|next| resolve(&answer.url, next));
        Ok(next.unwrap_or_else(|| place.to_owned()))
    }

    /// Stores a manifest under a tag, or under its digest alone.
    pub fn put_manifest(
        &self,
        tag: Option<&str>,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(bytes);
        let selector = tag.map_or_else(|| digest.to_string(), str::to_owned);
        let url = self.url("manifests", &selector);
        self.client.http.persist(|| {
            let request = Request::new("send", Method::PUT, &url)
                .header("content-type", media_type)
                .payload(Payload::Bytes(bytes));
            let answer = self.client.call(&request, &self.push_scope())?;
            let answer = self.expect(answer, "send", &selector)?;
            let found = answer.header("docker-content-digest").and_then(|text| text.parse().ok());
            match found.filter(|found| *found != digest) {
                Some(found) => {
                    let what = "the manifest that was sent".to_owned();
                    Err(RegistryError::WrongBytes { what, wanted: digest, found })
                }
                None => Ok(digest),
            }
        })
    }

    /// How long an answer may take.
    pub fn silence(&self) -> Duration {
        self.client.http.options.silence
    }
}

/// `bytes FIRST-LAST/TOTAL`, whose total may be `*`.
pub fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let rest = text.trim().strip_prefix("bytes")?.trim_start();
    let (range, total) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |text: &str| {
        let text = text.trim();
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok())?
    };
    let (first, last) = (number(first)?, number(last)?);
    let total = match total.trim() {
        "*" => None,
        total => Some(number(total)?),
    };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, last, total))
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn ranges_of_content_are_read_and_impossible_ones_refused() {
        assert_eq!(content_range("bytes 0-9/10"), Some((0, 9, Some(10))));
        assert_eq!(content_range("bytes 5-5/*"), Some((5, 5, None)));
        for wrong in [
            "",
            "bytes",
            "bytes */10",
            "bytes 9-0/10",
            "bytes 0-10/10",
            "bytes -1-2/3",
            "items 0-1/2",
        ] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }
}
