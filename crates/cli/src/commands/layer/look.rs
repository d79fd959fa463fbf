//! `kiln layer inspect` and `verify`.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use kiln_block::ByteLen;
use kiln_overlaybd::{Codec, Config, Flaw, Image, Input, Layer, OpenOptions, check, check_layer};
use serde_json::{Value, json};

use super::output::folder_of;
use super::{exit_of, open, refused};
use crate::arguments::{LayerInspectArgs, LayerVerifyArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::session::Session;
use crate::{hostile, terminal};

/// The most that is told about one layer.
const MOST_FLAWS: usize = 100;

/// `kiln layer inspect`
pub(crate) fn inspect(session: &Session, args: &LayerInspectArgs) -> Result<Exit, Failure> {
    if is_config(&args.file) {
        return config(session, &args.file);
    }
    let layer = open(&args.file).map_err(refused)?;
    match session.json() {
        true => session.out_json(&described(&layer))?,
        false => show(&layer)?,
    }
    Ok(Exit::Success)
}

/// An image's configuration is JSON, and no layer starts like that.
fn is_config(path: &Path) -> bool {
    let mut first = [0];
    let read = File::open(path).and_then(|mut file| file.read(&mut first));
    read.is_ok() && first == *b"{"
}

fn config(session: &Session, path: &Path) -> Result<Exit, Failure> {
    let mut config = Config::load(path).map_err(refused)?;
    // Looking at an image writes nothing, and an upper is opened for writing.
    let upper = config.upper.take();
    let image = match config.lowers.is_empty() {
        true => None,
        false => Some(Image::open_config(&config, folder_of(path), &OpenOptions::default())),
    };
    let image = image.transpose().map_err(refused)?;
    let stack = image.as_ref().and_then(Image::stack);
    let layers = stack.map_or(&[][..], |stack| stack.layers());
    let mismatches = stack.map(|stack| stack.chain_mismatches()).unwrap_or_default();
    let mismatches: Vec<String> = mismatches.iter().map(ToString::to_string).collect();
    if session.json() {
        session.out_json(&json!({
            "layers": layers.iter().map(described).collect::<Vec<_>>(),
            "upper": upper.map(|upper| json!({"data": upper.data, "index": upper.index})),
            "chain_mismatches": mismatches,
        }))?;
        return Ok(Exit::Success);
    }
    for layer in layers {
        show(layer)?;
    }
    if let Some(upper) = upper {
        let text = format!("upper {} with {}", upper.data.display(), upper.index.display());
        terminal::out_line(&hostile::line(&text))?;
    }
    for mismatch in mismatches {
        terminal::say(&format!("warning: {}", hostile::line(&mismatch)));
    }
    Ok(Exit::Success)
}

fn codec(codec: Codec) -> &'static str {
    match codec {
        Codec::Lz4 => "lz4",
        Codec::Zstd => "zstd",
    }
}

/// Bytes of data, and bytes that hide what lies below with zeros.
fn sizes(layer: &Layer) -> (u64, u64) {
    layer.segments().iter().fold((0, 0), |(data, zeros), segment| {
        let bytes = u64::from(segment.len) * 512;
        if segment.zeroed { (data, zeros + bytes) } else { (data + bytes, zeros) }
    })
}

/// What it is wrapped in, from the outside.
fn kinds(layer: &Layer) -> Vec<&'static str> {
    let tar = layer.is_in_tar().then_some("tar");
    let zfile = layer.zfile().map(|_| "ZFile");
    tar.into_iter().chain(zfile).chain(["LSMT"]).collect()
}

fn described(layer: &Layer) -> Value {
    let (data, zeros) = sizes(layer);
    let compression = layer.zfile().map(|zfile| {
        json!({
            "codec": codec(zfile.codec()), "block_size": zfile.block_size(),
            "blocks": zfile.blocks(), "checksums": zfile.has_checksums(),
        })
    });
    json!({
        "path": layer.name(), "kinds": kinds(layer), "virtual_size": layer.virtual_size(),
        "uuid": layer.uuid().map(|uuid| uuid.to_string()),
        "parent": layer.parent().map(|uuid| uuid.to_string()),
        "segments": layer.segments().len(), "data": data, "zeros": zeros,
        "compression": compression, "sealed_in_place": layer.was_sealed_in_place(),
        "user_tag": String::from_utf8_lossy(layer.user_tag()),
    })
}

fn show(layer: &Layer) -> Result<(), Failure> {
    let (data, zeros) = sizes(layer);
    let uuid = |uuid: Option<kiln_overlaybd::Uuid>| uuid.map_or("none".into(), |u| u.to_string());
    let compression = layer.zfile().map_or("none".to_owned(), |zfile| {
        let crc = if zfile.has_checksums() { "with CRC" } else { "without CRC" };
        let size = ByteLen::new(u64::from(zfile.block_size()));
        format!("{}, {} blocks of {size}, {crc}", codec(zfile.codec()), zfile.blocks())
    });
    let count = layer.segments().len();
    let (data, zeros) = (ByteLen::new(data), ByteLen::new(zeros));
    let rows = [
        ("kinds", kinds(layer).join(", ")),
        ("size", ByteLen::new(layer.virtual_size()).to_string()),
        ("uuid", uuid(layer.uuid())),
        ("parent", uuid(layer.parent())),
        ("segments", format!("{count}: {data} of data, {zeros} of zeros")),
        ("compression", compression),
    ];
    terminal::out_line(&hostile::line(layer.name()))?;
    for (name, value) in rows {
        terminal::out_line(&format!("  {name:<12} {value}"))?;
    }
    Ok(())
}

/// `kiln layer verify`
pub(crate) fn verify(session: &Session, args: &LayerVerifyArgs) -> Result<Exit, Failure> {
    let mut worst = Exit::Success;
    let mut told = Vec::new();
    for path in &args.files {
        let flaws = match Input::open(path) {
            Ok(_) if is_config(path) => image_flaws(path),
            Ok(input) => check(input, &OpenOptions::default(), MOST_FLAWS),
            Err(error) => vec![Flaw::Unreadable(error)],
        };
        let exits = flaws.iter().map(|flaw| match flaw {
            Flaw::Unreadable(error) => exit_of(error),
            Flaw::Lost(kiln_block::DeviceError::Damaged { .. }) => Exit::Unsound,
            Flaw::Lost(_) => Exit::InfrastructureBroke,
            Flaw::Odd(_) => Exit::Success,
        });
        let exits: Vec<Exit> = exits.collect();
        let is_sound = exits.iter().all(|exit| *exit == Exit::Success);
        for exit in exits {
            if worst == Exit::Success || exit == Exit::Unsound {
                worst = exit;
            }
        }
        let path = path.display().to_string();
        if session.json() {
            let flaws: Vec<_> = flaws.iter().map(flaw_json).collect();
            told.push(json!({"path": path, "sound": is_sound, "flaws": flaws}));
            continue;
        }
        for flaw in &flaws {
            let word = if matches!(flaw, Flaw::Odd(_)) { "note: " } else { "" };
            terminal::out_line(&hostile::line(&format!("{path}: {word}{flaw}")))?;
        }
        if is_sound {
            terminal::out_line(&hostile::line(&format!("{path}: sound")))?;
        }
    }
    if session.json() {
        session.out_json(&json!({"sound": worst == Exit::Success, "layers": told}))?;
    }
    Ok(worst)
}

/// What is wrong with the layers that a configuration names, or with how they lie on each other.
fn image_flaws(path: &Path) -> Vec<Flaw> {
    let opened = Config::load(path).and_then(|mut config| {
        // An upper may be written meanwhile; it has no checksums anyway.
        config.upper = None;
        match config.lowers.is_empty() {
            true => Ok(None),
            false => {
                Image::open_config(&config, folder_of(path), &OpenOptions::default()).map(Some)
            }
        }
    });
    let image = match opened {
        Ok(image) => image,
        Err(error) => return vec![Flaw::Unreadable(error)],
    };
    let Some(stack) = image.as_ref().and_then(Image::stack) else { return Vec::new() };
    let layers = stack.layers().iter().flat_map(|layer| check_layer(layer, MOST_FLAWS));
    let mismatches = stack.chain_mismatches();
    layers.chain(mismatches.iter().map(|mismatch| Flaw::Odd(mismatch.to_string()))).collect()
}

fn flaw_json(flaw: &Flaw) -> Value {
    let kind = match flaw {
        Flaw::Unreadable(_) => "unreadable",
        Flaw::Lost(_) => "lost",
        Flaw::Odd(_) => "odd",
    };
    json!({"kind": kind, "text": flaw.to_string()})
}
