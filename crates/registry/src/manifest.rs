//! Manifests: what an image consists of, and which image of several is meant.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Digest;

/// The largest manifest that registries take.
pub(crate) const LARGEST_MANIFEST: u64 = 4 << 20;
/// The most layers and images anybody needs.
const MOST: usize = 1024;

/// An image, as OCI writes it.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Several images, as OCI writes them.
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An image, as docker writes it.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Several images, as docker writes them.
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// How an image is to be run.
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A layer that is a tar, which layers of overlaybd are from the outside.
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A content: what it is, what it is called, how large it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// What it is called.
    #[serde(with = "as_text")]
    pub digest: Digest,
    /// How many bytes it has.
    pub size: u64,
    /// What else is known about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// For which machines it is, where it is one of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// What is known about it under a name.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }
}

/// A kind of machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
}

impl Platform {
    /// The machine this runs on.
    pub fn here() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform { architecture: architecture.to_owned(), os: "linux".to_owned() }
    }
}

/// What a registry may answer when it is asked for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// One image.
    Image(Box<ImageManifest>),
    /// Several.
    Index(Vec<Descriptor>),
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// Always 2.
    pub schema_version: u32,
    /// How it is written.
    #[serde(default)]
    pub media_type: String,
    /// How it is to be run.
    pub config: Descriptor,
    /// What it consists of, the lowest first.
    pub layers: Vec<Descriptor>,
    /// What else is known about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

impl Manifest {
    /// Reads what a registry answered; `media_type` is what it called that, if it did.
    pub fn parse(bytes: &[u8], media_type: &str) -> Result<Manifest, String> {
        if bytes.len() as u64 > LARGEST_MANIFEST {
            return Err(format!("a manifest of {} bytes is too large", bytes.len()));
        }
        let said = |error: serde_json::Error| format!("the manifest cannot be read: {error}");
        let kind: Kind = serde_json::from_slice(bytes).map_err(said)?;
        if kind.schema_version != 2 {
            return Err(format!(
                "the manifest has version {}, and only version 2 has digests for everything",
                kind.schema_version
            ));
        }
        // The text itself counts, for it is what the digest covers.
        let declared = if kind.media_type.is_empty() {
            media_type.split(';').next().unwrap_or_default().trim()
        } else {
            kind.media_type.as_str()
        };
        let is_index = match declared {
            OCI_INDEX | DOCKER_LIST => true,
            OCI_MANIFEST | DOCKER_MANIFEST => false,
            _ => kind.manifests.is_some(),
        };
        if is_index {
            let manifests = kind.manifests.ok_or("an index without manifests")?;
            return match manifests.len() {
                0 => Err("an index without manifests".to_owned()),
                1..=MOST => Ok(Manifest::Index(manifests)),
                more => Err(format!("an index of {more} manifests")),
            };
        }
        let image: Box<ImageManifest> = serde_json::from_slice(bytes).map_err(said)?;
        match image.layers.len() {
            0..=MOST => Ok(Manifest::Image(image)),
            more => Err(format!("an image of {more} layers")),
        }
    }
}

/// The image for a machine, else the only one there is.
pub(crate) fn choose<'a>(manifests: &'a [Descriptor], wanted: &Platform) -> Option<&'a Descriptor> {
    // What is no image but says something about one has an unknown platform.
    let is_image = |found: &&Descriptor| {
        found.platform.as_ref().is_none_or(|platform| platform.architecture != "unknown")
    };
    let fits = manifests.iter().find(|found| found.platform.as_ref() == Some(wanted));
    let mut images = manifests.iter().filter(is_image);
    fits.or_else(|| match (images.next(), images.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    })
}

mod as_text {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::Digest;

    pub(super) fn serialize<S: Serializer>(digest: &Digest, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(digest)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(from)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(platform: Option<(&str, &str)>) -> Descriptor {
        let platform = platform.map(|(architecture, os)| Platform {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
        });
        let media_type = OCI_MANIFEST.to_owned();
        Descriptor { media_type, digest: Digest::of(b""), size: 0, annotations: None, platform }
    }

    #[test]
    fn images_and_indexes_are_told_apart_by_what_they_say() {
        let one = serde_json::to_string(&descriptor(None)).unwrap();
        let image = format!(r#"{{"schemaVersion":2,"config":{one},"layers":[{one}]}}"#);
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{one}]}}"#);
        for (text, kind, is_index) in [
            (&image, DOCKER_MANIFEST, false),
            (&image, "application/json", false),
            (&index, OCI_INDEX, true),
            (&index, "", true),
        ] {
            let found = Manifest::parse(text.as_bytes(), kind).unwrap();
            assert_eq!(matches!(found, Manifest::Index(_)), is_index, "{kind}");
        }
        for (text, kind) in [
            (image.replace(":2,", ":1,"), ""),
            (image.replace("sha256", "md5"), ""),
            (image.clone(), OCI_INDEX),
            (index.replace(&one, ""), ""),
            (index, OCI_MANIFEST),
            ("{".to_owned(), ""),
            (String::new(), ""),
        ] {
            assert!(Manifest::parse(text.as_bytes(), kind).is_err(), "{kind} {text}");
        }
    }

    #[test]
    fn the_image_for_this_machine_is_chosen_or_the_only_one() {
        let here = Platform::here();
        let own = Some((here.architecture.as_str(), "linux"));
        let (mine, other) = (descriptor(own), descriptor(Some(("riscv64", "linux"))));
        let attestation = descriptor(Some(("unknown", "unknown")));
        let pick = |all: &[Descriptor]| choose(all, &here).cloned();
        assert_eq!(pick(&[other.clone(), mine.clone()]), Some(mine));
        assert_eq!(pick(&[other.clone(), attestation]), Some(other.clone()));
        assert_eq!(pick(&[other.clone(), other]), None);
    }
}
