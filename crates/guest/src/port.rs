//! The channel to the host: a virtio-serial port, or a socket when the agent runs as an ordinary process.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use kiln_model::protocol::PORT_NAME;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::cmdline::Cmdline;
use crate::console::say;
use crate::modules;

/// What one attempt to read brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Got {
    Bytes(usize),
    Nothing,
    /// Nobody is at the other end: for a port until somebody is, for a socket for good.
    Absent,
}

/// The channel, never blocking.
#[derive(Debug)]
pub(crate) struct Port {
    fd: OwnedFd,
    pub(crate) is_socket: bool,
}

impl Port {
    pub(crate) fn socket(path: &Path) -> io::Result<Port> {
        let stream = UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        Ok(Port { fd: stream.into(), is_socket: true })
    }

    /// Waits for the machine's port, loading the drivers if the kernel has them as modules.
    pub(crate) fn virtio(cmdline: &Cmdline) -> Port {
        const CLASS: &str = "/sys/class/virtio-ports";
        for (driver, sign) in
            [("virtio_pci", "/sys/bus/pci/drivers/virtio-pci"), ("virtio_console", CLASS)]
        {
            if !Path::new(sign).exists()
                && let Err(trouble) = modules::load(&[driver], "", cmdline)
            {
                say!("{}", trouble.text);
            }
        }
        let mut waited = 0_u32;
        loop {
            if let Some(path) = named_port(Path::new(CLASS)) {
                let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
                match OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path) {
                    Ok(file) => return Port { fd: file.into(), is_socket: false },
                    Err(error) if waited == 1000 => say!("cannot open {}: {error}", path.display()),
                    Err(_) => {}
                }
            } else if waited == 1000 {
                say!(
                    "still no virtio-serial port named {PORT_NAME}: does the kernel have \
                     virtio_pci and virtio_console, built in or in the image?"
                );
            }
            waited += 1;
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<Got> {
        match rustix::io::read(&self.fd, buffer) {
            Ok(0) => Ok(Got::Absent),
            Ok(count) => Ok(Got::Bytes(count)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Got::Nothing),
            Err(Errno::CONNRESET | Errno::PIPE) => Ok(Got::Absent),
            Err(error) => Err(error.into()),
        }
    }

    /// How many bytes were taken; 0 when there is no room.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match rustix::io::write(&self.fd, bytes) {
            Ok(count) => Ok(count),
            // A vanished host is noticed by the next read.
            Err(Errno::AGAIN | Errno::INTR | Errno::PIPE | Errno::CONNRESET) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

fn named_port(class: &Path) -> Option<PathBuf> {
    fs::read_dir(class).ok()?.flatten().find_map(|port| {
        let name = fs::read_to_string(port.path().join("name")).ok()?;
        (name.trim() == PORT_NAME).then(|| Path::new("/dev").join(port.file_name()))
    })
}
