//! `kiln layer convert`.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kiln_block::{BlockDevice, ByteLen, FileDevice};
use kiln_overlaybd::pack;
use kiln_qcow2::{Compression, Qcow2Error, WriteOptions};
use kiln_store::Stop;
use kiln_store::contents::{self, Named};

use super::make::{sealing, told, write};
use super::output::{Stoppable, begin, finish, listen};
use super::sources::{Source, names, source};
use crate::arguments::{Compress, LayerConvertArgs, Target};
use crate::commands::disk::pool;
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;

/// `kiln layer convert`
pub(crate) fn convert(session: &Session, args: &LayerConvertArgs) -> Result<Exit, Failure> {
    refuse_flags(args)?;
    let source = source(&args.layers, args.free)?;
    let name = names(&args.layers);
    if args.to == Target::Overlaybd {
        let (Source::Image(disk) | Source::Files(disk)) = source else {
            let text = format!("this is made of layers already: {name}");
            return Err(Failure::new(Exit::Usage, text).hint("kiln layer merge takes layers"));
        };
        let sealing = sealing(&args.sealing, None)?;
        return write(session, &args.sealing.output, |file| pack(&name, &disk, file, &sealing));
    }
    let disk = source.into_disk();
    if disk.size() == ByteLen::ZERO {
        let text = "no layer says how large the disk is";
        return Err(Failure::new(Exit::Usage, text).hint("give the layers below too"));
    }
    match args.to {
        Target::Qcow2 => to_qcow2(session, args, &*disk),
        Target::Raw | Target::Overlaybd => to_raw(session, args, &*disk),
    }
}

fn refuse_flags(args: &LayerConvertArgs) -> Result<(), Failure> {
    let sealing = &args.sealing;
    let of_layers = sealing.block_size.is_some() || sealing.tar;
    let of_layers = of_layers || sealing.uuid.is_some() || sealing.parent.is_some();
    let text = match args.to {
        Target::Raw if of_layers || sealing.compress.is_some() => {
            "a raw image has no compression, tar, UUID or parent"
        }
        Target::Qcow2 if of_layers => "a qcow2 image has no tar, UUID, parent or block size",
        Target::Qcow2 if sealing.compress == Some(Compress::Lz4) => {
            return Err(Failure::new(Exit::Usage, "a qcow2 image is not compressed with lz4")
                .hint("--compress zstd is what it can have"));
        }
        _ => return Ok(()),
    };
    Err(Failure::new(Exit::Usage, text).hint("leave those flags out"))
}

fn to_raw(
    session: &Session,
    args: &LayerConvertArgs,
    disk: &dyn BlockDevice,
) -> Result<Exit, Failure> {
    let output = &args.sealing.output;
    let tried = || format!("cannot write {}", output.display());
    let enough = listen()?;
    let file = begin(output)?;
    file.as_file().set_len(disk.size().get()).tried(tried).exits(Exit::Setup)?;
    let target = FileDevice::open(file.path(), false).exits(Exit::Setup)?;
    let (from, to) = (names(&args.layers), output.display().to_string());
    contents::copy(
        Named { device: disk, name: &from },
        Named { device: &target, name: &to },
        &Stop::from(enough),
        &mut |_| {},
    )
    .map_err(|error| pool::refused(error.into()))?;
    finish(file, output)?;
    told(session, output)
}

fn to_qcow2(
    session: &Session,
    args: &LayerConvertArgs,
    disk: &dyn BlockDevice,
) -> Result<Exit, Failure> {
    let output = &args.sealing.output;
    let enough = listen()?;
    let file = begin(output)?;
    let tried = || format!("cannot write {}", output.display());
    let handle = file.reopen().tried(tried).exits(Exit::Setup)?;
    let mut out = Stoppable { file: handle, enough: Arc::clone(&enough) };
    let compression = (args.sealing.compress == Some(Compress::Zstd)).then_some(Compression::Zstd);
    let options = WriteOptions { compression, ..WriteOptions::default() };
    let mut progress = |_| match enough.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    kiln_qcow2::write(disk, &mut out, &options, &mut progress).map_err(|error| {
        let exit = match &error {
            _ if enough.load(Ordering::Relaxed) => Exit::Interrupted,
            Qcow2Error::Read { source, .. } if is_damage(source) => Exit::Unsound,
            Qcow2Error::TooLarge { .. } | Qcow2Error::Refused(_) => Exit::Usage,
            _ => Exit::InfrastructureBroke,
        };
        Failure::from(error).with_exit(exit)
    })?;
    finish(file, output)?;
    told(session, output)
}

fn is_damage(error: &kiln_block::DeviceError) -> bool {
    matches!(error, kiln_block::DeviceError::Damaged { .. })
}
