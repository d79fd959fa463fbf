//! Disks on overlaybd images: which layers a base is made of, and how they are opened, in files and in registries.
//!
//! [`LayeredBase`] is what a pool keeps of such an image. It is made once, of a configuration, of layers or of an image in
//! a registry, and names each layer by its path or its digest; nothing else is looked at later. [`Layers`] opens it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_block::{ByteLen, ReadOnly};
use kiln_overlaybd::{Config, Input, Layer, LayerError, LowerConfig, OpenOptions, Stack};
use kiln_parallax::{OpenBase, OpenedBase};
use kiln_registry::{
    Access, Cache, Credentials, Descriptor, Digest, LazyOptions, Notice, Platform, Reader,
    Reference, RegistryError, Repository, overlaybd,
};
use serde::{Deserialize, Serialize};

/// What pools call this kind of base.
pub(crate) const KIND: &str = "overlaybd";
/// Bytes at both ends of a file that tell it from others: headers, trailers, and where the blocks are.
const ENDS: u64 = 64 << 10;
/// Layers of a registry that are opened at once.
const AT_ONCE: usize = 8;

/// An overlaybd image that disks can be made on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayeredBase {
    /// The layers, the lowest first.
    layers: Vec<LayerPlace>,
    /// Where those are that are in no file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    registry: Option<RegistryPlace>,
}

/// Where a layer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum LayerPlace {
    /// In a file, or in one that refers to another.
    File {
        file: PathBuf,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<PathBuf>,
    },
    /// In the registry.
    Blob { digest: String, size: u64 },
}

/// A repository, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistryPlace {
    /// HOST/NAME.
    repository: String,
    /// Without TLS.
    #[serde(default)]
    plain_http: bool,
    /// Where the login is, if not where docker and podman look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    auth_file: Option<PathBuf>,
}

/// Why an image cannot be what disks are made on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayeredError {
    /// A layer or a configuration is wrong.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The registry says no, or nothing.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A file is not there.
    #[error("cannot find {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It cannot be used like this.
    #[error("{name} {what}")]
    Unusable {
        /// What.
        name: String,
        /// Why not.
        what: String,
    },
}

fn unusable(name: impl ToString, what: impl Into<String>) -> LayeredError {
    LayeredError::Unusable { name: name.to_string(), what: what.into() }
}

/// A path that means the same in every folder.
fn real(path: PathBuf) -> Result<PathBuf, LayeredError> {
    path.canonicalize().map_err(|source| LayeredError::File { path, source })
}

impl RegistryPlace {
    fn access(&self) -> Access {
        let files = match &self.auth_file {
            Some(file) => vec![file.clone()],
            None => Credentials::usual_files(|name| std::env::var_os(name).map(PathBuf::from)),
        };
        Access {
            credentials: Credentials::in_files(files),
            plain_http: self.plain_http,
            ..Access::default()
        }
    }

    fn open(&self) -> Result<Arc<Repository>, LayeredError> {
        let reference: Result<Reference, _> = format!("{}:latest", self.repository).parse();
        let reference = reference.map_err(RegistryError::from)?;
        Ok(Arc::new(Repository::new(&reference, &self.access())?))
    }

    /// The repository that a configuration means, `SCHEME://HOST/v2/NAME/blobs`.
    fn of_url(url: &str, auth_file: Option<PathBuf>) -> Option<RegistryPlace> {
        let (scheme, rest) = url.split_once("://")?;
        let (host, path) = rest.split_once("/v2/")?;
        let name = path.trim_end_matches('/').strip_suffix("/blobs")?;
        let host = if host == "registry-1.docker.io" { "docker.io" } else { host };
        let repository = format!("{host}/{name}");
        Some(RegistryPlace { repository, plain_http: scheme == "http", auth_file })
    }
}

impl LayeredBase {
    /// Layers in files, the lowest first.
    pub fn of_files(files: &[PathBuf]) -> Result<LayeredBase, LayeredError> {
        let place =
            |file: &PathBuf| Ok(LayerPlace::File { file: real(file.clone())?, target: None });
        let layers = files.iter().map(place).collect::<Result<_, LayeredError>>()?;
        Ok(LayeredBase { layers, registry: None })
    }

    /// What a configuration file describes, which must have no upper.
    pub fn of_config(
        path: &Path,
        auth_file: Option<PathBuf>,
        plain_http: bool,
    ) -> Result<LayeredBase, LayeredError> {
        let path = real(path.to_owned())?;
        let config = Config::load(&path)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        if config.upper.is_some() {
            let what = "has an upper, which may be written meanwhile; `kiln layer commit` makes a layer of it";
            return Err(unusable(path.display(), what));
        }
        let mut registry: Option<RegistryPlace> = None;
        let mut repository = None;
        let mut layers = Vec::new();
        for lower in &config.lowers {
            let Some((digest, size)) = lower.blob(folder) else {
                layers.push(in_file(lower, folder)?);
                continue;
            };
            if registry.is_none() {
                let url = &config.repo_blob_url;
                let place = RegistryPlace::of_url(url, auth_file.clone()).ok_or_else(|| {
                    let what = format!(
                        "has the repoBlobUrl {url:?}, which is not SCHEME://HOST/v2/NAME/blobs"
                    );
                    unusable(path.display(), what)
                })?;
                let plain_http = place.plain_http || plain_http;
                registry = Some(RegistryPlace { plain_http, ..place });
            }
            let parsed = digest.parse::<Digest>().map_err(|error| {
                unusable(path.display(), format!("names a layer that is none: {error}"))
            })?;
            let size = match (size, &registry) {
                (Some(size), _) => Some(size),
                (None, Some(place)) => {
                    let repository = match &repository {
                        Some(repository) => repository,
                        None => repository.insert(place.open()?),
                    };
                    repository.blob_size(&parsed)?
                }
                (None, None) => None,
            };
            let size = size
                .ok_or_else(|| unusable(digest, format!("is not at {}", config.repo_blob_url)))?;
            layers.push(LayerPlace::Blob { digest: parsed.to_string(), size });
        }
        Ok(LayeredBase { layers, registry })
    }

    /// An image of a registry as it is now: another that gets its tag later is another image.
    pub fn of_image(
        reference: &Reference,
        plain_http: bool,
        auth_file: Option<PathBuf>,
    ) -> Result<LayeredBase, LayeredError> {
        let repository = format!("{}/{}", reference.host(), reference.repository());
        let place = RegistryPlace { repository, plain_http, auth_file };
        let (_, image) = place.open()?.image(reference, &Platform::here())?;
        let blobs = overlaybd::layers(reference, &image)?.iter();
        let layer = |blob: &Descriptor| LayerPlace::Blob {
            digest: blob.digest.to_string(),
            size: blob.size,
        };
        Ok(LayeredBase { layers: blobs.map(layer).collect(), registry: Some(place) })
    }

    /// In the words a pool keeps.
    pub(crate) fn describe(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A lower that is in a file here.
fn in_file(lower: &LowerConfig, folder: &Path) -> Result<LayerPlace, LayeredError> {
    let target = match lower {
        LowerConfig::OverTar { target, .. } => Some(real(folder.join(target))?),
        _ => None,
    };
    let file = lower.file(folder).ok_or_else(|| match lower {
        LowerConfig::Folder { path, .. } => {
            unusable(folder.join(path).display(), "is a folder without a layer")
        }
        _ => unusable("a layer", "is in no file"),
    })?;
    Ok(LayerPlace::File { file: real(file)?, target })
}

/// What opens the layers of bases: where those that are fetched are kept, and how much of them.
#[derive(Debug, Clone)]
pub struct Layers {
    cache: Option<PathBuf>,
    limit: ByteLen,
    options: OpenOptions,
}

impl Default for Layers {
    /// Keeps nothing of what is fetched.
    fn default() -> Layers {
        Layers { cache: None, limit: ByteLen::gib(10), options: OpenOptions::default() }
    }
}

impl Layers {
    /// Keeps what is fetched in a folder, which other processes may use as well.
    pub fn kept_in(folder: PathBuf) -> Layers {
        Layers { cache: Some(folder), ..Layers::default() }
    }

    fn open_layers(&self, base: &LayeredBase) -> Result<(Stack, [u8; 32]), LayeredError> {
        let mut blobs = Vec::new();
        for layer in &base.layers {
            if let LayerPlace::Blob { digest, size } = layer {
                let parsed = digest.parse::<Digest>();
                let parsed =
                    parsed.map_err(|_| unusable(digest, "is not the digest of a layer"))?;
                blobs.push(overlaybd::layer(parsed, *size, None));
            }
        }
        let mut fetched = match (&base.registry, blobs.is_empty()) {
            (_, true) => Vec::new(),
            (Some(place), false) => self.open_blobs(&place.open()?, &blobs)?,
            (None, false) => {
                return Err(unusable(blobs[0].digest, "is in a registry nobody named"));
            }
        }
        .into_iter();
        let mut identity = blake3::Hasher::new_derive_key("kiln base overlaybd 1");
        let mut layers = Vec::new();
        for place in &base.layers {
            let layer = match place {
                LayerPlace::Blob { digest, size } => {
                    identity.update(b"blob").update(digest.as_bytes()).update(&size.to_le_bytes());
                    fetched.next().ok_or_else(|| unusable(digest, "was not fetched"))?
                }
                LayerPlace::File { file, target } => {
                    identity.update(b"file");
                    add_ends(&mut identity, file)?;
                    match target {
                        None => Layer::open(Input::open(file)?, &self.options)?,
                        Some(target) => {
                            add_ends(&mut identity, target)?;
                            let target = Input::open(target)?;
                            Layer::open_over(Input::open(file)?, target, &self.options)?
                        }
                    }
                }
            };
            for uuid in [layer.uuid(), layer.parent()] {
                let text = uuid.map_or_else(String::new, |uuid| uuid.to_string());
                identity.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
            }
            identity.update(&layer.virtual_size().to_le_bytes());
            layers.push(layer);
        }
        let stack = Stack::new(layers)?;
        for mismatch in stack.chain_mismatches() {
            tracing::warn!(%mismatch, "layers that do not belong together");
        }
        Ok((stack, *identity.finalize().as_bytes()))
    }

    /// Opens layers where they are, several at once: each takes some answers of the registry.
    fn open_blobs(
        &self,
        repository: &Arc<Repository>,
        blobs: &[Descriptor],
    ) -> Result<Vec<Layer>, LayeredError> {
        let cache =
            self.cache.as_ref().map(|folder| Cache::open(folder, self.limit)).transpose()?;
        let tell = |notice: Notice| tracing::warn!(%notice, "a layer of a base");
        let lazy = LazyOptions {
            trace: cache.is_some(),
            cache: cache.map(Arc::new),
            patience: LazyOptions::PATIENCE,
            tell: Arc::new(tell),
        };
        let mut opened = Vec::new();
        std::thread::scope(|scope| -> Result<(), LayeredError> {
            for some in blobs.chunks(AT_ONCE) {
                let open = |blob: &Descriptor| self.open_blob(repository, blob, lazy.clone());
                let threads: Vec<_> =
                    some.iter().map(|blob| scope.spawn(move || open(blob))).collect();
                for thread in threads {
                    match thread.join() {
                        Ok(layer) => opened.push(layer?),
                        Err(panic) => std::panic::resume_unwind(panic),
                    }
                }
            }
            Ok(())
        })?;
        Ok(opened)
    }

    fn open_blob(
        &self,
        repository: &Arc<Repository>,
        blob: &Descriptor,
        lazy: LazyOptions,
    ) -> Result<Layer, LayeredError> {
        let reader = Reader::open(repository, blob, lazy)?;
        let name = blob.digest.to_string();
        let open =
            || Layer::open(Input::new(&name, Arc::new(ReadOnly(reader.clone()))), &self.options);
        let layer = match open() {
            // Fetched as a whole, it can be compared with its digest.
            Err(LayerError::Damaged { .. }) if !reader.is_whole() => {
                reader.complete()?;
                open()?
            }
            opened => opened?,
        };
        // What has no checksums of its own is believed only as a whole, and so is its index.
        let is_covered = layer.zfile().is_some_and(|zfile| zfile.is_covered());
        if is_covered || reader.is_whole() {
            return Ok(layer);
        }
        reader.complete()?;
        Ok(open()?)
    }
}

/// Tells a file from another by its size and its ends, where a layer has its header, its index and the checksums of both.
fn add_ends(identity: &mut blake3::Hasher, path: &Path) -> Result<(), LayeredError> {
    let failed = |source| LayeredError::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    identity.update(&size.to_le_bytes());
    for at in [0, size.saturating_sub(ENDS)] {
        let mut bytes = vec![0; usize::try_from(size.min(ENDS)).unwrap_or(0)];
        file.read_exact_at(&mut bytes, at).map_err(failed)?;
        identity.update(&bytes);
    }
    Ok(())
}

/// An error with its causes, in one line.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl OpenBase for Layers {
    fn open(&self, kind: &str, description: &str) -> Result<OpenedBase, String> {
        if kind != KIND {
            return Err(format!("it is of a kind ({kind:?}) that this build does not know"));
        }
        let base: LayeredBase = serde_json::from_str(description)
            .map_err(|error| format!("its description makes no sense: {error}"))?;
        let (stack, identity) = self.open_layers(&base).map_err(|error| {
            let cure = match &error {
                LayeredError::Registry(_) => "it is read again once the registry answers",
                _ => "put the layers back where they were",
            };
            format!("{}; {cure}", told(&error))
        })?;
        Ok(OpenedBase { device: Arc::new(ReadOnly(stack)), identity })
    }
}
