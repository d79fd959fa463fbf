//! A client that says exactly what a test wants said.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use kiln_block::BlockDevice;
use kiln_export::nbd::{self, Socket};
use kiln_export::{Export, Exports};

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISCONNECT: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const FAST_ZERO: u16 = 16;

pub(crate) const EPERM: u32 = 1;
pub(crate) const EIO: u32 = 5;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const EOVERFLOW: u32 = 75;
pub(crate) const ENOTSUP: u32 = 95;

/// A connection, of which only what the test sends is known to the server.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    pub(crate) server: Option<JoinHandle<()>>,
}

/// A reply to an option: its kind and its data.
pub(crate) type OptionReply = (u32, Vec<u8>);

/// One message of the transmission phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Cookie and error.
    Simple(u64, u32),
    /// Cookie, whether it is the last, kind, payload.
    Chunk(u64, bool, u16, Vec<u8>),
}

impl Reply {
    pub(crate) fn cookie(&self) -> u64 {
        match self {
            Reply::Simple(cookie, _) | Reply::Chunk(cookie, ..) => *cookie,
        }
    }

    /// The error number, 0 if it is none.
    pub(crate) fn error(&self) -> u32 {
        match self {
            Reply::Simple(_, error) => *error,
            Reply::Chunk(_, _, 32769, payload) => {
                u32::from_be_bytes(payload[..4].try_into().unwrap())
            }
            Reply::Chunk(..) => 0,
        }
    }

    /// The sentence of an error.
    pub(crate) fn sentence(&self) -> String {
        match self {
            Reply::Chunk(_, true, 32769, payload) => {
                assert_eq!(
                    usize::from(u16::from_be_bytes([payload[4], payload[5]])),
                    payload.len() - 6
                );
                String::from_utf8(payload[6..].to_vec()).unwrap()
            }
            other => panic!("{other:?} has no sentence"),
        }
    }
}

/// One export named `disk`.
pub(crate) fn one(device: Arc<dyn BlockDevice>) -> Exports {
    Exports::one("disk", Export::new(device)).unwrap()
}

impl Client {
    /// A connection on which nothing was said yet.
    pub(crate) fn silent(exports: &Exports) -> Client {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let exports = exports.clone();
        let server = std::thread::spawn(move || {
            let _ = nbd::serve(&Socket::new(theirs), &exports);
        });
        Client { stream: ours, server: Some(server) }
    }

    /// Past the greeting, with the given client flags.
    pub(crate) fn greeted(exports: &Exports, flags: u32) -> Client {
        Client::silent(exports).greet(flags)
    }

    /// Past the greeting of a server on a socket.
    pub(crate) fn connect(path: &std::path::Path) -> Client {
        Client { stream: UnixStream::connect(path).unwrap(), server: None }.greet(3)
    }

    fn greet(mut self, flags: u32) -> Client {
        assert_eq!(self.bytes(18), b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&flags.to_be_bytes());
        self
    }

    /// With the disk, and with structured replies and block status if asked for.
    pub(crate) fn with_disk(exports: &Exports, structured: bool) -> Client {
        Client::greeted(exports, 3).choose(structured)
    }

    pub(crate) fn choose(mut self, structured: bool) -> Client {
        if structured {
            assert_eq!(self.option(8, &[]), [(1, vec![])]);
            let replies = self.option(10, &queries("disk", &["base:allocation"]));
            assert_eq!(replies.last(), Some(&(1, vec![])));
        }
        let replies = self.option(7, &go("disk", &[]));
        assert_eq!(replies.last(), Some(&(1, vec![])), "{replies:?}");
        self
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes(4).try_into().unwrap())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.bytes(8).try_into().unwrap())
    }

    /// Sends an option and reads its replies, up to the one that ends them.
    pub(crate) fn option(&mut self, number: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send(&option(number, data));
        let mut replies = Vec::new();
        loop {
            assert_eq!(self.u64(), 0x3_e889_0455_65a9);
            assert_eq!(self.u32(), number);
            let kind = self.u32();
            let len = self.u32() as usize;
            replies.push((kind, self.bytes(len)));
            if kind == 1 || kind >= 1 << 31 {
                return replies;
            }
        }
    }

    pub(crate) fn request(&mut self, command: u16, flags: u16, cookie: u64, at: u64, len: u32) {
        self.send(&request(command, flags, cookie, at, len));
    }

    /// The next reply, without the data of a simple reply to a read.
    pub(crate) fn reply(&mut self) -> Reply {
        match self.u32() {
            0x6744_6698 => {
                let error = self.u32();
                Reply::Simple(self.u64(), error)
            }
            0x668e_33ef => {
                let flags = u16::from_be_bytes(self.bytes(2).try_into().unwrap());
                let kind = u16::from_be_bytes(self.bytes(2).try_into().unwrap());
                let cookie = self.u64();
                let len = self.u32() as usize;
                assert!(flags <= 1, "chunk flags {flags}");
                Reply::Chunk(cookie, flags == 1, kind, self.bytes(len))
            }
            other => panic!("{other:#x} starts no reply"),
        }
    }

    /// Sends a request and returns its error number; not for reads that succeed.
    pub(crate) fn ask(&mut self, command: u16, flags: u16, at: u64, len: u32) -> u32 {
        self.request(command, flags, 7, at, len);
        let reply = self.reply();
        assert_eq!(reply.cookie(), 7);
        reply.error()
    }

    pub(crate) fn write(&mut self, flags: u16, at: u64, bytes: &[u8]) -> u32 {
        let mut message =
            request(WRITE, flags, 9, at, u32::try_from(bytes.len()).unwrap()).to_vec();
        message.extend(bytes);
        self.send(&message);
        let reply = self.reply();
        assert_eq!(reply.cookie(), 9);
        reply.error()
    }

    /// Reads, whichever form the reply has; holes are zeros.
    pub(crate) fn read(&mut self, at: u64, len: u32) -> Result<Vec<u8>, u32> {
        self.request(READ, 0, 11, at, len);
        let mut bytes = vec![0xee; len as usize];
        let mut covered = 0;
        loop {
            match self.reply() {
                Reply::Simple(11, 0) => return Ok(self.bytes(len as usize)),
                Reply::Simple(11, error) => return Err(error),
                Reply::Chunk(11, last, kind, payload) => {
                    let position = |payload: &[u8]| {
                        let from = u64::from_be_bytes(payload[..8].try_into().unwrap()) - at;
                        usize::try_from(from).unwrap()
                    };
                    match kind {
                        0 => {}
                        1 => {
                            let from = position(&payload);
                            bytes[from..from + payload.len() - 8].copy_from_slice(&payload[8..]);
                            covered += payload.len() - 8;
                        }
                        2 => {
                            let from = position(&payload);
                            let len =
                                u32::from_be_bytes(payload[8..12].try_into().unwrap()) as usize;
                            bytes[from..from + len].fill(0);
                            covered += len;
                        }
                        32769 => {
                            return Err(u32::from_be_bytes(payload[..4].try_into().unwrap()));
                        }
                        other => panic!("chunk of kind {other} in a read"),
                    }
                    if last {
                        assert_eq!(covered, len as usize, "chunks cover the read");
                        return Ok(bytes);
                    }
                }
                other => panic!("{other:?} is not for this read"),
            }
        }
    }

    /// Extents as (length, state).
    pub(crate) fn status(&mut self, flags: u16, at: u64, len: u32) -> Vec<(u32, u32)> {
        self.request(BLOCK_STATUS, flags, 13, at, len);
        match self.reply() {
            Reply::Chunk(13, true, 5, payload) => {
                assert_eq!(payload[..4], 1_u32.to_be_bytes(), "the context's number");
                let field = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
                payload[4..].chunks(8).map(|pair| (field(&pair[..4]), field(&pair[4..]))).collect()
            }
            other => panic!("{other:?} is no block status"),
        }
    }

    /// Waits until the server has hung up, whatever it still says.
    pub(crate) fn hung_up(mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        self.cut_off();
    }

    /// Waits until the server hangs up by itself.
    pub(crate) fn cut_off(&mut self) {
        let mut rest = [0; 4096];
        // What the server did not read turns its end into a reset.
        while self.stream.read(&mut rest).is_ok_and(|count| count > 0) {}
        if let Some(server) = self.server.take() {
            server.join().unwrap();
        }
    }
}

pub(crate) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

pub(crate) fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend(u16::try_from(infos.len()).unwrap().to_be_bytes());
    bytes.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    bytes
}

pub(crate) fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    bytes.extend(queries.iter().flat_map(|query| string(query)));
    bytes
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

pub(crate) fn request(command: u16, flags: u16, cookie: u64, at: u64, len: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&at.to_be_bytes());
    bytes[24..].copy_from_slice(&len.to_be_bytes());
    bytes
}
