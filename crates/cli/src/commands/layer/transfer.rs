//! `kiln layer push` and `pull`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use kiln_block::ByteLen;
use kiln_overlaybd::{Input, Layer, OpenOptions};
use kiln_registry::{Digest, Platform, Pushed, Repository, overlaybd};
use serde_json::json;

use super::output::{folder_of, sync};
use super::refused;
use super::remote::{access, unreached};
use crate::arguments::{LayerPullArgs, LayerPushArgs};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;
use crate::signals::{self, Heard};
use crate::{hostile, terminal};

/// `kiln layer push`
pub(super) fn push(session: &Session, args: &LayerPushArgs) -> Result<Exit, Failure> {
    let access = access(session, &args.registry);
    listen(&access)?;
    let repository = Repository::new(&args.reference, &access).map_err(unreached)?;
    let mut layers = Vec::new();
    // All of them are looked at before the first one is sent.
    for path in &args.layers {
        let layer = Input::open(path).and_then(|input| Layer::open(input, &OpenOptions::default()));
        let layer = layer.map_err(refused)?;
        if !layer.is_in_tar() {
            let shown = path.display();
            return Err(Failure::new(Exit::Usage, format!("{shown} is not in a tar"))
                .hint(format!("kiln layer merge --tar --output {shown}.tar {shown}")));
        }
        let tried = || format!("cannot read {}", path.display());
        let file = File::open(path).tried(tried).exits(Exit::Usage)?;
        let (digest, size) =
            Digest::of_reader(file).tried(tried).exits(Exit::InfrastructureBroke)?;
        layers.push((path, overlaybd::layer(digest, size, args.fs_type.as_deref())));
    }
    let mut told = Vec::new();
    for (path, layer) in &layers {
        let from = args.mount_from.as_deref();
        let pushed = repository.push_file(path, &layer.digest, from).map_err(unreached)?;
        let (word, how) = match pushed {
            Pushed::Already => ("there already", "already"),
            Pushed::Mounted => ("taken over", "mounted"),
            Pushed::Sent => ("sent", "sent"),
        };
        say(session, &format!("{}: {}, {word}", path.display(), ByteLen::new(layer.size)));
        told.push(json!({"digest": layer.digest.to_string(), "size": layer.size, "how": how}));
    }
    let descriptors = layers.into_iter().map(|(_, layer)| layer).collect();
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
    let config = json!({"repoBlobUrl": repository.blobs_url(), "lowers": lowers});
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
    signals::listen(move |signal| {
        if signal != Heard::Resized {
            stop.stop();
        }
    })
    .tried(|| "cannot listen for signals".to_owned())
    .exits(Exit::InfrastructureBroke)
}

fn say(session: &Session, text: &str) {
    if !session.json() {
        terminal::say(&hostile::line(text));
    }
}
