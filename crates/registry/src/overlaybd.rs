//! How layers of overlaybd are carried by an image: the annotations that containerd's snapshotter looks for.
//!
//! A layer is a tar from the outside, so its digest is its diff id too. The registry's manifest says of each layer
//! what it is; nothing else does.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::manifest::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::{Descriptor, Digest, ImageManifest, Platform, Reference, RegistryError, Repository};

/// The blob's digest, once more.
pub const BLOB_DIGEST: &str = "containerd.io/snapshot/overlaybd/blob-digest";
/// The blob's size, once more.
pub const BLOB_SIZE: &str = "containerd.io/snapshot/overlaybd/blob-size";
/// The filesystem on the disk.
pub const FS_TYPE: &str = "containerd.io/snapshot/overlaybd/blob-fs-type";
/// The version of the format.
pub const VERSION: &str = "containerd.io/snapshot/overlaybd/version";
/// Whether a layer, which is the topmost then, is none but holds a trace of what to fetch first.
pub const TRACE: &str = "containerd.io/snapshot/overlaybd/acceleration-layer";
/// That version.
pub const THIS_VERSION: &str = "0.1.0";
/// Layers whose content is in another blob have one of these.
const ELSEWHERE: [&str; 2] = [
    "containerd.io/snapshot/overlaybd/turbo-oci/target-digest",
    "containerd.io/snapshot/overlaybd/fastoci/target-digest",
];

/// How an image is to be run, as far as a disk knows.
#[derive(Serialize)]
struct Config {
    architecture: String,
    os: String,
    config: BTreeMap<String, String>,
    rootfs: RootFs,
}

#[derive(Serialize)]
struct RootFs {
    r#type: &'static str,
    diff_ids: Vec<String>,
}

/// The layer that a blob is.
pub fn layer(digest: Digest, size: u64, fs_type: Option<&str>) -> Descriptor {
    let mut annotations = BTreeMap::from([
        (BLOB_DIGEST.to_owned(), digest.to_string()),
        (BLOB_SIZE.to_owned(), size.to_string()),
        (VERSION.to_owned(), THIS_VERSION.to_owned()),
    ]);
    if let Some(fs_type) = fs_type {
        annotations.insert(FS_TYPE.to_owned(), fs_type.to_owned());
    }
    let media_type = OCI_LAYER.to_owned();
    Descriptor { media_type, digest, size, annotations: Some(annotations), platform: None }
}

/// The layer that a trace is, in its tar; it lies on top of the others.
pub fn trace_layer(digest: Digest, size: u64, fs_type: Option<&str>) -> Descriptor {
    let mut layer = layer(digest, size, fs_type);
    layer.annotations.get_or_insert_default().insert(TRACE.to_owned(), "yes".to_owned());
    layer
}

/// The trace that an image brings along, in a tar.
pub fn trace(image: &ImageManifest) -> Option<&Descriptor> {
    image.layers.last().filter(|layer| layer.annotation(TRACE) == Some("yes"))
}

/// Makes an image of layers whose blobs are in the repository, the lowest first, and gives it its tag. The same
/// layers make the same image.
pub fn publish(
    repository: &Repository,
    reference: &Reference,
    layers: Vec<Descriptor>,
) -> Result<Digest, RegistryError> {
    let Platform { architecture, os } = Platform::here();
    let diff_ids = layers.iter().map(|layer| layer.digest.to_string()).collect();
    let rootfs = RootFs { r#type: "layers", diff_ids };
    let config = Config { architecture, os, config: BTreeMap::new(), rootfs };
    let config = written(&config)?;
    let (digest, _) = repository.push_bytes(&config)?;
    let (media_type, size) = (OCI_CONFIG.to_owned(), config.len() as u64);
    let config = Descriptor { media_type, digest, size, annotations: None, platform: None };
    let media_type = OCI_MANIFEST.to_owned();
    let manifest =
        ImageManifest { schema_version: 2, media_type, config, layers, annotations: None };
    repository.put_manifest(reference.tag(), OCI_MANIFEST, &written(&manifest)?)
}

fn written(value: &impl Serialize) -> Result<Vec<u8>, RegistryError> {
    serde_json::to_vec(value).map_err(|error| RegistryError::Unsupported {
        what: "the image".to_owned(),
        why: error.to_string(),
    })
}

/// The layers of an image, which all have to be of overlaybd; its trace is none of them.
pub fn layers<'a>(
    reference: &Reference,
    image: &'a ImageManifest,
) -> Result<&'a [Descriptor], RegistryError> {
    let unsupported =
        |why: String| Err(RegistryError::Unsupported { what: reference.to_string(), why });
    let layers = &image.layers[..image.layers.len() - usize::from(trace(image).is_some())];
    if layers.is_empty() {
        return unsupported("it has no layers".to_owned());
    }
    for (number, layer) in layers.iter().enumerate() {
        if ELSEWHERE.iter().any(|name| layer.annotation(name).is_some()) {
            return unsupported(format!(
                "layer {number} only refers to an ordinary layer (turboOCI); convert the image to overlaybd"
            ));
        }
        let Some(digest) = layer.annotation(BLOB_DIGEST) else {
            return unsupported(format!(
                "layer {number} ({}) is not of overlaybd: it has no annotation {BLOB_DIGEST}",
                layer.media_type
            ));
        };
        if digest != layer.digest.to_string() {
            return unsupported(format!(
                "layer {number} has one digest and its annotation another"
            ));
        }
    }
    Ok(layers)
}
