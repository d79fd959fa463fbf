//! The channel on which a back-end speaks first: all it ever says is that the configuration changed.
//!
//! `vhost` receives the channel and has no way to send this message, so its descriptor is looked at before
//! `vhost` takes it from the socket.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send,
};

/// `VHOST_USER_SET_BACKEND_REQ_FD`.
const SET_BACKEND_CHANNEL: u32 = 21;
/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`.
const CONFIG_CHANGE: u32 = 2;
/// The version of all messages, with no wish for an answer.
const FLAGS: u32 = 1;

/// The channel, while a front-end is connected that gave one.
#[derive(Debug, Default)]
pub(crate) struct Notices(Mutex<Option<OwnedFd>>);

impl Notices {
    /// Looks at the next message before it is received, and keeps the channel if it brings one.
    pub(crate) fn look(&self, socket: impl AsFd) {
        let mut start = [0; 4];
        let seen = recv(&socket, &mut start[..], RecvFlags::PEEK);
        if !seen.is_ok_and(|(_, len)| len == 4) || u32::from_le_bytes(start) != SET_BACKEND_CHANNEL
        {
            return;
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
        if recvmsg(&socket, &mut [IoSliceMut::new(&mut start)], &mut beside, flags).is_err() {
            return;
        }
        let channel = beside.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        self.set(channel);
    }

    /// Forgets the channel of a front-end that has left.
    pub(crate) fn clear(&self) {
        self.set(None);
    }

    /// Tells the front-end to read the configuration again; `false` where nobody listens.
    pub(crate) fn configuration_changed(&self) -> bool {
        let channel = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(channel) = channel.as_ref() else { return false };
        let mut message = Vec::with_capacity(12);
        for word in [CONFIG_CHANGE, FLAGS, 0] {
            message.extend(word.to_ne_bytes());
        }
        // A front-end with so many unread messages will read the configuration because of one of them.
        send(channel, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok()
    }

    fn set(&self, channel: Option<OwnedFd>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = channel;
    }
}
