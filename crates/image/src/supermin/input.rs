//! What a supermin appliance is made of: files that name packages, host files and exclusions, and archives. What a
//! file is shows in how it begins, not in its name.
//!
//! | begins with       | is                                                                      |
//! |-------------------|-------------------------------------------------------------------------|
//! | a letter or digit | packages, one to a line                                                 |
//! | `/`               | files of the host, one to a line, wildcards allowed                     |
//! | `-`               | what to leave out of the packages: each line `-` and a wildcard         |
//! | a tar header      | an archive that is unpacked first                                       |
//! | nothing at all    | nothing                                                                 |
//!
//! Any of these may be compressed.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::SuperminError;
use crate::archive::Stretch;
use crate::closure::host::Input;
use crate::kernel::Compression;

/// Directories in directories, at most so deep.
const DEEPEST: usize = 32;
/// A list of names is no longer.
const LONGEST: u64 = 64 << 20;
/// A tar header.
const HEADER: u64 = 512;
/// Where the magic of a tar header is.
const TAR_MAGIC: usize = 257;

/// A supermin appliance, read.
#[derive(Debug, Default)]
pub(super) struct Appliance {
    /// Names of packages.
    pub(super) packages: Vec<String>,
    /// Absolute paths, perhaps with wildcards.
    pub(super) host_files: Vec<String>,
    /// Wildcards.
    pub(super) excluded: Vec<String>,
    /// Archives, in the order in which they lie over each other.
    pub(super) bases: Vec<Stretch>,
    /// What was read to know all this.
    pub(super) looked_at: Vec<Input>,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Packages,
    HostFiles,
    Excluded,
    Base,
    Empty,
}

impl Kind {
    /// The word supermin has for it.
    fn word(self) -> &'static str {
        match self {
            Kind::Packages => "packages",
            Kind::HostFiles => "hostfiles",
            Kind::Excluded => "excludefiles",
            Kind::Base => "base image (tar)",
            Kind::Empty => "empty",
        }
    }

    /// From how a file begins, uncompressed.
    pub(super) fn of(start: &[u8]) -> Result<Kind, &'static str> {
        if start.get(TAR_MAGIC..TAR_MAGIC + 5) == Some(b"ustar") {
            return Ok(Kind::Base);
        }
        match start {
            [] => Ok(Kind::Empty),
            [b'0', b'7', b'0', b'7', b'0', b'1' | b'2' | b'7', ..] => {
                Err("it is a cpio archive; make it a tar archive")
            }
            [b'/', _, ..] => Ok(Kind::HostFiles),
            [b'-', _, ..] => Ok(Kind::Excluded),
            [byte, ..] if byte.is_ascii_alphanumeric() => Ok(Kind::Packages),
            _ => Err(
                "it names neither packages nor host files nor exclusions, and is no tar archive",
            ),
        }
    }
}

impl Appliance {
    /// Reads files and directories, the latter in the order of their names.
    pub(super) fn read(
        inputs: &[PathBuf],
        tell: &mut dyn FnMut(&str),
    ) -> Result<Appliance, SuperminError> {
        let mut appliance = Appliance::default();
        for input in inputs {
            appliance.visit(input, DEEPEST, tell)?;
        }
        Ok(appliance)
    }

    fn visit(
        &mut self,
        path: &Path,
        depth: usize,
        tell: &mut dyn FnMut(&str),
    ) -> Result<(), SuperminError> {
        let failed = |source| SuperminError::host("read", path, source);
        let is_folder = fs::metadata(path).map_err(failed)?.is_dir();
        self.looked_at.push(Input::look(path, is_folder).map_err(failed)?);
        if !is_folder {
            return self.file(path, tell);
        }
        let Some(depth) = depth.checked_sub(1) else {
            let why = "directories lie in it too deeply".to_owned();
            return Err(SuperminError::Input { path: path.to_owned(), why });
        };
        let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut paths: Vec<PathBuf> =
            entries.map_err(failed)?.iter().map(fs::DirEntry::path).collect();
        paths.sort();
        for path in paths {
            self.visit(&path, depth, tell)?;
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, tell: &mut dyn FnMut(&str)) -> Result<(), SuperminError> {
        let wrong = |why: String| SuperminError::Input { path: path.to_owned(), why };
        let failed = |source| SuperminError::host("read", path, source);
        let file = Stretch::open(path).map_err(crate::ext2::Ext2Error::from)?;
        let open = || -> io::Result<Box<dyn io::Read + '_>> {
            let mut start = Vec::new();
            file.reader().take(8).read_to_end(&mut start)?;
            Compression::of(&start).reader(file.reader())
        };
        let mut start = Vec::new();
        open().and_then(|plain| plain.take(HEADER).read_to_end(&mut start)).map_err(failed)?;
        let kind = Kind::of(&start).map_err(|why| wrong(why.to_owned()))?;
        tell(&format!("build: visiting {} type {}", path.display(), kind.word()));
        let lines = || -> Result<Vec<String>, SuperminError> {
            let mut bytes = Vec::new();
            open().and_then(|plain| plain.take(LONGEST).read_to_end(&mut bytes)).map_err(failed)?;
            let text = String::from_utf8(bytes).map_err(|error| wrong(error.to_string()))?;
            Ok(text
                .lines()
                .map(str::trim_end)
                .filter(|line| !line.is_empty())
                .map(str::to_owned)
                .collect())
        };
        match kind {
            Kind::Empty => {}
            Kind::Base => self.bases.push(file.clone()),
            Kind::Packages => self.packages.extend(lines()?),
            Kind::HostFiles => {
                for line in lines()? {
                    if !line.starts_with('/') {
                        return Err(wrong(format!("{line:?} does not begin with '/'")));
                    }
                    self.host_files.push(line);
                }
            }
            Kind::Excluded => {
                for line in lines()? {
                    let pattern = line.strip_prefix('-');
                    let pattern = pattern
                        .ok_or_else(|| wrong(format!("{line:?} does not begin with '-'")))?;
                    self.excluded.push(pattern.to_owned());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_a_file_is_shows_in_how_it_begins() {
        let here = tempfile::tempdir().unwrap();
        let folder = here.path().join("supermin.d");
        fs::create_dir_all(folder.join("more")).unwrap();
        fs::write(folder.join("anything"), "bash\n\ncoreutils\n").unwrap();
        fs::write(folder.join("zz-hostfiles"), "/etc/*.conf\n/etc/passwd\n").unwrap();
        fs::write(folder.join("empty"), "").unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"-/usr/share/doc/*\n").unwrap();
        fs::write(folder.join("more/excludefiles.gz"), packed.finish().unwrap()).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        tar.append_data(&mut header, "init", &b"#!"[..]).unwrap();
        fs::write(folder.join("base.tar"), tar.into_inner().unwrap()).unwrap();
        let mut told = Vec::new();
        let read = Appliance::read(&[folder], &mut |line| told.push(line.to_owned())).unwrap();
        assert_eq!(read.packages, ["bash", "coreutils"]);
        assert_eq!(read.host_files, ["/etc/*.conf", "/etc/passwd"]);
        assert_eq!(read.excluded, ["/usr/share/doc/*"]);
        assert_eq!(read.bases.len(), 1);
        assert_eq!(told.len(), 5);
        assert_eq!(read.looked_at.iter().filter(|input| input.listed).count(), 2);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let here = tempfile::tempdir().unwrap();
        for (text, says) in [
            ("070701rest", "cpio"),
            ("\u{1}\u{2}", "neither packages"),
            ("/etc/passwd\nrelative", "does not begin with '/'"),
            ("-/usr\n/usr", "does not begin with '-'"),
        ] {
            let path = here.path().join("file");
            fs::write(&path, text).unwrap();
            let error = Appliance::read(&[path], &mut |_| {}).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
