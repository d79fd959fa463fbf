//! `kiln layer`: overlaybd layers in files.

mod apply;
mod convert;
mod ending;
mod look;
mod make;
mod mount;
mod output;
mod remote;
mod serve;
mod sources;
mod traces;
mod transfer;

use std::path::Path;

use kiln_block::DeviceError;
use kiln_overlaybd::{Input, Layer, LayerError, OpenOptions};

pub(crate) use self::make::random;
use crate::arguments::LayerCommand;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::session::Session;

/// `kiln layer`
pub(crate) fn layer(session: Session, command: &LayerCommand) -> Result<Exit, Failure> {
    match command {
        LayerCommand::Apply(args) => apply::apply(session, args),
        LayerCommand::Inspect(args) => look::inspect(&session, args),
        LayerCommand::Verify(args) => look::verify(&session, args),
        LayerCommand::Convert(args) => convert::convert(&session, args),
        LayerCommand::Merge(args) => make::merge(&session, args),
        LayerCommand::Create(args) => make::create(&session, args),
        LayerCommand::Commit(args) => make::commit(&session, args),
        LayerCommand::Seal(args) => make::seal(&session, args),
        LayerCommand::Mount(args) => mount::mount(&session, args),
        LayerCommand::Umount(args) => mount::umount(&session, args),
        LayerCommand::Serve(args) => serve::serve(&session, args),
        LayerCommand::Push(args) => transfer::push(&session, args),
        LayerCommand::Pull(args) => transfer::pull(&session, args),
    }
}

fn open(path: &Path) -> Result<Layer, LayerError> {
    Layer::open(Input::open(path)?, &OpenOptions::default())
}

/// How a refusal ends the process.
fn exit_of(error: &LayerError) -> Exit {
    match error {
        LayerError::Damaged { .. }
        | LayerError::Device { source: DeviceError::Damaged { .. }, .. } => Exit::Unsound,
        LayerError::Io { act: "open" | "create", .. }
        | LayerError::Unsupported { .. }
        | LayerError::Refused(_)
        | LayerError::Config { .. } => Exit::Usage,
        LayerError::Io { .. } | LayerError::Device { .. } => Exit::InfrastructureBroke,
    }
}

fn refused(error: LayerError) -> Failure {
    let exit = exit_of(&error);
    Failure::from(error).with_exit(exit)
}
