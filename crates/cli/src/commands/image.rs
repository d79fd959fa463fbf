//! `kiln image`: building, listing and removing guest images.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kiln_image::cache::{ImageError, ImageStore, PruneLimits, StoredImage};
use kiln_image::newc;
use kiln_model::root::RootChoice;
use kiln_model::scenario::duration;
use serde_json::json;

use super::target;
use crate::arguments::{ImageBuildArgs, ImageCommand, ImageInspectArgs, ImagePruneArgs};
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::hostile;
use crate::reporter::rows;
use crate::session::Session;
use crate::terminal::{self, Tone, paint};

/// The store of images.
pub(crate) fn store(session: &Session) -> Result<ImageStore, Failure> {
    ImageStore::open(&session.home.cache().join("images"))
        .exits(Exit::Setup)
        .hint("move Kiln's folders with KILN_HOME=/some/folder")
}

/// `kiln image`
pub(crate) fn image(session: Session, command: &ImageCommand) -> Result<Exit, Failure> {
    match command {
        ImageCommand::Build(args) => build(session, args),
        ImageCommand::Ext2(args) => super::ext2::ext2(&session, args),
        ImageCommand::Ls => list(&session),
        ImageCommand::Rm(args) => remove(&session, args),
        ImageCommand::Prune(args) => prune(&session, args),
        ImageCommand::Inspect(args) => inspect(&session, args),
        ImageCommand::Diff(args) => super::examine::diff(&session, args),
        ImageCommand::Verify(args) => super::examine::verify(&session, args),
    }
}

fn build(mut session: Session, args: &ImageBuildArgs) -> Result<Exit, Failure> {
    let loaded = target::scenario(&args.scenario)?;
    let kernel = target::chosen_kernel(&mut session, args.kernel.as_deref())?;
    let image = target::equipment(&session, &loaded, &kernel, RootChoice::Initramfs)?.image;
    for note in &image.notes {
        terminal::say(&format!("note: {}", hostile::line(note)));
    }
    if let Some(output) = &args.output {
        std::fs::copy(&image.path, output)
            .tried(|| format!("cannot copy the image to {}", output.display()))
            .exits(Exit::BuildFailed)?;
    }
    if session.json() {
        session.out_json(&json!({
            "key": image.key, "path": image.path, "cached": image.cached,
            "bytes": image.bytes, "took_ms": image.took.as_millis(), "notes": image.notes,
        }))?;
    } else {
        terminal::out_line(&image.path.display().to_string())?;
    }
    Ok(Exit::Success)
}

fn row(image: &StoredImage) -> String {
    let about = image.about.as_ref().map_or_else(String::new, |about| {
        format!("{} for {}", hostile::line(&about.manifest), hostile::line(&about.kernel))
    });
    let age = SystemTime::now().duration_since(image.used).unwrap_or_default();
    let age = rows::seconds(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    let key: String = image.key.chars().take(16).collect();
    format!("{key}  {:>10}  used {age:>7} ago  {about}", rows::mebibytes(image.bytes))
}

fn as_json(image: &StoredImage) -> serde_json::Value {
    let used = image.used.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    json!({"key": image.key, "bytes": image.bytes, "used": used.as_secs(), "about": image.about})
}

fn list(session: &Session) -> Result<Exit, Failure> {
    let images = store(session)?.list().exits(Exit::InfrastructureBroke)?;
    if session.json() {
        session.out_json(&images.iter().map(as_json).collect::<Vec<_>>())?;
        return Ok(Exit::Success);
    }
    if images.is_empty() {
        terminal::say("no images yet: kiln image build simple-example");
    }
    for image in &images {
        terminal::out_line(&row(image))?;
    }
    Ok(Exit::Success)
}

/// A failure of the store: what was asked for may not be there, or be in use.
pub(super) fn refused(error: ImageError) -> Failure {
    let exit = match error {
        ImageError::NoSuchImage { .. } | ImageError::InUse { .. } => Exit::Usage,
        _ => Exit::InfrastructureBroke,
    };
    Failure::from(error).with_exit(exit).hint("kiln image ls")
}

fn remove(session: &Session, args: &ImageInspectArgs) -> Result<Exit, Failure> {
    let image = store(session)?.remove(&args.image).map_err(refused)?;
    if session.json() {
        session.out_json(&json!({"removed": as_json(&image)}))?;
    } else {
        terminal::out_line(&format!("removed {}", row(&image)))?;
    }
    Ok(Exit::Success)
}

fn prune(session: &Session, args: &ImagePruneArgs) -> Result<Exit, Failure> {
    let unused_for: Duration = match args.unused_for.as_str() {
        "0" | "0s" => Duration::ZERO,
        text => duration(text).tried(|| "--unused-for".to_owned()).exits(Exit::Usage)?,
    };
    let limits =
        PruneLimits { max_age: Some(unused_for), dry_run: args.dry_run, ..PruneLimits::default() };
    let pruned = store(session)?.prune(&limits).exits(Exit::InfrastructureBroke)?;
    let bytes: u64 = pruned.removed.iter().map(|image| image.bytes).sum();
    if session.json() {
        session.out_json(&json!({
            "dry_run": args.dry_run,
            "removed": pruned.removed.iter().map(as_json).collect::<Vec<_>>(),
            "in_use": pruned.in_use.iter().map(as_json).collect::<Vec<_>>(),
            "bytes": bytes,
        }))?;
        return Ok(Exit::Success);
    }
    let verb = if args.dry_run { "would remove" } else { "removed" };
    for image in &pruned.removed {
        terminal::out_line(&format!("{verb} {}", row(image)))?;
    }
    for image in &pruned.in_use {
        terminal::out_line(&format!("in use  {}", row(image)))?;
    }
    let count = pruned.removed.len();
    terminal::out_line(&format!("{verb} {count} images, {}", rows::mebibytes(bytes)))?;
    Ok(Exit::Success)
}

fn inspect(session: &Session, args: &ImageInspectArgs) -> Result<Exit, Failure> {
    let path = Path::new(&args.image);
    if !path.is_file()
        && let Some(plan) = store(session)?.root_plan(&args.image).map_err(refused)?
    {
        let names = plan.members().into_iter();
        let members = names.map(|member| {
            (member.mode, member.bytes, String::from_utf8_lossy(&member.name).into_owned())
        });
        return show_members(session, &members.collect::<Vec<_>>());
    }
    let reader = if path.is_file() {
        let file = File::open(path).tried(|| format!("cannot open {}", path.display()));
        newc::Reader::new(file.exits(Exit::Usage)?).exits(Exit::Usage)?
    } else {
        store(session)?.inspect(&args.image).map_err(refused)?.1
    };
    let mut members = Vec::new();
    for member in reader {
        let member = member
            .tried(|| format!("{} is no image", args.image))
            .exits(Exit::Usage)
            .hint("kiln image ls")?;
        members.push((
            member.mode,
            member.data_len,
            String::from_utf8_lossy(&member.name).into_owned(),
        ));
    }
    show_members(session, &members)
}

/// Type and permissions, length and name of everything in an image.
fn show_members(session: &Session, members: &[(u32, u64, String)]) -> Result<Exit, Failure> {
    if session.json() {
        let members: Vec<_> = members
            .iter()
            .map(|(mode, bytes, name)| json!({"name": name, "mode": mode, "bytes": bytes}))
            .collect();
        session.out_json(&members)?;
        return Ok(Exit::Success);
    }
    for (mode, bytes, name) in members {
        let mode = paint(Tone::Dim, &format!("{mode:06o}"));
        terminal::out_line(&format!("{mode} {bytes:>10} {}", hostile::line(name)))?;
    }
    Ok(Exit::Success)
}
