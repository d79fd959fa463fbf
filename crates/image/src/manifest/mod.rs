//! The manifest: what a guest should hold, as a person writes it (`docs/manifest.md`).
//!
//! The same table is a file of its own, and the `[guest]` table of a scenario. [`Manifest::parse`] reads
//! one; [`Contents::load`] reads one with everything it includes.

mod contents;
mod document;
mod shipped;

use std::path::{Path, PathBuf};

pub use contents::Contents;
pub use shipped::names as shipped_names;

use crate::base::Source;
use crate::inventory::GuestPath;
use document::{Document, Table};

/// Larger manifests are refused: they are written by hand.
const SIZE_LIMIT: u64 = 1 << 20;

/// The text of a manifest and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestSource {
    /// How errors name it.
    pub name: String,
    /// The text.
    pub text: String,
    /// Where relative sources and includes are looked up. None for a manifest that ships with Kiln,
    /// which has neither relative sources nor neighbours.
    pub folder: Option<PathBuf>,
    /// Whether the manifest is all of the text, or its table `[guest]`.
    pub part: Part,
}

/// Which part of a text is the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The table `[guest]`; without it, the manifest is empty. Other tables are somebody else's.
    GuestTable,
}

impl ManifestSource {
    /// Reads a manifest file.
    pub fn read(path: &Path) -> Result<ManifestSource, ManifestError> {
        ManifestSource::read_part(path, Part::Whole)
    }

    /// Reads the `[guest]` table of a scenario file.
    pub fn read_scenario(path: &Path) -> Result<ManifestSource, ManifestError> {
        ManifestSource::read_part(path, Part::GuestTable)
    }

    /// The `[guest]` table of a scenario whose text has been read already. Relative sources are
    /// looked up in `folder`.
    pub fn of_scenario(name: String, text: String, folder: Option<PathBuf>) -> ManifestSource {
        ManifestSource { name, text, folder, part: Part::GuestTable }
    }

    /// A manifest that ships with Kiln, such as `base`.
    pub fn shipped(name: &str) -> Option<ManifestSource> {
        let (name, text) = shipped::find(name)?;
        Some(ManifestSource {
            name: format!("{name} (shipped with Kiln)"),
            text: text.to_owned(),
            folder: None,
            part: Part::Whole,
        })
    }

    fn read_part(path: &Path, part: Part) -> Result<ManifestSource, ManifestError> {
        use std::io::Read as _;
        let failed = |source| ManifestError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(SIZE_LIMIT + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > SIZE_LIMIT {
            return Err(ManifestError::TooLarge { path: path.to_owned() });
        }
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        Ok(ManifestSource { name: path.display().to_string(), text, folder: Some(folder), part })
    }
}

/// One manifest, checked. Sources are absolute or relative to the process, not to the manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    pub(crate) include: Vec<String>,
    pub(crate) bases: Vec<Source>,
    pub(crate) packages: Vec<Wanted>,
    pub(crate) host_files: Vec<Wanted>,
    pub(crate) binaries: Vec<Wanted>,
    pub(crate) libraries: Vec<Wanted>,
    pub(crate) modules: Vec<Wanted>,
    pub(crate) firmware: Vec<Wanted>,
    pub(crate) files: Vec<PlacedFile>,
    pub(crate) trees: Vec<PlacedTree>,
    pub(crate) symlinks: Vec<PlacedLink>,
    pub(crate) directories: Vec<GuestPath>,
    pub(crate) exclude: Vec<String>,
}

/// A name that is looked up on the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wanted {
    /// What to look up.
    pub name: String,
    /// Written with a leading `?`: whatever cannot be found is left out with a note.
    pub optional: bool,
}

impl Wanted {
    /// What a person wrote, perhaps with a leading `?`.
    pub fn written(text: &str) -> Wanted {
        match text.strip_prefix('?') {
            Some(name) => Wanted { name: name.to_owned(), optional: true },
            None => Wanted { name: text.to_owned(), optional: false },
        }
    }
}

/// A file at a place of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlacedFile {
    pub(crate) path: GuestPath,
    pub(crate) content: PlacedContent,
    pub(crate) mode: Option<u32>,
    pub(crate) optional: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlacedContent {
    Source(PathBuf),
    Text(String),
}

/// A directory of the host with everything in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlacedTree {
    pub(crate) path: GuestPath,
    pub(crate) source: PathBuf,
    pub(crate) optional: bool,
    /// Whether executables in it bring their libraries and interpreters along.
    pub(crate) programs: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlacedLink {
    pub(crate) path: GuestPath,
    pub(crate) target: String,
}

/// Why a manifest was refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It could not be read.
    #[error("cannot read manifest {path}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It is far larger than a person writes.
    #[error("manifest {path} is larger than 1 MiB", path = path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// Something in it makes no sense.
    #[error("{file} line {line}: {what}")]
    Wrong {
        /// Which manifest.
        file: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// An included manifest is nowhere.
    #[error(
        "{file} includes {wanted:?}, which is neither {beside} nor one of those that ship with Kiln ({shipped})"
    )]
    NoSuchInclude {
        /// Who includes it.
        file: String,
        /// What it asked for.
        wanted: String,
        /// Where it was looked for.
        beside: String,
        /// Those that could have been meant.
        shipped: String,
    },
    /// Manifests include each other.
    #[error("manifests include each other: {chain}")]
    Cycle {
        /// From the first to itself.
        chain: String,
    },
    /// Includes are nested too deeply to be meant.
    #[error("{file} is included more than 16 manifests deep")]
    TooDeep {
        /// Where following was given up.
        file: String,
    },
}

const KEYS: [&str; 13] = [
    "include",
    "bases",
    "packages",
    "host_files",
    "binaries",
    "libraries",
    "modules",
    "firmware",
    "files",
    "trees",
    "symlinks",
    "directories",
    "exclude",
];

impl Manifest {
    /// Reads and checks one manifest; includes are named, not followed.
    pub fn parse(source: &ManifestSource) -> Result<Manifest, ManifestError> {
        let document = Document { name: &source.name, text: &source.text };
        let root = document.parse()?;
        let table = match source.part {
            Part::Whole => document.table(root.get_ref(), 0, "a manifest", &KEYS)?,
            Part::GuestTable => {
                let found = root.get_ref().iter().find(|(key, _)| key.get_ref() == "guest");
                let Some((_, guest)) = found else { return Ok(Manifest::default()) };
                let at = guest.span().start;
                let Some(guest) = guest.get_ref().as_table() else {
                    return Err(document.wrong(at, "`guest` is a table: write [guest]".to_owned()));
                };
                document.table(guest, at, "[guest]", &KEYS)?
            }
        };
        let folder = source.folder.as_deref();
        Ok(Manifest {
            include: table.texts("include")?.into_iter().map(|(_, name)| name.to_owned()).collect(),
            bases: bases(&table, folder)?,
            packages: wanted(&table, "packages")?,
            host_files: wanted(&table, "host_files")?,
            binaries: wanted(&table, "binaries")?,
            libraries: wanted(&table, "libraries")?,
            modules: wanted(&table, "modules")?,
            firmware: wanted(&table, "firmware")?,
            files: files(&table, folder)?,
            trees: trees(&table, folder)?,
            symlinks: symlinks(&table)?,
            directories: table
                .texts("directories")?
                .into_iter()
                .map(|(at, path)| guest_path(path).map_err(|what| table.at(at, what)))
                .collect::<Result<_, _>>()?,
            exclude: excludes(&table)?,
        })
    }
}

fn wanted(table: &Table<'_>, key: &str) -> Result<Vec<Wanted>, ManifestError> {
    let item = |(at, text): (usize, &str)| {
        let wanted = Wanted::written(text);
        let name = wanted.name.as_str();
        let usable = !name.is_empty() && name.len() <= 4095 && !name.contains('\0');
        if key == "binaries" && name.contains('/') && !name.starts_with('/') {
            let what =
                format!("binary {name:?} is a relative path: write a bare name or all of it");
            return Err(table.at(at, what));
        }
        if key == "host_files"
            && (!name.starts_with('/') || name.split('/').any(|part| part == ".."))
        {
            let what = format!("host file {name:?} is not an absolute path without '..'");
            return Err(table.at(at, what));
        }
        if key == "packages" && name.contains([',', '|']) {
            let what = format!("{name:?} is not one package: write each as an item of its own");
            return Err(table.at(at, what));
        }
        if usable {
            Ok(wanted)
        } else {
            Err(table.at(at, format!("`{key}` holds an empty or impossible name")))
        }
    };
    table.texts(key)?.into_iter().map(item).collect()
}

fn bases(table: &Table<'_>, folder: Option<&Path>) -> Result<Vec<Source>, ManifestError> {
    let read = |table: Table<'_>| {
        let source = table.required_text("source", "a base")?;
        Ok(Source {
            path: source_path(&table, source, folder)?,
            image: table.text("image")?.map(str::to_owned),
            optional: table.flag("optional")?,
        })
    };
    let known = ["source", "image", "optional"];
    table.tables("bases", "an item of `bases`", &known)?.into_iter().map(read).collect()
}

fn files(table: &Table<'_>, folder: Option<&Path>) -> Result<Vec<PlacedFile>, ManifestError> {
    let known = ["path", "source", "text", "mode", "optional"];
    let read = |table: Table<'_>| {
        let content = match (table.text("source")?, table.text("text")?) {
            (Some(source), None) => PlacedContent::Source(source_path(&table, source, folder)?),
            (None, Some(text)) => PlacedContent::Text(text.to_owned()),
            _ => {
                let what = "a file has either `source`, a path on this host, or `text`";
                return Err(table.wrong("path", what.to_owned()));
            }
        };
        Ok(PlacedFile {
            path: placed_path(&table, "a file")?,
            content,
            mode: mode(&table)?,
            optional: table.flag("optional")?,
        })
    };
    table.tables("files", "an item of `files`", &known)?.into_iter().map(read).collect()
}

fn trees(table: &Table<'_>, folder: Option<&Path>) -> Result<Vec<PlacedTree>, ManifestError> {
    let known = ["path", "source", "optional", "programs"];
    let read = |table: Table<'_>| {
        let source = table.required_text("source", "a tree")?;
        Ok(PlacedTree {
            path: placed_path(&table, "a tree")?,
            source: source_path(&table, source, folder)?,
            optional: table.flag("optional")?,
            programs: table.flag("programs")?,
        })
    };
    table.tables("trees", "an item of `trees`", &known)?.into_iter().map(read).collect()
}

fn symlinks(table: &Table<'_>) -> Result<Vec<PlacedLink>, ManifestError> {
    let read = |table: Table<'_>| {
        let target = table.required_text("target", "a symlink")?;
        if target.is_empty() || target.len() > 4095 || target.contains('\0') {
            return Err(table.wrong("target", "a symlink cannot say this".to_owned()));
        }
        Ok(PlacedLink { path: placed_path(&table, "a symlink")?, target: target.to_owned() })
    };
    let items = table.tables("symlinks", "an item of `symlinks`", &["path", "target"])?;
    items.into_iter().map(read).collect()
}

fn excludes(table: &Table<'_>) -> Result<Vec<String>, ManifestError> {
    let read = |(at, text): (usize, &str)| {
        if text.starts_with(['/', '*']) && text.len() <= 4095 {
            Ok(text.to_owned())
        } else {
            let what = format!("`exclude` {text:?} can match no path: start it with '/' or '*'");
            Err(table.at(at, what))
        }
    };
    table.texts("exclude")?.into_iter().map(read).collect()
}

fn placed_path(table: &Table<'_>, what: &str) -> Result<GuestPath, ManifestError> {
    let text = table.required_text("path", what)?;
    guest_path(text).map_err(|what| table.wrong("path", what))
}

fn guest_path(text: &str) -> Result<GuestPath, String> {
    match GuestPath::new(text) {
        Ok(path) if path == GuestPath::root() => Err("the root is always there".to_owned()),
        Ok(path) => Ok(path),
        Err(error) => Err(error.to_string()),
    }
}

fn source_path(
    table: &Table<'_>,
    text: &str,
    folder: Option<&Path>,
) -> Result<PathBuf, ManifestError> {
    let refuse = |what: &str| Err(table.wrong("source", format!("source {text:?} {what}")));
    if text.is_empty() || text.contains('\0') {
        return refuse("is no path");
    }
    if text.starts_with('~') || text.contains("${") {
        return refuse("would be taken literally: a manifest knows neither '~' nor variables");
    }
    match folder {
        _ if text.starts_with('/') => Ok(PathBuf::from(text)),
        Some(folder) => Ok(folder.join(text)),
        None => refuse("is relative, and this manifest has no folder"),
    }
}

fn mode(table: &Table<'_>) -> Result<Option<u32>, ManifestError> {
    let Some(text) = table.text("mode")? else { return Ok(None) };
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 && text.starts_with(|c: char| c.is_ascii_digit()) => {
            Ok(Some(mode))
        }
        _ => Err(table.wrong("mode", format!("mode {text:?} is not octal, such as \"0755\""))),
    }
}

#[cfg(test)]
mod tests;
