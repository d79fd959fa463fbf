//! [`ContainerImage`]: the layers of a container image that lies in a folder or in an archive.
//!
//! Sources: the OCI image layout and manifest specifications 1.1; the format of `docker save`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::stretch::{ArchiveError, Stretch};

/// Longer documents make no sense.
const LONGEST_DOCUMENT: u64 = 4 << 20;
/// So deep may an index lie in an index.
const DEEPEST: usize = 4;
const MOST_LAYERS: usize = 1024;
/// An image's name in an index.
const NAME: &str = "org.opencontainers.image.ref.name";

/// Which image of several.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    /// Its name, as the index or archive has it; none where there is only one.
    pub name: Option<String>,
    /// The machine it is for, as Go names it; this one's by default.
    pub architecture: Option<String>,
}

/// A container image.
#[derive(Clone, Debug)]
pub struct ContainerImage {
    /// The lowest first; each a tar archive, compressed or not.
    pub layers: Vec<Stretch>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    annotations: HashMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// An index or a manifest: what it has says which.
#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Saved {
    #[serde(default, rename = "RepoTags")]
    tags: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

/// Where the parts of an image are.
enum Parts {
    Folder(PathBuf),
    /// Names in an archive.
    Archive(Stretch, HashMap<String, Stretch>),
}

/// Whether an archive holds an image rather than files.
pub(super) fn is_archive(archive: &Stretch) -> Result<bool, ArchiveError> {
    if !archive.is_tar()? {
        return Ok(false);
    }
    let Ok(members) = members(archive) else { return Ok(false) };
    Ok(members.contains_key("manifest.json") || members.contains_key("oci-layout"))
}

fn members(archive: &Stretch) -> Result<HashMap<String, Stretch>, ArchiveError> {
    let broken = |error: std::io::Error| archive.malformed(error.to_string());
    let mut tar = tar::Archive::new(archive.reader());
    let mut found = HashMap::new();
    let mut links = Vec::new();
    for entry in tar.entries_with_seek().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        let name = |path: &[u8]| {
            let name = String::from_utf8_lossy(path).into_owned();
            name.strip_prefix("./").map_or(name.clone(), str::to_owned)
        };
        let path = name(&entry.path_bytes());
        let kind = entry.header().entry_type();
        if kind.is_file() {
            let part = archive.part(entry.raw_file_position(), entry.size());
            let part = part.ok_or_else(|| archive.malformed(format!("{path} is cut off")))?;
            found.insert(path, part);
        } else if let Some(target) = entry.link_name_bytes() {
            // Older `docker save` stores a layer once and links to it.
            links.push((path, name(&target)));
        }
    }
    for (path, target) in links {
        let beside = Path::new(&path).parent().unwrap_or(Path::new("")).join(&target);
        let plain = normal(&beside);
        let part = found.get(&target).or_else(|| found.get(&plain)).cloned();
        if let Some(part) = part {
            found.insert(path, part);
        }
    }
    Ok(found)
}

/// A path in an archive without its dots.
fn normal(path: &Path) -> String {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(plain.pop()),
            std::path::Component::Normal(name) => plain.push(name),
            _ => {}
        }
    }
    plain.to_string_lossy().into_owned()
}

impl ContainerImage {
    /// Finds an image and its layers; digests are checked where there are some.
    pub fn open(path: &Path, reference: &Reference) -> Result<ContainerImage, ArchiveError> {
        let parts = if path.is_dir() {
            Parts::Folder(path.to_owned())
        } else {
            let archive = Stretch::open(path)?;
            let members = members(&archive)?;
            Parts::Archive(archive, members)
        };
        let saved = match &parts {
            Parts::Archive(_, members) if !members.contains_key("index.json") => {
                members.get("manifest.json")
            }
            _ => None,
        };
        let layers = match saved {
            Some(saved) => parts.saved(saved, path, reference)?,
            None => parts.layout(path, reference)?,
        };
        if layers.len() > MOST_LAYERS {
            let why = format!("{} layers where at most {MOST_LAYERS} make sense", layers.len());
            return Err(ArchiveError::Malformed { path: path.to_owned(), why });
        }
        Ok(ContainerImage { layers })
    }
}

/// The only one, or the one by that name.
fn choose<'a, T>(
    path: &Path,
    all: &'a [T],
    wanted: Option<&str>,
    names: impl Fn(&T) -> Vec<String>,
) -> Result<&'a T, ArchiveError> {
    let found = match (wanted, all) {
        (None, [only]) => Some(only),
        (None, _) => None,
        (Some(wanted), _) => all.iter().find(|one| {
            // Docker writes `NAME:latest` where nobody named a tag.
            names(one).iter().any(|name| name == wanted || *name == format!("{wanted}:latest"))
        }),
    };
    found.ok_or_else(|| ArchiveError::WhichImage {
        path: path.to_owned(),
        there: all.iter().flat_map(names).collect(),
    })
}

impl Parts {
    fn document<T: for<'d> Deserialize<'d>>(from: &Stretch) -> Result<T, ArchiveError> {
        let bytes = from.bytes(LONGEST_DOCUMENT)?;
        serde_json::from_slice(&bytes).map_err(|error| from.malformed(error.to_string()))
    }

    fn saved(
        &self,
        saved: &Stretch,
        path: &Path,
        reference: &Reference,
    ) -> Result<Vec<Stretch>, ArchiveError> {
        let all: Vec<Saved> = Parts::document(saved)?;
        let names = |one: &Saved| one.tags.clone().unwrap_or_default();
        let one = choose(path, &all, reference.name.as_deref(), names)?;
        one.layers.iter().map(|name| self.named(name)).collect()
    }

    fn named(&self, name: &str) -> Result<Stretch, ArchiveError> {
        match self {
            Parts::Folder(folder) => Stretch::open(&folder.join(name)),
            Parts::Archive(archive, members) => members
                .get(name)
                .cloned()
                .ok_or_else(|| archive.malformed(format!("{name} is not in it"))),
        }
    }

    fn layout(&self, path: &Path, reference: &Reference) -> Result<Vec<Stretch>, ArchiveError> {
        let architecture = reference.architecture.as_deref().unwrap_or(this_machine());
        let index: Document = Parts::document(&self.named("index.json")?)?;
        let names = |one: &Descriptor| one.annotations.get(NAME).cloned().into_iter().collect();
        let chosen = choose(path, &index.manifests, reference.name.as_deref(), names)?;
        self.layers(chosen, architecture, DEEPEST)
    }

    /// The layers of a manifest, or of the one in an index that is for this machine.
    fn layers(
        &self,
        of: &Descriptor,
        architecture: &str,
        depth: usize,
    ) -> Result<Vec<Stretch>, ArchiveError> {
        let blob = self.blob(of)?;
        let document: Document = Parts::document(&blob)?;
        if document.manifests.is_empty() {
            return document.layers.iter().map(|layer| self.blob(layer)).collect();
        }
        let fits = |one: &&Descriptor| {
            one.platform.as_ref().is_some_and(|platform| {
                platform.os == "linux" && platform.architecture == architecture
            })
        };
        let depth = depth.checked_sub(1);
        match (document.manifests.iter().find(fits), depth) {
            (Some(found), Some(depth)) => self.layers(found, architecture, depth),
            (Some(_), None) => Err(blob.malformed("an index in too many others".to_owned())),
            (None, _) => {
                let platforms = document.manifests.iter().filter_map(|one| one.platform.as_ref());
                let there = platforms.map(|p| format!("{}/{}", p.os, p.architecture)).collect();
                Err(ArchiveError::WhichImage { path: blob.path().to_owned(), there })
            }
        }
    }

    /// A blob, which is what its digest says.
    fn blob(&self, of: &Descriptor) -> Result<Stretch, ArchiveError> {
        let hex = of
            .digest
            .strip_prefix("sha256:")
            .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let Some(hex) = hex else {
            let path = match self {
                Parts::Folder(folder) => folder.clone(),
                Parts::Archive(archive, _) => archive.path().to_owned(),
            };
            let why = format!("{:?} is no SHA-256 digest", of.digest);
            return Err(ArchiveError::Malformed { path, why });
        };
        let blob = self.named(&format!("blobs/sha256/{hex}"))?;
        if blob.len() != of.size {
            let why = format!("{hex} has {} bytes, its descriptor says {}", blob.len(), of.size);
            return Err(blob.malformed(why));
        }
        let mut digest = Sha256::new();
        let mut reader = blob.reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            let count = reader.read(&mut buffer).map_err(blob.failed("read"))?;
            if count == 0 {
                break;
            }
            digest.update(&buffer[..count]);
        }
        let mut found = String::new();
        for byte in digest.finalize() {
            // Writing to a string cannot fail.
            let _ = write!(found, "{byte:02x}");
        }
        if !found.eq_ignore_ascii_case(hex) {
            return Err(blob.malformed(format!("its digest is {found}, not {hex}")));
        }
        Ok(blob)
    }
}

/// This machine's architecture, as Go names it.
fn this_machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// Adds a blob and returns its descriptor.
    fn blob(folder: &Path, bytes: &[u8], more: &str) -> String {
        let digest = Sha256::digest(bytes);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(folder.join("blobs/sha256").join(&hex), bytes).unwrap();
        format!(r#"{{"digest": "sha256:{hex}", "size": {}{more}}}"#, bytes.len())
    }

    fn layout(architectures: &[&str], layers: &[&[u8]]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path();
        fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
        let layers: Vec<String> = layers.iter().map(|bytes| blob(folder, bytes, "")).collect();
        let manifest = format!(r#"{{"layers": [{}]}}"#, layers.join(", "));
        let manifests: Vec<String> = architectures
            .iter()
            .map(|machine| {
                let more =
                    format!(r#", "platform": {{"os": "linux", "architecture": "{machine}"}}"#);
                blob(folder, manifest.as_bytes(), &more)
            })
            .collect();
        let inner = format!(r#"{{"manifests": [{}]}}"#, manifests.join(", "));
        let name = format!(r#", "annotations": {{"{NAME}": "tool:1"}}"#);
        let outer = format!(r#"{{"manifests": [{}]}}"#, blob(folder, inner.as_bytes(), &name));
        fs::write(folder.join("index.json"), outer).unwrap();
        root
    }

    #[test]
    fn a_layout_has_the_layers_of_the_image_for_this_machine() {
        let machine = this_machine();
        let root = layout(&["other", machine], &[b"lowest", b"highest"]);
        let image = ContainerImage::open(root.path(), &Reference::default()).unwrap();
        let layers: Vec<_> = image.layers.iter().map(|layer| layer.bytes(99).unwrap()).collect();
        assert_eq!(layers, [b"lowest".to_vec(), b"highest".to_vec()]);
        let named = Reference { name: Some("tool:1".into()), ..Reference::default() };
        assert_eq!(ContainerImage::open(root.path(), &named).unwrap().layers.len(), 2);
    }

    #[test]
    fn an_image_that_is_not_there_is_an_error_that_lists_those_that_are() {
        let root = layout(&["z80"], &[b"x"]);
        let error = ContainerImage::open(root.path(), &Reference::default()).unwrap_err();
        assert!(error.to_string().contains("holds 1 images (linux/z80)"), "{error}");
        let named = Reference { name: Some("tool:2".into()), ..Reference::default() };
        let error = ContainerImage::open(root.path(), &named).unwrap_err();
        assert!(error.to_string().contains("(tool:1)"), "{error}");
    }

    #[test]
    fn a_blob_with_another_digest_is_refused() {
        let root = layout(&[this_machine()], &[b"honest"]);
        for entry in fs::read_dir(root.path().join("blobs/sha256")).unwrap() {
            let path = entry.unwrap().path();
            if fs::read(&path).unwrap() == b"honest" {
                fs::write(path, b"forged").unwrap();
            }
        }
        let error = ContainerImage::open(root.path(), &Reference::default()).unwrap_err();
        assert!(error.to_string().contains("its digest is"), "{error}");
    }

    #[test]
    fn a_saved_archive_has_layers_and_links_to_them() {
        let manifest = br#"[{"Config": "c", "RepoTags": ["a:latest"], "Layers": ["1/l", "2/l"]}]"#;
        let bytes = tar(&[("1/l", b"one"), ("2/l", b"two"), ("manifest.json", manifest)]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.tar");
        fs::write(&path, bytes).unwrap();
        let named = Reference { name: Some("a".into()), ..Reference::default() };
        let image = ContainerImage::open(&path, &named).unwrap();
        let layers: Vec<_> = image.layers.iter().map(|layer| layer.bytes(99).unwrap()).collect();
        assert_eq!(layers, [b"one".to_vec(), b"two".to_vec()]);
        assert_eq!(super::super::Looks::of(&path).unwrap(), super::super::Looks::ContainerImage);
    }

    #[test]
    fn an_archive_that_is_cut_off_is_an_error() {
        let manifest = br#"[{"Layers": ["1/l"]}]"#;
        let bytes = tar(&[("manifest.json", manifest), ("1/l", &[7; 5000])]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.tar");
        fs::write(&path, &bytes[..4000]).unwrap();
        assert!(ContainerImage::open(&path, &Reference::default()).is_err());
    }
}
