//! Layers and uppers that are made.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kiln_block::ByteLen;
use kiln_overlaybd::{Codec, Layer, LayerError, NewUpper, Packing, Sealing, Upper, Uuid, Written};
use serde_json::json;

use super::output::{Stoppable, begin, finish, folder_of, listen, sync};
use super::sources::stack;
use super::{open, refused};
use crate::arguments::{
    Compress, LayerCommitArgs, LayerCreateArgs, LayerMergeArgs, LayerSealArgs, LayerSealingArgs,
};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::terminal;

/// `kiln layer merge`
pub(crate) fn merge(session: &Session, args: &LayerMergeArgs) -> Result<Exit, Failure> {
    let stack = stack(&args.layers)?;
    let top = stack.layers().last().and_then(Layer::uuid);
    let sealing = sealing(&args.sealing, top)?;
    write(session, &args.sealing.output, |file| stack.merge(file, &sealing))
}

/// `kiln layer commit`
pub(crate) fn commit(session: &Session, args: &LayerCommitArgs) -> Result<Exit, Failure> {
    let upper = Upper::open(&args.data, args.index.as_deref()).map_err(refused)?;
    let sealing = sealing(&args.sealing, upper.uuid())?;
    write(session, &args.sealing.output, |file| upper.commit(file, &sealing))
}

/// `kiln layer seal`
pub(crate) fn seal(session: &Session, args: &LayerSealArgs) -> Result<Exit, Failure> {
    // A log with a trailer still has a log's header, and would be sealed once more.
    if open(&args.data).is_ok() {
        let text = format!("{} is sealed already", args.data.display());
        return Err(Failure::new(Exit::Usage, text).hint("kiln layer inspect shows it"));
    }
    let upper = Upper::open(&args.data, Some(&args.index)).map_err(refused)?;
    upper.seal().map_err(refused)?;
    told(session, &args.data)
}

/// `kiln layer create`
pub(crate) fn create(session: &Session, args: &LayerCreateArgs) -> Result<Exit, Failure> {
    let new = NewUpper {
        virtual_size: args.size.get(),
        uuid: args.uuid.map_or_else(random, Ok)?,
        parent: args.parent.unwrap_or_default(),
        user_tag: Vec::new(),
    };
    if args.sparse && args.size == ByteLen::ZERO {
        let text = "a sparse upper needs a size";
        return Err(Failure::new(Exit::Usage, text).hint("add --size, such as --size 10G"));
    }
    let making = |path: &Path| {
        let folder = tempfile::Builder::new().prefix(".kiln-layer-").tempdir_in(folder_of(path));
        folder.tried(|| format!("cannot write {}", path.display())).exits(Exit::Setup)
    };
    let data_folder = making(&args.data)?;
    let data = data_folder.path().join("data");
    match &args.index {
        Some(index) => {
            let index_folder = making(index)?;
            let file = index_folder.path().join("index");
            Upper::create_log(&data, &file, &new).map_err(refused)?;
            place(&file, index)?;
            // Without its data an index is of no use.
            place(&data, &args.data).inspect_err(|_| drop(std::fs::remove_file(index)))?;
        }
        None => {
            Upper::create_sparse(&data, &new).map_err(refused)?;
            place(&data, &args.data)?;
        }
    }
    told(session, &args.data)
}

/// Gives a complete file its name, which nothing may have.
fn place(from: &Path, to: &Path) -> Result<(), Failure> {
    sync(from)?;
    std::fs::hard_link(from, to)
        .tried(|| format!("cannot create {}", to.display()))
        .exits(Exit::Usage)?;
    sync(folder_of(to))
}

/// How the flags say that a layer is to be sealed; one that does not say which it is becomes `uuid`.
pub(super) fn sealing(args: &LayerSealingArgs, uuid: Option<Uuid>) -> Result<Sealing, Failure> {
    let size = args.block_size.map_or(4096, ByteLen::get);
    let block_size = match u32::try_from(size) {
        Ok(size) if size.is_power_of_two() && (4096..=65536).contains(&size) => size,
        _ => {
            let text = format!("--block-size {size} is no power of two from 4K to 64K");
            return Err(Failure::new(Exit::Usage, text));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let packing = |codec| Packing { codec, block_size, threads, ..Packing::default() };
    Ok(Sealing {
        uuid: args.uuid.or(uuid).unwrap_or_default(),
        parent: args.parent.unwrap_or_default(),
        user_tag: Vec::new(),
        packing: match args.compress.unwrap_or(Compress::Lz4) {
            Compress::None => None,
            Compress::Lz4 => Some(packing(Codec::Lz4)),
            Compress::Zstd => Some(packing(Codec::Zstd)),
        },
        in_tar: args.tar,
    })
}

/// Writes a layer, which must open before it takes its place.
pub(super) fn write(
    session: &Session,
    path: &Path,
    make: impl FnOnce(Stoppable) -> Result<Written<Stoppable>, LayerError>,
) -> Result<Exit, Failure> {
    let enough = listen()?;
    let file = begin(path)?;
    let handle = file.reopen().tried(|| format!("cannot write {}", path.display()));
    let out = Stoppable { file: handle.exits(Exit::Setup)?, enough: Arc::clone(&enough) };
    make(out).map_err(|error| match enough.load(Ordering::Relaxed) {
        true => Failure::new(Exit::Interrupted, "interrupted"),
        false => refused(error),
    })?;
    open(file.path())
        .map_err(refused)
        .tried(|| format!("{} would be no layer that others read", path.display()))
        .exits(Exit::Usage)?;
    finish(file, path)?;
    told(session, path)
}

/// An identity that no other layer has.
pub(crate) fn random() -> Result<Uuid, Failure> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(Uuid::from_bytes(bytes))
}

/// Says what was made.
pub(super) fn told(session: &Session, path: &Path) -> Result<Exit, Failure> {
    if session.json() {
        let bytes = std::fs::metadata(path).map(|found| found.len()).unwrap_or_default();
        session.out_json(&json!({"path": path, "bytes": bytes}))?;
    } else {
        terminal::out_line(&path.display().to_string())?;
    }
    Ok(Exit::Success)
}
