//! Reading a Debian package: an `ar` archive whose member `data.tar.*` holds the files.
//!
//! One pass over a stream, bounded in every direction. Only plain files are given out, and only
//! under paths that stay below where they are put: a kernel package needs no links, no devices.

use std::io::{self, Read};

use super::compression::Compression;

/// Bounds on what a package may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all files together, unpacked, with what tar adds.
    pub bytes: u64,
    /// Number of entries.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { bytes: 8 << 30, entries: 200_000 }
    }
}

const AR_MAGIC: &[u8; 8] = b"!<arch>\n";
const NAME_LIMIT: u64 = 4096;

/// Why a package was refused.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// It is not built like a package.
    #[error("it is not a Debian package: {0}")]
    Damaged(&'static str),
    /// It holds more than a package may.
    #[error("it holds more than {0}")]
    TooMuch(String),
    /// A path that leads elsewhere.
    #[error("it holds a file with the unsafe path {0:?}")]
    UnsafePath(String),
    /// It cannot be read, or what was read from it cannot be stored.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One file of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebFile {
    /// Relative, without `.` and `..`: `boot/vmlinuz-6.1.0`.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
}

/// Reads a package, giving each plain file in it to `each`, which may read its bytes.
pub fn read_deb(
    mut deb: impl Read,
    limits: Limits,
    each: &mut dyn FnMut(&DebFile, &mut dyn Read) -> io::Result<()>,
) -> Result<(), DebError> {
    let mut magic = [0; 8];
    deb.read_exact(&mut magic).map_err(|_| DebError::Damaged("it is too short"))?;
    if &magic != AR_MAGIC {
        return Err(DebError::Damaged("the archive's magic number is missing"));
    }
    // A package has three members; a few more are allowed by the format.
    for _ in 0..16 {
        let mut header = [0; 60];
        deb.read_exact(&mut header).map_err(|_| DebError::Damaged("data.tar is missing"))?;
        let (name, size) = ar_member(&header).ok_or(DebError::Damaged("a member's header"))?;
        if name.starts_with("data.tar") {
            let mut member = deb.take(size);
            let mut start = Vec::new();
            member.by_ref().take(8).read_to_end(&mut start)?;
            if start.len() < 8 {
                return Err(DebError::Damaged("data.tar is cut short"));
            }
            let format = Compression::of(&start);
            let plain = format.reader(io::Cursor::new(start).chain(member))?;
            return read_tar(plain, limits, each);
        }
        // Members start at even offsets.
        let skip = size.checked_add(size % 2).ok_or(DebError::Damaged("a member's size"))?;
        if io::copy(&mut deb.by_ref().take(skip), &mut io::sink())? < skip {
            return Err(DebError::Damaged("a member is cut short"));
        }
    }
    Err(DebError::Damaged("data.tar is missing"))
}

/// Name and size from an `ar` header: 16 bytes name, 32 of no interest, 10 size, 2 end mark.
fn ar_member(header: &[u8; 60]) -> Option<(String, u64)> {
    let text = std::str::from_utf8(header).ok()?;
    if !text.ends_with("`\n") {
        return None;
    }
    let name = text.get(..16)?.trim_end().trim_end_matches('/').to_owned();
    let size = text.get(48..58)?.trim_end();
    size.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| size.parse().ok())?
        .map(|size| (name, size))
}

fn read_tar(
    plain: impl Read,
    limits: Limits,
    each: &mut dyn FnMut(&DebFile, &mut dyn Read) -> io::Result<()>,
) -> Result<(), DebError> {
    let mut archive = tar::Archive::new(Bounded { from: plain, left: limits.bytes });
    let mut long_name = None;
    // Raw entries: the crate would read a long name of any length into memory.
    for (number, entry) in (0_u64..).zip(archive.entries()?.raw(true)) {
        if number >= limits.entries {
            return Err(DebError::TooMuch(format!("{} files", limits.entries)));
        }
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
            let text = super::compression::read_bounded(&mut entry, NAME_LIMIT)?;
            long_name = if kind.is_gnu_longname() {
                Some(text.split(|&byte| byte == 0).next().unwrap_or_default().to_vec())
            } else {
                pax_path(&text)
            };
            continue;
        }
        let name = match long_name.take() {
            Some(name) => name,
            None => entry.header().path_bytes().into_owned(),
        };
        if !kind.is_file() {
            continue;
        }
        let size = entry.header().entry_size()?;
        let path = safe(&name)?;
        each(&DebFile { path, size }, &mut entry)?;
    }
    Ok(())
}

/// The value of `path` in pax records, `LEN path=VALUE\n`.
fn pax_path(records: &[u8]) -> Option<Vec<u8>> {
    let mut lines = records.split(|&byte| byte == b'\n');
    lines.find_map(|line| {
        let space = line.iter().position(|&byte| byte == b' ')?;
        line[space + 1..].strip_prefix(b"path=").map(<[u8]>::to_vec)
    })
}

/// A path relative to where a package is unpacked, which does not leave it.
fn safe(name: &[u8]) -> Result<String, DebError> {
    let text = String::from_utf8_lossy(name);
    let mut parts = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(DebError::UnsafePath(text.chars().take(200).collect())),
            part if part.contains('\0') => {
                return Err(DebError::UnsafePath(text.chars().take(200).collect()));
            }
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        return Err(DebError::UnsafePath(String::new()));
    }
    Ok(parts.join("/"))
}

/// Fails, rather than ends, when its bound is reached.
struct Bounded<R> {
    from: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buf)?;
        let count = u64::try_from(read).map_err(io::Error::other)?;
        self.left = self.left.checked_sub(count).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                "it unpacks to more than a package may hold",
            )
        })?;
        Ok(read)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A package with these files, its data packed by `pack`.
    pub(crate) fn deb(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(u64::try_from(bytes.len()).unwrap());
            header.set_mode(0o644);
            if path.len() > 99 || path.starts_with('/') || path.contains("..") {
                // As an evil packer would: the crate refuses to write such names.
                header.as_mut_bytes()[..path.len().min(99)]
                    .copy_from_slice(&path.as_bytes()[..path.len().min(99)]);
                header.set_cksum();
                if path.len() > 99 {
                    tar.append_data(&mut header, path, *bytes).unwrap();
                } else {
                    tar.append(&header, *bytes).unwrap();
                }
            } else {
                tar.append_data(&mut header, path, *bytes).unwrap();
            }
        }
        let data = zstd::encode_all(&tar.into_inner().unwrap()[..], 1).unwrap();
        let mut ar = AR_MAGIC.to_vec();
        for (name, bytes) in
            [("debian-binary", &b"2.0\n"[..]), ("control.tar.xz", b"odd"), ("data.tar.zst", &data)]
        {
            let header =
                format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, bytes.len());
            ar.extend(header.bytes());
            ar.extend_from_slice(bytes);
            if bytes.len() % 2 == 1 {
                ar.push(b'\n');
            }
        }
        ar
    }

    fn files(deb: &[u8], limits: Limits) -> Result<Vec<(String, Vec<u8>)>, DebError> {
        let mut found = Vec::new();
        read_deb(deb, limits, &mut |file, bytes| {
            let mut all = Vec::new();
            bytes.read_to_end(&mut all)?;
            found.push((file.path.clone(), all));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn files_come_out_as_they_went_in_also_under_long_names() {
        let long = format!("lib/modules/{}/x.ko", "long/".repeat(40));
        let deb = deb(&[("./boot/vmlinuz-6.1.0", b"kernel"), (&long, b"module")]);
        let expected = vec![
            ("boot/vmlinuz-6.1.0".to_owned(), b"kernel".to_vec()),
            (long.replace("//", "/"), b"module".to_vec()),
        ];
        assert_eq!(files(&deb, Limits::default()).unwrap(), expected);
    }

    #[test]
    fn a_path_that_climbs_is_refused() {
        let error = files(&deb(&[("boot/../../etc/passwd", b"x")]), Limits::default()).unwrap_err();
        assert!(matches!(error, DebError::UnsafePath(_)), "{error}");
        let inside = files(&deb(&[("/etc/passwd", b"x")]), Limits::default()).unwrap();
        assert_eq!(inside[0].0, "etc/passwd");
    }

    #[test]
    fn a_package_that_unpacks_to_too_much_is_refused() {
        let deb = deb(&[("a", &[0; 100_000]), ("b", b"")]);
        assert!(files(&deb, Limits { bytes: 50_000, entries: 10 }).is_err());
        assert!(matches!(
            files(&deb, Limits { bytes: 1 << 20, entries: 1 }),
            Err(DebError::TooMuch(_))
        ));
    }

    #[test]
    fn no_truncation_panics_and_none_goes_unnoticed() {
        let deb = deb(&[("boot/a", b"some bytes")]);
        for len in 0..deb.len() - 1 {
            assert!(files(&deb[..len], Limits::default()).is_err(), "cut at {len}");
        }
    }
}
