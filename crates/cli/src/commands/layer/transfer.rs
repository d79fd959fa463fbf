//! `kiln layer push` and `pull`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use kiln_block::ByteLen;
use kiln_overlaybd::{Input, Layer, OpenOptions, Stack, Trace, around_layer};
use kiln_registry::{Content, Descriptor, Platform, Pushed, Repository, overlaybd};
use serde_json::json;

use super::output::{folder_of, sync};
use super::refused;
use super::remote::{access, unreached};
use super::traces::Brought;
use crate::arguments::{LayerPullArgs, LayerPushArgs};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::{hostile, signals, terminal};

/// `kiln layer push`
pub(super) fn push(session: &Session, args: &LayerPushArgs) -> Result<Exit, Failure> {
    let access = access(session, &args.registry);
    listen(&access)?;
    let repository = Repository::new(&args.reference, &access).map_err(unreached)?;
    let mut opened = Vec::new();
    let mut layers = Vec::new();
    // All of them are looked at before the first one is sent.
    for path in &args.layers {
        let layer = Input::open(path).and_then(|input| Layer::open(input, &OpenOptions::default()));
        let layer = layer.map_err(refused)?;
        let content = Content::of_file(path).map_err(unreached)?;
        let content = match layer.is_in_tar() {
            true => content,
            // A registry's image consists of tars.
            false => {
                let (head, tail) = around_layer(content.size());
                content.between(head, tail)
            }
        };
        let tried = || format!("cannot read {}", path.display());
        let digest = content.digest().tried(tried).exits(Exit::InfrastructureBroke)?;
        let descriptor = overlaybd::layer(digest, content.size(), args.fs_type.as_deref());
        layers.push((path, content, descriptor));
        opened.push(layer);
    }
    let trace = args.trace.as_ref().map(|path| trace(&session.folder.join(path), opened));
    let trace = trace.transpose()?;
    let mut told = Vec::new();
    let mut tell = |path: &Path, layer: &Descriptor, pushed| {
        let (word, how) = match pushed {
            Pushed::Already => ("there already", "already"),
            Pushed::Mounted => ("taken over", "mounted"),
            Pushed::Sent => ("sent", "sent"),
        };
        say(session, &format!("{}: {}, {word}", path.display(), ByteLen::new(layer.size)));
        told.push(json!({"digest": layer.digest.to_string(), "size": layer.size, "how": how}));
    };
    let mut descriptors = Vec::new();
    for (path, content, layer) in layers {
        let from = args.mount_from.as_deref();
        let pushed = repository.push_content(&content, &layer.digest, from).map_err(unreached)?;
        tell(path, &layer, pushed);
        descriptors.push(layer);
    }
    if let (Some(path), Some(trace)) = (&args.trace, trace) {
        let (digest, pushed) = repository.push_bytes(&trace).map_err(unreached)?;
        let fs_type = args.fs_type.as_deref();
        let layer = overlaybd::trace_layer(digest, trace.len() as u64, fs_type);
        tell(path, &layer, pushed);
        descriptors.push(layer);
    }
    let digest =
        overlaybd::publish(&repository, &args.reference, descriptors).map_err(unreached)?;
    let image = args.reference.pinned(digest);
    match session.json() {
        true => session.out_json(&json!({
            "image": image.to_string(), "digest": digest.to_string(), "layers": told,
        }))?,
        false => terminal::out_line(&image.to_string())?,
    }
    Ok(Exit::Success)
}

/// A trace as it lies on top of those layers in a registry.
fn trace(path: &Path, layers: Vec<Layer>) -> Result<Vec<u8>, Failure> {
    let stack = Stack::new(layers).map_err(refused)?;
    let trace = Brought::of_file(path)?.read(Some(&stack))?;
    Ok(Trace::in_tar(&trace.to_layers(&stack)))
}

/// `kiln layer pull`
pub(super) fn pull(session: &Session, args: &LayerPullArgs) -> Result<Exit, Failure> {
    let last = args.reference.repository().rsplit('/').next().unwrap_or("image");
    let output = args.output.clone().unwrap_or_else(|| PathBuf::from(last));
    if output.exists() {
        let text = format!("{} is there already", output.display());
        return Err(Failure::new(Exit::Usage, text).hint("name a new folder after --output"));
    }
    let access = access(session, &args.registry);
    listen(&access)?;
    let repository = Repository::new(&args.reference, &access).map_err(unreached)?;
    let (digest, image) =
        repository.image(&args.reference, &Platform::here()).map_err(unreached)?;
    let layers = overlaybd::layers(&args.reference, &image).map_err(unreached)?;
    // Beside the place it will have, so that it gets there at once; gone if anything fails.
    let tried = || format!("cannot write {}", output.display());
    let folder = tempfile::Builder::new()
        .prefix(".kiln-layer-")
        .tempdir_in(folder_of(&output))
        .tried(tried)
        .exits(Exit::Setup)?;
    let mut lowers = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let mut lower = json!({"digest": layer.digest.to_string(), "size": layer.size});
        if !args.lazy {
            let name = format!("{number:03}.obd");
            let path = folder.path().join(&name);
            let file = File::create(&path).tried(tried).exits(Exit::InfrastructureBroke)?;
            repository.pull(layer, &file, &mut |_| {}).map_err(unreached)?;
            file.sync_all().tried(tried).exits(Exit::InfrastructureBroke)?;
            say(session, &format!("{name}: {}", ByteLen::new(layer.size)));
            lower["file"] = name.into();
        }
        lowers.push(lower);
    }
    let mut config = json!({"repoBlobUrl": repository.blobs_url(), "lowers": lowers});
    if let Some(trace) = overlaybd::trace(&image)
        && let Some(trace) = Brought::of_blob(&repository, trace)
        && let Ok(bytes) = trace.unwrapped()
    {
        let own = folder.path().join("acceleration");
        fs::create_dir(&own)
            .and_then(|()| fs::write(own.join("trace"), bytes))
            .tried(tried)
            .exits(Exit::InfrastructureBroke)?;
        // As others expect it: the topmost is no layer then.
        config["lowers"] = lowers.iter().cloned().chain([json!({"dir": "acceleration"})]).collect();
        config["accelerationLayer"] = true.into();
    }
    let config = serde_json::to_vec_pretty(&config)?;
    fs::write(folder.path().join("config.v1.json"), config)
        .tried(tried)
        .exits(Exit::InfrastructureBroke)?;
    keep(folder, &output)?;
    let config = output.join("config.v1.json");
    let image = args.reference.pinned(digest);
    match session.json() {
        true => session.out_json(&json!({
            "image": image.to_string(), "digest": digest.to_string(), "config": config.display().to_string(),
            "layers": lowers,
        }))?,
        false => terminal::out_line(&hostile::line(&config.display().to_string()))?,
    }
    Ok(Exit::Success)
}

/// Gives a complete folder its name.
fn keep(folder: tempfile::TempDir, output: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt as _;
    let tried = || format!("cannot write {}", output.display());
    sync(folder.path())?;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder.path(), mode).tried(tried).exits(Exit::InfrastructureBroke)?;
    fs::rename(folder.path(), output).tried(tried).exits(Exit::Setup)?;
    // It is not there any more under its temporary name.
    let _ = folder.keep();
    sync(folder_of(output))
}

/// Ctrl-C ends what goes on with the registry.
fn listen(access: &kiln_registry::Access) -> Result<(), Failure> {
    let stop = access.options.stop.clone();
    signals::when_told_to_end(move || stop.stop())
}

fn say(session: &Session, text: &str) {
    if !session.json() {
        terminal::say(&hostile::line(text));
    }
}
