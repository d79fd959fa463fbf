//! [`Lease`]: disks that are served or temporary for as long as somebody wants it.

use std::io;
use std::sync::Arc;

use crate::connection::{Connection, Watch};
use crate::error::{Refusal, StoreError, Why};
use crate::house::{Guest, House};
use crate::reply::{Reply, Served};
use crate::request::{Request, Serve, Stop};

/// Disks that are served, and disks that are temporary. All end when it is dropped or its process ends, however that
/// ends: the kernel closes its connection.
#[derive(Debug)]
pub struct Lease {
    way: Way,
    served: Vec<Served>,
    disk: String,
}

#[derive(Debug)]
enum Way {
    Inside(Box<Guest>),
    Owner(Connection),
}

impl Lease {
    pub(crate) fn inside(house: &Arc<House>) -> Lease {
        let guest = Guest::new(Arc::clone(house), std::process::id());
        Lease { way: Way::Inside(Box::new(guest)), served: Vec::new(), disk: String::new() }
    }

    pub(crate) fn of(connection: Connection) -> Lease {
        Lease { way: Way::Owner(connection), served: Vec::new(), disk: String::new() }
    }

    /// Asks on this lease's own connection.
    pub fn ask(&mut self, request: Request) -> Result<Reply, StoreError> {
        match &mut self.way {
            Way::Inside(guest) => guest.handle(request, Vec::new(), &mut |_| {}, &Stop::new()),
            Way::Owner(connection) => connection.ask(&request, &[], &mut |_| {}, &Stop::new()),
        }
    }

    /// Serves disks, or serves them in one more way.
    pub fn serve(&mut self, serve: &Serve) -> Result<&[Served], StoreError> {
        match self.ask(Request::Serve(serve.clone()))? {
            Reply::Serving { served } => {
                let before = self.served.len();
                self.served.extend(served);
                Ok(&self.served[before..])
            }
            _ => Err(unexpected()),
        }
    }

    /// Makes a disk that goes with the lease, from a snapshot `NAME@SNAP` or, without one, an empty one of `size`
    /// bytes. Its flushes do nothing. Returns its name, which holds `name`.
    pub fn clone_temporary(
        &mut self,
        from: Option<&str>,
        size: u64,
        name: &str,
    ) -> Result<String, StoreError> {
        let from = from.map(str::to_owned);
        self.temporary(Request::CloneTemporary { from, size, name: name.to_owned() })
    }

    /// Takes over a temporary disk whose owner was killed.
    pub fn adopt(&mut self, disk: &str) -> Result<String, StoreError> {
        self.temporary(Request::Adopt { disk: disk.to_owned() })
    }

    fn temporary(&mut self, request: Request) -> Result<String, StoreError> {
        match self.ask(request)? {
            Reply::Temporary { disk } => {
                self.disk.clone_from(&disk);
                Ok(disk)
            }
            _ => Err(unexpected()),
        }
    }

    /// Gives a temporary disk of this lease, as it is now, a name under which it stays.
    pub fn keep(&mut self, disk: &str, name: &str) -> Result<(), StoreError> {
        self.ask(Request::Keep { disk: disk.to_owned(), name: name.to_owned() }).map(|_| ())
    }

    /// What is served.
    pub fn served(&self) -> &[Served] {
        &self.served
    }

    /// The temporary disk that was made last.
    pub fn disk(&self) -> &str {
        &self.disk
    }

    /// Something that waits until the owner is gone; nothing if this process has the pool open itself.
    pub fn watch(&self) -> io::Result<Option<Watch>> {
        match &self.way {
            Way::Inside(_) => Ok(None),
            Way::Owner(connection) => connection.watch().map(Some),
        }
    }

    /// Ends it: what clients have sent is carried out and answered. Returns how many had to be hung up on.
    pub fn end(mut self) -> Result<u64, StoreError> {
        match self.ask(Request::End)? {
            Reply::Ended { cut_off } => Ok(cut_off),
            _ => Err(unexpected()),
        }
    }
}

pub(crate) fn unexpected() -> StoreError {
    Refusal::new(Why::Failed, "the owner answered something else than it was asked").into()
}
