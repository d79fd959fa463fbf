//! Where an owner's socket is: beside the pool, or in the user's private folder where nobody may write beside it.
//!
//! A unix socket's address holds 107 bytes, a path can have thousands. Sockets are therefore bound and connected
//! through `/proc/self/fd`, where the folder has a short name.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

/// A longer name of a pool is not part of its socket's, so that the address stays short enough.
const LONGEST_NAME: usize = 64;
/// Clients that may wait to be taken in.
const BACKLOG: i32 = 128;

/// A folder and a name in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    folder: PathBuf,
    name: OsString,
}

/// What a socket's path refers to, so that nobody removes another one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity(u64, u64);

/// A socket that clients connect to; its path goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) fd: OwnedFd,
    place: Place,
    made: Identity,
}

impl Place {
    /// Every place at which a pool's owner may listen, the best one first. `pool` is a real path.
    pub(crate) fn all(pool: &Path) -> io::Result<Vec<Place>> {
        let of = fs::metadata(pool)?;
        let by_number = format!("kiln-{:x}-{:x}.sock", of.dev(), of.ino());
        let beside = pool.parent().unwrap_or(Path::new("/")).to_owned();
        let name = match pool.file_name() {
            Some(name) if name.len() <= LONGEST_NAME => {
                let mut name = name.to_owned();
                name.push(".sock");
                name
            }
            _ => OsString::from(format!(".{by_number}")),
        };
        let mut places = vec![Place { folder: beside, name }];
        // A client may have another environment than the owner.
        let common = common_folder();
        let own = Some(private_folder_path()).filter(|own| *own != common);
        let private = own.into_iter().chain([common]);
        places.extend(private.map(|folder| Place { folder, name: by_number.clone().into() }));
        Ok(places)
    }

    /// Its path, for people.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// The folder, open, and the socket's address by way of it.
    fn address(&self) -> io::Result<(File, SocketAddrUnix)> {
        let folder =
            fs::OpenOptions::new().read(true).custom_flags(libc_flags()).open(&self.folder)?;
        let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string());
        let address = SocketAddrUnix::new(short.join(&self.name))?;
        Ok((folder, address))
    }

    /// Connects to whoever listens there.
    pub(crate) fn connect(&self) -> io::Result<OwnedFd> {
        let (_folder, address) = self.address()?;
        let socket = stream()?;
        rustix::net::connect(&socket, &address)?;
        Ok(socket)
    }

    /// Listens there, in the place of what a dead owner left. The pool's lock is held by the caller, so nobody alive
    /// listens there.
    pub(crate) fn listen(&self) -> io::Result<Listener> {
        if self.folder == private_folder_path() || self.folder == common_folder() {
            make_private(&self.folder)?;
        }
        let path = self.path();
        match fs::symlink_metadata(&path) {
            Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
                let text = format!("{} is in the way, and it is not a socket", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            Ok(_) => fs::remove_file(&path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let (_folder, address) = self.address()?;
        let fd = stream()?;
        rustix::net::bind(&fd, &address)?;
        let ready = || {
            // Before it listens, nobody can connect: there is no moment with wider permissions.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            rustix::net::listen(&fd, BACKLOG)?;
            identity(&path)
        };
        match ready() {
            Ok(made) => Ok(Listener { fd, place: self.clone(), made }),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }
}

/// A path that is only looked up: no permission to read the folder is needed.
fn libc_flags() -> i32 {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
    i32::try_from(flags.bits()).unwrap_or(0)
}

fn identity(path: &Path) -> io::Result<Identity> {
    let found = fs::symlink_metadata(path)?;
    Ok(Identity(found.dev(), found.ino()))
}

fn stream() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

impl Listener {
    /// Where it is, for people.
    pub(crate) fn path(&self) -> PathBuf {
        self.place.path()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let path = self.place.path();
        if identity(&path).is_ok_and(|found| found == self.made) {
            let _ = fs::remove_file(path);
        }
    }
}

/// The user's own, short-lived folder, which is made if need be: its path is short enough for sockets in it with names
/// of up to 64 bytes.
pub fn private_folder() -> io::Result<PathBuf> {
    let folder = private_folder_path();
    make_private(&folder)?;
    Ok(folder)
}

/// The one that needs nothing of the environment.
fn common_folder() -> PathBuf {
    PathBuf::from(format!("/tmp/kiln-{}", rustix::process::geteuid().as_raw()))
}

fn private_folder_path() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(folder)
            if folder.is_absolute() && folder.is_dir() && folder.as_os_str().len() <= 36 =>
        {
            folder.join("kiln")
        }
        _ => common_folder(),
    }
}

/// Makes it, unless it is there and really private.
fn make_private(folder: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(folder)?;
    let own = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
    match own && found.mode() & 0o077 == 0 {
        true => Ok(()),
        false => {
            let text = format!("{} is not a private folder of this user", folder.display());
            Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_lies_beside_its_pool_however_long_the_path_is() {
        let root = tempfile::tempdir().unwrap();
        let mut folder = root.path().to_owned();
        for _ in 0..12 {
            folder.push("a-rather-long-name-of-a-folder-among-many-others");
        }
        fs::create_dir_all(&folder).unwrap();
        for name in ["disks.pool".to_owned(), "p".repeat(200)] {
            let pool = folder.join(name);
            fs::write(&pool, "").unwrap();
            let place = Place::all(&pool).unwrap().remove(0);
            assert_eq!(place.connect().unwrap_err().kind(), io::ErrorKind::NotFound);
            let listener = place.listen().unwrap();
            assert_eq!(listener.path().parent(), Some(&*folder));
            assert_eq!(fs::metadata(listener.path()).unwrap().mode() & 0o777, 0o600);
            place.connect().unwrap();
            // As a dead owner leaves it.
            let path = listener.path();
            std::mem::forget(listener);
            let again = place.listen().unwrap();
            place.connect().unwrap();
            drop(again);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_file_in_the_way_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let pool = root.path().join("pool");
        fs::write(&pool, "").unwrap();
        fs::write(root.path().join("pool.sock"), "precious").unwrap();
        let place = Place::all(&pool).unwrap().remove(0);
        assert!(place.listen().unwrap_err().to_string().contains("in the way"));
        assert_eq!(fs::read(root.path().join("pool.sock")).unwrap(), b"precious");
    }

    #[test]
    fn a_private_folder_that_others_can_enter_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("kiln");
        make_private(&folder).unwrap();
        make_private(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(make_private(&folder).is_err());
    }
}
