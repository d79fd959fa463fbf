//! `config.v1.json`: which layers an image is made of.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_block::{BlockDevice, ReadOnly};
use serde::Deserialize;

use crate::error::failed;
use crate::stack::MOST_LAYERS;
use crate::{Input, Layer, LayerError, OpenOptions, Stack, Upper, Writable};

/// The largest configuration anybody reads.
const LARGEST: u64 = 4 << 20;
/// What a layer is called in a folder, in the order of preference.
const LAYER_NAMES: [&str; 3] = ["overlaybd.commit", ".commit", "overlaybd.sealed"];

/// An image's configuration, checked. Keys without a meaning here are passed over, as others do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawConfig")]
pub struct Config {
    /// Where blobs are fetched from; empty if nowhere.
    pub repo_blob_url: String,
    /// The layers, the lowest first.
    pub lowers: Vec<LowerConfig>,
    /// What is written, if the image is writable.
    pub upper: Option<UpperConfig>,
    /// Where to report how opening went.
    pub result_file: Option<PathBuf>,
    /// A trace of what to fetch first, by layer. It may not be there.
    pub trace: Option<PathBuf>,
}

/// Where one sealed layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LowerConfig {
    /// In a file.
    File(PathBuf),
    /// In a folder, under one of the names a layer may have there; else in the registry.
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the registry calls the layer, if that is known.
        digest: Option<String>,
    },
    /// In the registry.
    Blob {
        /// What the registry calls it.
        digest: String,
        /// How many bytes it has, if that is known.
        size: Option<u64>,
    },
    /// In a file that refers to an unpacked tar.
    OverTar {
        /// The layer.
        file: PathBuf,
        /// The tar.
        target: PathBuf,
    },
}

/// The files that are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpperConfig {
    /// The data file.
    pub data: PathBuf,
    /// The index file; a sparse upper's is empty.
    pub index: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawConfig {
    repo_blob_url: String,
    lowers: Vec<RawLower>,
    upper: RawUpper,
    result_file: String,
    acceleration_layer: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawLower {
    file: String,
    dir: String,
    digest: String,
    size: Option<u64>,
    gzip_index: String,
    target_file: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawUpper {
    index: String,
    data: String,
}

impl TryFrom<RawConfig> for Config {
    type Error = String;

    fn try_from(mut raw: RawConfig) -> Result<Config, String> {
        // The topmost is no layer then, but a folder with a trace in it.
        let trace = raw.lowers.pop_if(|_| raw.acceleration_layer).map(|lower| lower.dir);
        let trace = trace.filter(|dir| !dir.is_empty()).map(|dir| Path::new(&dir).join("trace"));
        if raw.lowers.len() > MOST_LAYERS {
            return Err(format!("{} lowers are more than {MOST_LAYERS}", raw.lowers.len()));
        }
        let lowers = raw.lowers.into_iter().enumerate();
        let lowers = lowers
            .map(|(number, raw)| lower(raw).map_err(|what| format!("lowers[{number}] {what}")));
        let lowers: Vec<_> = lowers.collect::<Result<_, _>>()?;
        let upper = match (raw.upper.data.is_empty(), raw.upper.index.is_empty()) {
            (false, false) => {
                Some(UpperConfig { data: raw.upper.data.into(), index: raw.upper.index.into() })
            }
            // Others take half an upper for none, and what is written would be lost.
            (false, true) => return Err("upper has data and no index".to_owned()),
            (true, false) => return Err("upper has an index and no data".to_owned()),
            (true, true) => None,
        };
        if lowers.is_empty() && upper.is_none() {
            return Err("there is neither a lower nor an upper".to_owned());
        }
        Ok(Config {
            repo_blob_url: raw.repo_blob_url,
            lowers,
            upper,
            result_file: (!raw.result_file.is_empty()).then(|| raw.result_file.into()),
            trace,
        })
    }
}

fn lower(raw: RawLower) -> Result<LowerConfig, &'static str> {
    let digest = (!raw.digest.is_empty()).then_some(raw.digest);
    if !raw.target_file.is_empty() {
        if !raw.gzip_index.is_empty() {
            return Err(
                "lies over a compressed tar (gzipIndex); unpack it and give it as targetFile",
            );
        }
        if raw.file.is_empty() {
            return Err("has a targetFile and no file that refers to it");
        }
        return Ok(LowerConfig::OverTar { file: raw.file.into(), target: raw.target_file.into() });
    }
    if !raw.file.is_empty() {
        return Ok(LowerConfig::File(raw.file.into()));
    }
    match (raw.dir.is_empty(), digest) {
        (false, digest) => Ok(LowerConfig::Folder { path: raw.dir.into(), digest }),
        (true, Some(digest)) => Ok(LowerConfig::Blob { digest, size: raw.size }),
        (true, None) => Err("has no file, no dir and no digest"),
    }
}

impl Config {
    /// Reads the text of a configuration; `name` is for errors.
    pub fn parse(text: &str, name: &str) -> Result<Config, LayerError> {
        serde_json::from_str(text)
            .map_err(|error| LayerError::Config { name: name.to_owned(), what: error.to_string() })
    }

    /// Reads a configuration file.
    pub fn load(path: &Path) -> Result<Config, LayerError> {
        let name = path.display().to_string();
        let mut text = String::new();
        let file = fs::File::open(path).map_err(failed("open", &name))?;
        file.take(LARGEST + 1).read_to_string(&mut text).map_err(failed("read", &name))?;
        if text.len() as u64 > LARGEST {
            let what = format!("it is larger than {LARGEST} bytes");
            return Err(LayerError::Config { name, what });
        }
        Config::parse(&text, &name)
    }
}

/// An image, opened.
#[derive(Debug)]
pub enum Image {
    /// Without an upper.
    ReadOnly(ReadOnly<Stack>),
    /// With an upper.
    Writable(Box<Writable>),
}

impl Image {
    /// Opens what a configuration file describes; paths in it count from its folder. A result file
    /// says `success` afterwards, or why not.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Image, LayerError> {
        let config = Config::load(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let opened = Image::open_config(&config, folder, options);
        if let Some(result) = &config.result_file {
            let text = match &opened {
                Ok(_) => "success".to_owned(),
                Err(error) => told(error),
            };
            let result = folder.join(result);
            let name = result.display().to_string();
            let written = fs::write(&result, text).map_err(failed("write", &name));
            // Why the image did not open matters more than why that could not be reported.
            return opened.and_then(|image| written.map(|()| image));
        }
        opened
    }

    /// Opens an image whose relative paths count from `folder`.
    pub fn open_config(
        config: &Config,
        folder: &Path,
        options: &OpenOptions,
    ) -> Result<Image, LayerError> {
        let layers = config.lowers.iter().map(|lower| lower.open(folder, options));
        let layers: Vec<Layer> = layers.collect::<Result<_, _>>()?;
        let upper = config.upper.as_ref().map(|upper| upper.open(folder)).transpose()?;
        Image::of(layers, upper)
    }

    /// An image of layers, the lowest first, and what is written above them.
    pub fn of(layers: Vec<Layer>, upper: Option<Upper>) -> Result<Image, LayerError> {
        let stack = if layers.is_empty() { None } else { Some(Stack::new(layers)?) };
        match (upper, stack) {
            (Some(upper), stack) => Ok(Image::Writable(Box::new(Writable::new(upper, stack)?))),
            (None, Some(stack)) => Ok(Image::ReadOnly(ReadOnly(stack))),
            (None, None) => Err(LayerError::Refused("an image has a lower or an upper".to_owned())),
        }
    }

    /// The sealed layers, if there are any.
    pub fn stack(&self) -> Option<&Stack> {
        match self {
            Image::ReadOnly(stack) => Some(&stack.0),
            Image::Writable(writable) => writable.lower(),
        }
    }

    /// The image as a disk, for a frontend.
    pub fn into_device(self) -> Arc<dyn BlockDevice> {
        match self {
            Image::ReadOnly(stack) => Arc::new(stack),
            Image::Writable(writable) => Arc::from(writable as Box<dyn BlockDevice>),
        }
    }
}

impl UpperConfig {
    /// Opens the files that are written; relative paths count from `folder`.
    pub fn open(&self, folder: &Path) -> Result<Upper, LayerError> {
        Upper::open(&folder.join(&self.data), Some(&folder.join(&self.index)))
    }
}

impl LowerConfig {
    /// What is to be fetched, its digest and perhaps its size, where the layer is not in a file here.
    pub fn blob(&self, folder: &Path) -> Option<(&str, Option<u64>)> {
        match self {
            LowerConfig::Folder { path, digest: Some(digest) } => {
                in_folder(&folder.join(path)).is_none().then_some((digest.as_str(), None))
            }
            LowerConfig::Blob { digest, size } => Some((digest, *size)),
            _ => None,
        }
    }

    /// The file here that the layer is in; relative paths count from `folder`.
    pub fn file(&self, folder: &Path) -> Option<PathBuf> {
        match self {
            LowerConfig::File(file) | LowerConfig::OverTar { file, .. } => Some(folder.join(file)),
            LowerConfig::Folder { path, .. } => in_folder(&folder.join(path)),
            LowerConfig::Blob { .. } => None,
        }
    }

    /// Opens a layer that is in a file here; relative paths count from `folder`.
    pub fn open(&self, folder: &Path, options: &OpenOptions) -> Result<Layer, LayerError> {
        let file = match self {
            LowerConfig::File(file) => folder.join(file),
            LowerConfig::Folder { path, .. } => {
                let dir = folder.join(path);
                in_folder(&dir).ok_or_else(|| LayerError::Unsupported {
                    name: dir.display().to_string(),
                    what: format!("none of {} is in it", LAYER_NAMES.join(", ")),
                })?
            }
            LowerConfig::Blob { digest, .. } => {
                return Err(LayerError::Unsupported {
                    name: digest.clone(),
                    what: "it is in a registry; pull it and give it as a file".to_owned(),
                });
            }
            LowerConfig::OverTar { file, target } => {
                let target = Input::open(&folder.join(target))?;
                return Layer::open_over(Input::open(&folder.join(file))?, target, options);
            }
        };
        Layer::open(Input::open(&file)?, options)
    }
}

/// The layer in a folder.
fn in_folder(dir: &Path) -> Option<PathBuf> {
    LAYER_NAMES.iter().map(|name| dir.join(name)).find(|path| path.exists())
}

/// An error with its causes, in one line.
fn told(error: &LayerError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
