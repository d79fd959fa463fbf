//! Debian's package lists: paragraphs of `Key: value` lines, one paragraph a package.
//!
//! A kernel is one package, `linux-image-RELEASE`; since 6.19 that one is empty and needs others:
//! `linux-binary-RELEASE` with the boot image, `linux-modules-RELEASE`, and `linux-base-RELEASE` with
//! the lists of what is built in.

use crate::kernel::boot_image::is_release;

/// How the names of packages which hold (parts of) kernels begin.
pub(super) const PREFIXES: [&str; 4] =
    ["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"];

/// A kernel of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// `linux-image-6.1.0-56-cloud-amd64`.
    pub name: String,
    /// The kernel's release, from the name.
    pub release: String,
    /// The version of the package, and of its parts.
    pub version: String,
    /// The packages that hold its files.
    pub parts: Vec<Part>,
}

/// One package to download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it is, relative to the mirror.
    pub filename: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256, in lower-case hexadecimal.
    pub sha256: String,
}

impl Package {
    /// The digests of all parts, joined by `+`.
    pub(super) fn sha256(&self) -> String {
        let digests: Vec<&str> = self.parts.iter().map(|part| part.sha256.as_str()).collect();
        digests.join("+")
    }
}

/// The kernels of a list. Paragraphs that lack a field, or hold what cannot be one, are skipped; so
/// are kernels that are not signed, have debugging symbols, or are another machine's.
pub fn parse(list: &str) -> Vec<Package> {
    let mut found: Vec<(&str, &str, Part)> = list.split("\n\n").filter_map(paragraph).collect();
    found.sort_by(|a, b| a.2.name.cmp(&b.2.name).then_with(|| a.2.version.cmp(&b.2.version)));
    let part = |prefix: &str, release: &str, version: &str| {
        let name = format!("{prefix}{release}");
        let key = |(_, _, part): &(&str, &str, Part)| {
            (part.name.as_str(), part.version.as_str()).cmp(&(&name, version))
        };
        found.binary_search_by(key).ok().map(|at| found[at].2.clone())
    };
    let images = found.iter().filter(|(prefix, _, _)| *prefix == PREFIXES[0]);
    images
        .map(|(_, release, image)| {
            let parts: Vec<Part> = PREFIXES[1..]
                .iter()
                .filter_map(|prefix| part(prefix, release, &image.version))
                .collect();
            Package {
                name: image.name.clone(),
                release: (*release).to_owned(),
                version: image.version.clone(),
                parts: if parts.is_empty() { vec![image.clone()] } else { parts },
            }
        })
        .collect()
}

/// Prefix, release and the package of a paragraph.
fn paragraph(text: &str) -> Option<(&'static str, &str, Part)> {
    let field = |name: &str| {
        text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.trim()))
    };
    let name = field("Package")?;
    let prefix = PREFIXES.into_iter().find(|prefix| name.starts_with(prefix))?;
    let release = &name[prefix.len()..];
    let odd = ["-dbg", "-unsigned", "-dbgsym"].iter().any(|ending| name.ends_with(ending));
    let sha256 = field("SHA256")?.to_ascii_lowercase();
    let (filename, version) = (field("Filename")?, field("Version")?);
    let plain = |c: char| c.is_ascii_alphanumeric() || ".+-~:_".contains(c);
    let sound = is_release(release)
        && !odd
        && release.starts_with(|c: char| c.is_ascii_digit())
        && sha256.len() == 64
        && sha256.bytes().all(|byte| byte.is_ascii_hexdigit())
        // They become parts of a URL and of a command line.
        && filename.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !filename.contains("..")
        && filename.bytes().all(|byte| byte.is_ascii_graphic())
        && version.starts_with(|c: char| c.is_ascii_digit())
        && version.chars().all(plain);
    if !sound {
        return None;
    }
    let part = Part {
        name: name.to_owned(),
        version: version.to_owned(),
        filename: filename.to_owned(),
        size: field("Size")?.parse().ok()?,
        sha256,
    };
    Some((prefix, release, part))
}
