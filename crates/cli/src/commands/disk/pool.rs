//! The pool a command works on: found, made when the first disk needs it, and what its refusals mean.

use std::path::{Path, PathBuf};

use kiln_block::ByteLen;
use kiln_model::scenario::nearest;
use kiln_store::{Layers, Name, Node, Reply, Request, Start, Store, StoreError, Why};

use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::terminal;

/// A disk's name where no snapshot can be meant.
pub(super) fn disk(text: &str) -> Result<&str, Failure> {
    match Name::of(text) {
        Name { disk, snapshot: None } => Ok(disk),
        Name { disk, .. } => {
            Err(Failure::new(Exit::Usage, format!("{text:?} is a snapshot, not a disk"))
                .hint(format!("the disk is {disk}; kiln disk clone {text} NEW makes another")))
        }
    }
}

/// Disk and snapshot where a snapshot is meant.
pub(super) fn snapshot(text: &str) -> Result<(&str, &str), Failure> {
    match Name::of(text) {
        Name { disk, snapshot: Some(snapshot) } => Ok((disk, snapshot)),
        Name { disk, snapshot: None } => {
            let text = format!("{text:?} is a disk, not a snapshot NAME@SNAP");
            Err(Failure::new(Exit::Usage, text).hint(format!("kiln disk snaps {disk}")))
        }
    }
}

/// Where the pool is.
pub(crate) fn path(session: &Session, chosen: Option<&Path>) -> PathBuf {
    match chosen {
        Some(path) => session.folder.join(path),
        None => session.home.data().join("disks.pool"),
    }
}

/// What opens the layers of images that disks are on. They are kept where mounted images keep theirs.
pub(crate) fn layers(session: &Session) -> Layers {
    Layers::kept_in(session.home.cache().join("layers"))
}

/// How an owner of a pool is started: this program, once more.
pub(crate) fn start(session: &Session) -> Start {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("kiln"));
    let program = program.into_os_string();
    Start::new([program, "disk".into(), "own".into(), "--detached".into()])
        .log(session.home.cache().join("disk-owner.log"))
        .layers(layers(session))
}

/// Opens the pool for something short: by its owner if it has one, else here.
pub(crate) fn open(session: &Session, path: &Path) -> Result<Store, Failure> {
    Store::open(path, &start(session)).map_err(refused)
}

/// Opens the pool for something that takes its time, during which others want to work with it too.
pub(crate) fn owner(session: &Session, path: &Path) -> Result<Store, Failure> {
    Store::owner(path, &start(session)).map_err(refused)
}

/// Makes a pool if there is none, and says so.
pub(super) fn make(path: &Path) -> Result<(), Failure> {
    let made = Store::make(path).map_err(refused).exits(Exit::Setup)?;
    if let Some(size) = made {
        terminal::say(&format!(
            "made the pool {}: a file that grows with what is stored, to {size} at most",
            path.display()
        ));
    }
    Ok(())
}

/// Asks something short; a refusal comes with the name that was probably meant.
pub(crate) fn ask(store: &Store, request: Request) -> Result<Reply, Failure> {
    store.ask(request).map_err(|error| explained(store, error))
}

/// What a refusal means for the process, with the name that was probably meant.
pub(super) fn explained(store: &Store, error: StoreError) -> Failure {
    let near = near(store, &error);
    let failure = refused(error);
    match near {
        Some(near) => Failure {
            hints: vec![format!("did you mean {near}? {}", failure.hints.join("; "))],
            ..failure
        },
        None => failure,
    }
}

/// The existing name that is nearest to the one that does not exist.
fn near(store: &Store, error: &StoreError) -> Option<String> {
    let StoreError::Refused(refusal) = error else { return None };
    let wanted = match &refusal.why {
        Why::NoDisk { disk } => disk.clone(),
        Why::NoSnapshot { disk, snapshot } => format!("{disk}@{snapshot}"),
        _ => return None,
    };
    let nodes = nodes(store).ok()?;
    let names = nodes.iter().map(|node| node.name.as_str());
    // A disk is not looked for among snapshots, nor a snapshot among disks.
    let alike = names.filter(|name| name.contains('@') == wanted.contains('@'));
    nearest(&wanted, alike).map(str::to_owned)
}

/// All disks and snapshots.
pub(crate) fn nodes(store: &Store) -> Result<Vec<Node>, Failure> {
    match store.ask(Request::Tree).map_err(refused)? {
        Reply::Tree { nodes } => Ok(nodes),
        other => Err(unexpected(&other)),
    }
}

/// An answer to something else than what was asked.
pub(super) fn unexpected(reply: &Reply) -> Failure {
    Failure::new(Exit::Internal, format!("the pool answered {reply:?}"))
}

/// What a refusal means for the process, and what to do about it.
pub(crate) fn refused(error: StoreError) -> Failure {
    let (exit, hint) = match &error {
        StoreError::Refused(refusal) => match &refusal.why {
            Why::NoDisk { .. } | Why::Exists { .. } => (Exit::Usage, "kiln disk ls".to_owned()),
            Why::NoSnapshot { disk, .. } => (Exit::Usage, format!("kiln disk snaps {disk}")),
            Why::HasSnapshots { disk } => {
                (Exit::Usage, format!("kiln disk rm {disk} --snapshots removes them too"))
            }
            Why::WouldLose => (Exit::Usage, "add --shrink if that is what you want".to_owned()),
            Why::NotAPool => {
                (Exit::Usage, "--pool takes a pool that `kiln disk create` made".to_owned())
            }
            Why::Request | Why::InUse { .. } | Why::File => return with(error, Exit::Usage),
            Why::TooNew => return with(error, Exit::Setup),
            Why::Setup => {
                (Exit::Setup, "kiln disk ls --pool PATH looks at another pool".to_owned())
            }
            Why::Cut { token } => (
                Exit::InfrastructureBroke,
                format!("kiln disk send NAME@SNAP --resume {token}, and receive what that sends"),
            ),
            Why::Stream => return with(error, Exit::Usage),
            Why::Damaged => (Exit::Unsound, "kiln disk repair".to_owned()),
            Why::NoSpace => (Exit::InfrastructureBroke, "kiln disk gc".to_owned()),
            Why::Stopped => return with(error, Exit::Interrupted),
            _ => return with(error, Exit::InfrastructureBroke),
        },
        StoreError::NoPool { .. } => (
            Exit::Usage,
            "kiln disk create NAME --size 10G, or kiln disk import FILE NAME, makes it".to_owned(),
        ),
        StoreError::Busy { holder, .. } => {
            let hint = match holder {
                Some(holder) => format!("{holder} holds it: end it, or wait until it is done"),
                None => "end what holds it, or wait until it is done".to_owned(),
            };
            (Exit::Usage, hint)
        }
        StoreError::OtherUser { .. } => {
            (Exit::Usage, "be that user, or use another pool: --pool PATH".to_owned())
        }
        StoreError::OtherVersion { pid, .. } => {
            (Exit::Usage, format!("end what it serves, or the process: kill {pid}"))
        }
        StoreError::Start { .. } => (Exit::Setup, "kiln disk own shows what it says".to_owned()),
        StoreError::Stopped => return with(error, Exit::Interrupted),
        StoreError::Io { .. } => return with(error, Exit::Setup),
        _ => return with(error, Exit::InfrastructureBroke),
    };
    Failure::from(error).with_exit(exit).hint(hint)
}

fn with(error: StoreError, exit: Exit) -> Failure {
    Failure::from(error).with_exit(exit)
}

/// A size that is whole blocks is said as people write it.
pub(super) fn size(bytes: u64) -> ByteLen {
    ByteLen::new(bytes)
}
