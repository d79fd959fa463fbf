//! As much of an NBD client as it takes to write through the program and to see what came of it.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

/// A connection to one disk.
#[derive(Debug)]
pub(crate) struct Client(UnixStream);

impl Client {
    /// Connects, and asks for the disk by its name.
    pub(crate) fn connect(socket: &Path, name: &str) -> io::Result<Client> {
        let mut stream = UnixStream::connect(socket)?;
        stream.read_exact(&mut [0; 18])?;
        // Fixed newstyle, without the zeroes behind the answer; the option that takes a name.
        stream.write_all(&3_u32.to_be_bytes())?;
        stream.write_all(b"IHAVEOPT\0\0\0\x01")?;
        stream.write_all(&u32::try_from(name.len()).expect("a short name").to_be_bytes())?;
        stream.write_all(name.as_bytes())?;
        stream.read_exact(&mut [0; 10])?;
        Ok(Client(stream))
    }

    fn ask(&mut self, command: u16, at: u64, len: usize, data: &[u8]) -> io::Result<()> {
        let mut request = REQUEST.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(command.to_be_bytes());
        request.extend([7; 8]);
        request.extend(at.to_be_bytes());
        request.extend(u32::try_from(len).expect("a short request").to_be_bytes());
        request.extend(data);
        self.0.write_all(&request)?;
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply)?;
        assert_eq!(reply[..4], REPLY.to_be_bytes(), "a simple reply");
        match u32::from_be_bytes(reply[4..8].try_into().expect("four bytes")) {
            0 => Ok(()),
            error => Err(io::Error::other(format!("NBD error {error}"))),
        }
    }

    pub(crate) fn write(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        self.ask(1, at, data.len(), data)
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.ask(3, 0, 0, &[])
    }

    pub(crate) fn read(&mut self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        self.ask(0, at, len, &[])?;
        let mut data = vec![0; len];
        self.0.read_exact(&mut data)?;
        Ok(data)
    }
}
