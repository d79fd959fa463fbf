//! The x86 boot image (`bzImage`, `vmlinuz`): a header that names the kernel, and a compressed
//! `vmlinux` inside. Offsets are those of the kernel's `Documentation/arch/x86/boot.rst`.
//!
//! | offset | size | field          | meaning                                                |
//! |-------:|-----:|----------------|--------------------------------------------------------|
//! |  0x1f1 |    1 | setup_sects    | real-mode code in sectors, less the first; 0 means 4    |
//! |  0x1fe |    2 | boot_flag      | `55 aa`                                                 |
//! |  0x202 |    4 | header         | `HdrS`                                                  |
//! |  0x206 |    2 | version        | of this protocol                                        |
//! |  0x20e |    2 | kernel_version | where the release string is, less 0x200; 0 means none   |
//! |  0x248 |    4 | payload_offset | from the end of the real-mode code (2.08 and later)     |
//! |  0x24c |    4 | payload_length | in bytes (2.08 and later)                               |

use std::ops::Range;

use super::compression::{Compression, decompress};

/// A `vmlinux` is some 60 MB; with every debugging option, some hundreds.
pub(crate) const VMLINUX_LIMIT: u64 = 1 << 30;

const RELEASE_LIMIT: usize = 128;

/// What the header of a boot image says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootHeader {
    /// What `uname -r` will say.
    pub release: String,
    /// Protocol version, `0x020f` for 2.15.
    pub protocol: u16,
    /// Where in the file the compressed `vmlinux` is; none in images too old to say.
    pub payload: Option<Range<usize>>,
}

/// Why bytes are not a boot image that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotABootImage {
    /// The magic numbers are missing.
    #[error("it is not an x86 Linux boot image{}", hint(.0))]
    Magic(&'static str),
    /// The header points outside the file, or at nothing.
    #[error("its boot header is damaged: {0}")]
    Damaged(&'static str),
}

fn hint(found: &str) -> String {
    if found.is_empty() { String::new() } else { format!(" ({found})") }
}

/// Reads the header of a whole boot image.
pub fn parse(image: &[u8]) -> Result<BootHeader, NotABootImage> {
    if image.starts_with(b"\x7fELF") {
        let found = "it is an ELF file: name the bzImage or vmlinuz made from this vmlinux";
        return Err(NotABootImage::Magic(found));
    }
    if image.get(0x1fe..0x200) != Some(&[0x55, 0xaa]) || image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(NotABootImage::Magic(""));
    }
    let damaged = NotABootImage::Damaged;
    let word = |at: usize| Some(u16::from_le_bytes(*image.get(at..)?.first_chunk()?));
    let long = |at: usize| {
        let value = u32::from_le_bytes(*image.get(at..)?.first_chunk()?);
        usize::try_from(value).ok()
    };
    let cut = || damaged("the file ends within it");
    let protocol = word(0x206).ok_or_else(cut)?;
    let text = match word(0x20e).ok_or_else(cut)? {
        0 => return Err(damaged("it does not say which kernel this is")),
        at => image.get(usize::from(at) + 0x200..).ok_or_else(cut)?,
    };
    let end = text.iter().take(RELEASE_LIMIT).position(|byte| matches!(byte, b' ' | 0));
    let release = end.and_then(|end| std::str::from_utf8(&text[..end]).ok()).unwrap_or("");
    if !is_release(release) {
        return Err(damaged("its release string makes no sense"));
    }
    let mut payload = None;
    if protocol >= 0x0208 {
        let sectors = match image[0x1f1] {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let start = long(0x248).and_then(|at| at.checked_add((sectors + 1) * 512));
        let range = start.zip(long(0x24c)).and_then(|(at, len)| Some(at..at.checked_add(len)?));
        let range = range.filter(|range| range.end <= image.len());
        payload = Some(range.ok_or_else(|| damaged("the kernel in it reaches past the file"))?);
    }
    Ok(BootHeader { release: release.to_owned(), protocol, payload })
}

/// Whether `text` can be a release: it becomes a directory's name.
pub(crate) fn is_release(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '~');
    !text.is_empty()
        && text.len() < RELEASE_LIMIT
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(allowed)
}

/// Unpacks the `vmlinux` in a boot image, or says why that cannot be done.
pub(super) fn vmlinux(image: &[u8]) -> Result<Vec<u8>, String> {
    let header = parse(image).map_err(|error| error.to_string())?;
    let Some(payload) = header.payload else {
        return Err("its boot protocol is too old to say where the kernel is".to_owned());
    };
    let packed = &image[payload];
    let format = Compression::of(packed);
    let plain = decompress(packed, VMLINUX_LIMIT)
        .map_err(|error| format!("its kernel ({format}) cannot be unpacked: {error}"))?;
    if !plain.starts_with(b"\x7fELF") {
        return Err(format!("its kernel ({format}) does not unpack to an ELF file"));
    }
    Ok(plain)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A boot image of `release` that holds `payload`.
    pub(crate) fn boot_image(release: &str, payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        let text = format!("{release} (builder@host) #1 SMP");
        image[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
        let len = u32::try_from(payload.len()).unwrap();
        image[0x248..0x24c].copy_from_slice(&0_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&len.to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_header_names_the_kernel_and_finds_its_payload() {
        let plain = b"\x7fELF, but not much of it";
        let image = boot_image("6.12.1-test+", &zstd::encode_all(&plain[..], 3).unwrap());
        let header = parse(&image).unwrap();
        assert_eq!(header.release, "6.12.1-test+");
        assert_eq!(header.protocol, 0x020f);
        assert_eq!(header.payload.unwrap().start, 1024);
        assert_eq!(vmlinux(&image).unwrap(), plain);
    }

    #[test]
    fn what_is_no_boot_image_is_told_apart() {
        let good = boot_image("6.1.0", b"");
        let mut past = good.clone();
        past[0x24c] = 1;
        let mut escape = good.clone();
        escape[0x300..0x306].copy_from_slice(b"../../");
        let mut nameless = good.clone();
        nameless[0x20e] = 0;
        nameless[0x20f] = 0;
        let errors: Vec<String> =
            [b"\x7fELF\x02".to_vec(), b"#!/bin/sh".to_vec(), past, escape, nameless]
                .iter()
                .map(|image| parse(image).unwrap_err().to_string())
                .collect();
        insta::assert_snapshot!(errors.join("\n"));
    }

    #[test]
    fn no_truncation_panics() {
        let image = boot_image("6.1.0", b"payload");
        for len in 0..image.len() {
            let _ = parse(&image[..len]);
        }
        assert!(vmlinux(&image).unwrap_err().contains("does not unpack to an ELF file"));
    }
}
