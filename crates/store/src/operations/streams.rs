//! Snapshots sent to other pools, and received from them.

use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

use kiln_parallax::Pool;
use kiln_parallax::stream::{self, ReceiveOptions, SendOptions, StreamError, Token};

use super::pipe::Pipe;
use crate::error::{Refusal, StoreError, Why};
use crate::reply::Reply;
use crate::request::{Partial, Progress, Stop};

/// What of a snapshot is sent, and how.
pub(super) struct What {
    pub(super) from: Option<String>,
    pub(super) compress: bool,
    pub(super) resume: Option<String>,
}

/// What is still to come is told by the bytes of the disk.
fn telling<'a>(
    on_progress: &'a mut dyn FnMut(Progress),
    stop: &'a Stop,
) -> impl FnMut(stream::Progress) -> ControlFlow<()> + 'a {
    move |progress| {
        on_progress(Progress { done: progress.at.get(), total: progress.size.get() });
        if stop.is_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

pub(super) fn send(
    pool: &Pool,
    (disk, snapshot): (&str, &str),
    what: &What,
    (file, path): (OwnedFd, &str),
    on_progress: &mut dyn FnMut(Progress),
    stop: &Stop,
) -> Result<Reply, StoreError> {
    let resume = what.resume.as_deref().map(str::parse::<Token>).transpose();
    let resume = resume.map_err(|error| Refusal::of(Why::Request, &error))?;
    let options = SendOptions { from: what.from.as_deref(), compress: what.compress, resume };
    // Small records would be small writes.
    let mut out = std::io::BufWriter::with_capacity(256 << 10, Pipe::new(file, stop));
    let told = &mut telling(on_progress, stop);
    let sent = pool.send(disk, snapshot, &options, &mut out, told);
    let sent = sent.map_err(|error| refused(error, path, stop))?;
    Ok(Reply::Sent { data: sent.data.get(), bytes: sent.bytes })
}

pub(super) fn receive(
    pool: &Pool,
    disk: Option<&str>,
    (file, path): (OwnedFd, &str),
    on_progress: &mut dyn FnMut(Progress),
    stop: &Stop,
) -> Result<Reply, StoreError> {
    let options = ReceiveOptions { disk };
    let mut input = std::io::BufReader::with_capacity(256 << 10, Pipe::new(file, stop));
    let told = &mut telling(on_progress, stop);
    let received = pool.receive(&mut input, &options, told);
    let received = received.map_err(|error| refused(error, path, stop))?;
    Ok(Reply::Received {
        disk: received.disk,
        snapshot: received.snapshot,
        size: received.size.get(),
        written: received.written.get(),
        bytes: received.bytes,
    })
}

pub(super) fn partials(pool: &Pool) -> Reply {
    let partial = |partial: stream::Partial| Partial {
        of: format!("{}@{}", partial.disk, partial.snapshot),
        name: partial.name,
        size: partial.size.get(),
        received: partial.token.position(),
        token: partial.token.to_string(),
    };
    Reply::Partials { partials: pool.partials().into_iter().map(partial).collect() }
}

/// What it means that a stream was not sent or received.
fn refused(error: StreamError, path: &str, stop: &Stop) -> Refusal {
    let why = match &error {
        StreamError::Cut { token, .. } => Why::Cut { token: token.to_string() },
        _ if stop.is_stopped() => Why::Stopped,
        StreamError::TooNew { .. } | StreamError::UnknownFeatures { .. } => Why::TooNew,
        StreamError::Read(_) | StreamError::Write(_) => {
            return Refusal::of(Why::File, &error).tried(format!("cannot use {path}"));
        }
        _ => Why::Stream,
    };
    match error {
        StreamError::Pool(error) => error.into(),
        StreamError::Disk { act, name, source } => Refusal::device(act, &name, &source),
        error => Refusal::of(why, &error),
    }
}
