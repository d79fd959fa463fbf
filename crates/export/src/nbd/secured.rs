//! [`Secured`]: a channel within a channel, where only the other end can read what is said.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::ServerConnection;

use super::channel::Channel;
use super::tls::Tls;

/// What is received of the outer channel at once.
const CIPHERTEXT_LEN: usize = 128 << 10;
/// What is encrypted before it is sent, so that the client decrypts while more is encrypted.
const PLAINTEXT_LEN: usize = 128 << 10;
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// TLS over a channel. One thread receives and one sends at a time, as with any channel; they only meet to
/// encrypt and to decrypt, never while one of them waits for the client.
///
/// Locks are taken in this order: `received`, `outgoing`, `connection`.
pub(super) struct Secured<'a, C> {
    outer: &'a C,
    connection: Mutex<ServerConnection>,
    received: Mutex<Ciphertext>,
    outgoing: Mutex<Vec<u8>>,
}

/// What was received and not yet decrypted.
struct Ciphertext {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a, C: Channel> Secured<'a, C> {
    /// Shows the certificate, checks the client's if that is wanted, and agrees on keys.
    pub(super) fn agree(outer: &'a C, tls: &Tls) -> io::Result<Secured<'a, C>> {
        let mut connection = ServerConnection::new(tls.config()).map_err(io::Error::other)?;
        // Whoever sends hands over little enough at a time.
        connection.set_buffer_limit(None);
        let secured = Secured {
            outer,
            connection: Mutex::new(connection),
            received: Mutex::new(Ciphertext {
                bytes: vec![0; CIPHERTEXT_LEN].into_boxed_slice(),
                start: 0,
                end: 0,
            }),
            outgoing: Mutex::default(),
        };
        while lock(&secured.connection).is_handshaking() {
            // Nothing but the handshake is said yet, so no plaintext can come of it.
            let mut received = lock(&secured.received);
            secured.decrypt(&mut received, &mut [])?;
            drop(received);
            if lock(&secured.connection).is_handshaking() && !secured.fetch()? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        secured.send_what_waits()?;
        Ok(secured)
    }

    /// Says that nothing more will come, so that the client need not wonder whether somebody cut the line.
    pub(super) fn farewell(&self) {
        let said = self.outer.wait_at_most(Some(FAREWELL)).and_then(|()| {
            lock(&self.connection).send_close_notify();
            self.send_what_waits()
        });
        // Most clients have left by now.
        drop(said);
    }

    /// Waits for more of the outer channel; false at its end.
    fn fetch(&self) -> io::Result<bool> {
        let mut received = lock(&self.received);
        let Ciphertext { bytes, start, end } = &mut *received;
        if start == end {
            (*start, *end) = (0, self.outer.receive(bytes)?);
        }
        Ok(*start < *end)
    }

    /// Decrypts what was received into `buffer`, as much as fits. `None` when the client said farewell.
    fn decrypt(&self, received: &mut Ciphertext, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut connection = lock(&self.connection);
        let mut done = 0;
        let ended = loop {
            match connection.reader().read(&mut buffer[done..]) {
                Ok(0) if !buffer.is_empty() && done < buffer.len() => break true,
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            // Without a buffer this is the handshake, and what follows that waits for one.
            let full = done == buffer.len() && (done > 0 || !connection.is_handshaking());
            if full || received.start == received.end {
                break false;
            }
            let mut rest = &received.bytes[received.start..received.end];
            received.start += connection.read_tls(&mut rest)?;
            if let Err(error) = connection.process_new_packets() {
                drop(connection);
                // The client is told what was wrong with what it said, if it listens.
                let _ = self.send_what_waits();
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        };
        let answers = connection.wants_write();
        drop(connection);
        if answers {
            self.send_what_waits()?;
        }
        Ok((done > 0 || !ended).then_some(done))
    }

    fn send_what_waits(&self) -> io::Result<()> {
        let mut outgoing = lock(&self.outgoing);
        let mut connection = lock(&self.connection);
        while connection.wants_write() {
            connection.write_tls(&mut *outgoing)?;
        }
        drop(connection);
        let sent = self.outer.send(&outgoing);
        outgoing.clear();
        sent
    }
}

impl<C: Channel> Channel for Secured<'_, C> {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let mut received = lock(&self.received);
            match self.decrypt(&mut received, buffer)? {
                None => return Ok(0),
                Some(0) => {}
                Some(count) => return Ok(count),
            }
            drop(received);
            // A line that was cut ends like any other: requests say themselves where they end.
            if !self.fetch()? {
                return Ok(0);
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PLAINTEXT_LEN) {
            let mut outgoing = lock(&self.outgoing);
            let mut connection = lock(&self.connection);
            connection.writer().write_all(piece)?;
            while connection.wants_write() {
                connection.write_tls(&mut *outgoing)?;
            }
            drop(connection);
            let sent = self.outer.send(&outgoing);
            outgoing.clear();
            sent?;
        }
        Ok(())
    }

    fn hang_up(&self) {
        self.outer.hang_up();
    }

    fn wait_at_most(&self, limit: Option<Duration>) -> io::Result<()> {
        self.outer.wait_at_most(limit)
    }
}
