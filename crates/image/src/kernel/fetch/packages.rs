//! Debian's package lists: paragraphs of `Key: value` lines, one paragraph a package.

use crate::kernel::boot_image::is_release;

/// A kernel package of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// `linux-image-6.1.0-56-cloud-amd64`.
    pub name: String,
    /// The kernel's release, from the name.
    pub release: String,
    /// The package's version.
    pub version: String,
    /// Where it is, relative to the mirror.
    pub filename: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256, in lower-case hexadecimal.
    pub sha256: String,
}

/// The kernel packages of a list. Paragraphs that lack a field, or hold what cannot be one, are
/// skipped; so are kernels that are not signed, have debugging symbols, or are another machine's.
pub fn parse(list: &str) -> Vec<Package> {
    list.split("\n\n").filter_map(paragraph).collect()
}

fn paragraph(text: &str) -> Option<Package> {
    let field = |name: &str| {
        text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.trim()))
    };
    let name = field("Package")?;
    let release = name.strip_prefix("linux-image-")?;
    let odd = ["-dbg", "-unsigned", "-dbgsym"].iter().any(|ending| name.ends_with(ending));
    let sha256 = field("SHA256")?.to_ascii_lowercase();
    let filename = field("Filename")?;
    let sound = is_release(release)
        && !odd
        && release.starts_with(|c: char| c.is_ascii_digit())
        && sha256.len() == 64
        && sha256.bytes().all(|byte| byte.is_ascii_hexdigit())
        // It becomes part of a URL and of a command line.
        && filename.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !filename.contains("..")
        && filename.bytes().all(|b| b.is_ascii_graphic());
    let version = field("Version")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || ".+-~:_".contains(c);
    (sound && version.starts_with(|c: char| c.is_ascii_digit()) && version.chars().all(plain))
        .then(|| {
            Some(Package {
                name: name.to_owned(),
                release: release.to_owned(),
                version: version.to_owned(),
                filename: filename.to_owned(),
                size: field("Size")?.parse().ok()?,
                sha256,
            })
        })?
}
