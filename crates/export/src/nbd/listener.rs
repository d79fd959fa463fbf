//! Listening: a socket's path is taken, owned and given back.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};

use super::address::{Address, ParseAddressError};

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 64;

/// Why a server does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Other machines could reach it.
    #[error(transparent)]
    Address(#[from] ParseAddressError),
    /// Another server answers there.
    #[error("another server listens on {path}: stop it, or choose another path")]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// A file is in the way, and it is not a socket that a dead server left.
    #[error("{path} exists and is not a socket: move it away, or choose another path")]
    InTheWay {
        /// Where.
        path: PathBuf,
    },
    /// The kernel takes no longer ones.
    #[error(
        "{path} is too long for a unix socket, which may have 107 bytes: choose a shorter path"
    )]
    PathTooLong {
        /// Where.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {act} {address}")]
    Io {
        /// `listen on`, `look at`, `lock the folder of`.
        act: &'static str,
        /// Where.
        address: String,
        /// The cause.
        source: io::Error,
    },
}

/// A socket that clients connect to. When it is dropped, its path goes.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    address: Address,
    /// Device and inode of the path as it was made: another server's socket is left alone.
    made: Option<(u64, u64)>,
}

impl Listener {
    /// Takes an address, and the path of a socket whose server is dead. The socket is its user's alone, and does not
    /// wait for clients.
    pub fn bind(address: &Address) -> Result<Listener, ListenError> {
        address.refuse_other_machines()?;
        Listener::bind_anywhere(address)
    }

    /// Like [`bind`](Listener::bind), and also on addresses that other machines can reach.
    pub(crate) fn bind_anywhere(address: &Address) -> Result<Listener, ListenError> {
        match address {
            Address::Unix(path) => bind_unix(path),
            Address::Tcp(wanted) => {
                let failed = |source| ListenError::Io {
                    act: "listen on",
                    address: wanted.to_string(),
                    source,
                };
                let listener = TcpListener::bind(wanted).map_err(failed)?;
                let address = Address::Tcp(listener.local_addr().map_err(failed)?);
                listener.set_nonblocking(true).map_err(failed)?;
                Ok(Listener { fd: listener.into(), address, made: None })
            }
        }
    }

    /// Where clients connect, with the port that was found free.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The next client, if one waits.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        match accept_with(&self.fd, SocketFlags::CLOEXEC) {
            Ok(fd) => Ok(Some(fd)),
            // The second is a client that left before it was accepted.
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let (Address::Unix(path), Some(made)) = (&self.address, self.made) else { return };
        // Under the lock, nobody puts another socket there between the look and the removal.
        let _lock = lock_folder(path);
        if fs::symlink_metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == made) {
            let _ = fs::remove_file(path);
        }
    }
}

fn bind_unix(path: &Path) -> Result<Listener, ListenError> {
    let failed = |act| {
        move |source: io::Error| ListenError::Io {
            act,
            address: path.display().to_string(),
            source,
        }
    };
    let name = SocketAddrUnix::new(path)
        .map_err(|_| ListenError::PathTooLong { path: path.to_owned() })?;
    let fd = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .map_err(|errno| failed("listen on")(errno.into()))?;
    let _lock = lock_folder(path).map_err(failed("lock the folder of"))?;
    if let Err(errno) = bind(&fd, &name) {
        if errno != Errno::ADDRINUSE {
            return Err(failed("listen on")(errno.into()));
        }
        remove_stale(path)?;
        bind(&fd, &name).map_err(|errno| match errno {
            Errno::ADDRINUSE => ListenError::InUse { path: path.to_owned() },
            _ => failed("listen on")(errno.into()),
        })?;
    }
    let ready = || -> io::Result<(u64, u64)> {
        // Before it listens, nobody can connect: there is no moment with wider permissions.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listen(&fd, BACKLOG)?;
        let found = fs::symlink_metadata(path)?;
        Ok((found.dev(), found.ino()))
    };
    let made = ready().map_err(failed("listen on")).inspect_err(|_| {
        let _ = fs::remove_file(path);
    })?;
    Ok(Listener { fd, address: Address::Unix(path.to_owned()), made: Some(made) })
}

/// Removes a socket that nobody listens on any more.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed =
        |source| ListenError::Io { act: "look at", address: path.display().to_string(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenError::InTheWay { path: path.to_owned() });
        }
        Ok(_) => {}
        // Whoever it was has just left.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Whatever else keeps it from answering, somebody is there.
        Ok(_) | Err(_) => Err(ListenError::InUse { path: path.to_owned() }),
    }
}

/// Servers that start and stop in one folder at once do it one after the other.
fn lock_folder(path: &Path) -> io::Result<File> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let file = File::open(folder)?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}
