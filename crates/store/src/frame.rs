//! Frames: JSON of a known length, with open descriptors beside it (`docs/formats/owner-protocol.md`).
//!
//! | offset | size | field  | meaning                                             |
//! |-------:|-----:|--------|-----------------------------------------------------|
//! |      0 |    4 | length | of the text, little-endian; 1 to the reader's limit |
//! |      4 |    n | text   | one JSON value, UTF-8                               |
//!
//! Descriptors travel with the frame's first byte.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest text that an owner reads.
pub const LONGEST_REQUEST: usize = 1 << 20;
/// The longest text that a client reads.
pub const LONGEST_ANSWER: usize = 256 << 20;
/// Descriptors that come with one frame.
pub const MOST_FILES: usize = 64;

/// Why a frame was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side hung up between two frames.
    #[error("the other side hung up")]
    End,
    /// It is longer than what the reader takes.
    #[error("a frame of {len} bytes, and at most {limit} are taken")]
    TooLong {
        /// How long it is.
        len: usize,
        /// The longest.
        limit: usize,
    },
    /// More descriptors came than anything needs.
    #[error("a frame came with more than {MOST_FILES} files")]
    TooManyFiles,
    /// It is not what is expected here.
    #[error("a frame is not understood")]
    Text(#[from] serde_json::Error),
    /// The socket failed, or ended within a frame.
    #[error("the connection failed")]
    Io(#[from] io::Error),
}

/// Writes one frame.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    value: &T,
    files: &[BorrowedFd<'_>],
    limit: usize,
) -> Result<(), FrameError> {
    let text = serde_json::to_vec(value)?;
    let len = u32::try_from(text.len()).ok().filter(|_| text.len() <= limit);
    let len = len.ok_or(FrameError::TooLong { len: text.len(), limit })?.to_le_bytes();
    if files.len() > MOST_FILES {
        return Err(FrameError::TooManyFiles);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(FrameError::TooManyFiles);
    }
    let (mut head, mut body) = (&len[..], &text[..]);
    while !head.is_empty() || !body.is_empty() {
        let parts = [IoSlice::new(head), IoSlice::new(body)];
        let sent = match sendmsg(&socket, &parts, &mut beside, SendFlags::NOSIGNAL) {
            Ok(sent) => sent,
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(io::Error::from(errno).into()),
        };
        let of_head = sent.min(head.len());
        head = &head[of_head..];
        body = &body[sent - of_head..];
        beside.clear();
    }
    Ok(())
}

/// Reads one frame and what came with it.
pub fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    limit: usize,
) -> Result<(T, Vec<OwnedFd>), FrameError> {
    let mut files = Vec::new();
    let mut head = [0; 4];
    fill(&socket, &mut head, &mut files, true)?;
    let len = usize::try_from(u32::from_le_bytes(head)).unwrap_or(usize::MAX);
    if len == 0 || len > limit {
        return Err(FrameError::TooLong { len, limit });
    }
    // Memory is taken as the text comes, not as its length promises.
    let mut text = Vec::new();
    while text.len() < len {
        let from = text.len();
        text.resize(len.min(from + (1 << 20)), 0);
        fill(&socket, &mut text[from..], &mut files, false)?;
    }
    Ok((serde_json::from_slice(&text)?, files))
}

fn fill(
    socket: impl AsFd,
    mut buffer: &mut [u8],
    files: &mut Vec<OwnedFd>,
    at_start: bool,
) -> Result<(), FrameError> {
    let whole = buffer.len();
    while !buffer.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let got = match recvmsg(
            &socket,
            &mut [IoSliceMut::new(buffer)],
            &mut beside,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(got) => got,
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(io::Error::from(errno).into()),
        };
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(came) = message {
                files.extend(came);
            }
        }
        if got.flags.contains(rustix::net::ReturnFlags::CTRUNC) || files.len() > MOST_FILES {
            return Err(FrameError::TooManyFiles);
        }
        if got.bytes == 0 {
            return Err(match at_start && buffer.len() == whole {
                true => FrameError::End,
                false => io::Error::from(io::ErrorKind::UnexpectedEof).into(),
            });
        }
        buffer = &mut buffer[got.bytes..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_frame_arrives_whole_with_its_files_however_it_is_cut() {
        let (one, two) = UnixStream::pair().unwrap();
        let (mut far, near) = UnixStream::pair().unwrap();
        let text = "x".repeat(3 << 20);
        let sent = text.clone();
        let sender = std::thread::spawn(move || {
            send(&one, &sent, &[near.as_fd()], LONGEST_ANSWER).unwrap();
            send(&one, &7, &[], LONGEST_ANSWER).unwrap();
        });
        let (came, files): (String, _) = receive(&two, LONGEST_ANSWER).unwrap();
        assert_eq!((came == text, files.len()), (true, 1));
        let (came, none): (u64, _) = receive(&two, LONGEST_ANSWER).unwrap();
        assert_eq!((came, none.len()), (7, 0));
        sender.join().unwrap();
        std::fs::File::from(files.into_iter().next().unwrap()).write_all(b"through").unwrap();
        let mut through = [0; 7];
        far.read_exact(&mut through).unwrap();
        assert_eq!(&through, b"through");
        assert!(matches!(receive::<u64>(&two, 8), Err(FrameError::End)));
    }

    #[test]
    fn a_length_nobody_takes_is_refused_before_its_text_comes() {
        for len in [0, 9, u32::MAX] {
            let (mut one, two) = UnixStream::pair().unwrap();
            one.write_all(&len.to_le_bytes()).unwrap();
            assert!(matches!(receive::<u64>(&two, 8), Err(FrameError::TooLong { .. })), "{len}");
        }
    }

    #[test]
    fn a_frame_that_ends_early_or_is_no_json_is_told_apart() {
        let (mut one, two) = UnixStream::pair().unwrap();
        one.write_all(&[2, 0, 0, 0, b'{', b'}', 3, 0, 0, 0, b'1']).unwrap();
        drop(one);
        assert!(matches!(receive::<u64>(&two, 8), Err(FrameError::Text(_))));
        assert!(matches!(receive::<u64>(&two, 8), Err(FrameError::Io(_))));
    }

    #[test]
    fn more_files_than_anything_needs_are_refused_and_closed() {
        let (one, two) = UnixStream::pair().unwrap();
        let files = [one.as_fd(); MOST_FILES + 1];
        assert!(matches!(send(&one, &1, &files, 8), Err(FrameError::TooManyFiles)));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES + 1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        assert!(beside.push(SendAncillaryMessage::ScmRights(&files)));
        sendmsg(&one, &[IoSlice::new(&[1, 0, 0, 0, b'1'])], &mut beside, SendFlags::empty())
            .unwrap();
        assert!(matches!(receive::<u64>(&two, 8), Err(FrameError::TooManyFiles)));
    }
}
