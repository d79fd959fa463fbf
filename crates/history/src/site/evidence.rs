//! The files of a run that go into the site, under names and in forms that no browser executes.
//!
//! A guest chooses both the names and the bytes of its artifacts. A page served as `text/html` or `image/svg+xml` from the
//! site's own origin could run scripts there, so only endings known to be inert are kept; any other file gets `.txt` or
//! `.bin` behind its name.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::HistoryError;
use crate::folder::RunFolder;
use crate::summary::{Artifact, RunSummary};

/// A larger file stays in the run's folder, unless it is a log: of that the end is kept.
const LARGEST_FILE: u64 = 4 << 20;
/// All files of a run together.
const LARGEST_RUN: u64 = 64 << 20;

/// Endings that browsers show as text or an image, or only download.
const INERT: &[&str] =
    &["txt", "log", "cast", "json", "gz", "xz", "zst", "bz2", "tar", "png", "jpg", "bin"];

/// What of a run is in its site folder.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    files: Vec<Copied>,
}

#[derive(Debug)]
struct Copied {
    from: String,
    link: Option<String>,
    bytes: u64,
    cut: bool,
}

/// One file as a page shows it.
#[derive(Debug)]
pub(super) struct Shown<'a> {
    /// Its name in the run's folder. Hostile text.
    pub(super) name: &'a str,
    /// Relative to the run's page; none if it is not in the site.
    pub(super) link: Option<&'a str>,
    /// The size of the original.
    pub(super) bytes: u64,
    /// Whether only its end is in the site.
    pub(super) cut: bool,
}

impl Evidence {
    /// The file of this name in the run's folder.
    pub(super) fn of(&self, from: &str) -> Option<Shown<'_>> {
        self.files.iter().find(|file| file.from == from).map(|file| Shown {
            name: &file.from,
            link: file.link.as_deref(),
            bytes: file.bytes,
            cut: file.cut,
        })
    }
}

/// Copies a run's files below `into/files`.
pub(super) fn collect(
    folder: &RunFolder,
    run: &RunSummary,
    into: &Path,
) -> Result<Evidence, HistoryError> {
    let mut names: Vec<String> = Vec::new();
    let mut add = |name: String| {
        if !names.contains(&name) {
            names.push(name);
        }
    };
    for machine in &run.machines {
        add(format!("machines/{}/console.log", machine.vm));
    }
    for stage in &run.stages {
        add(format!("stages/{}/dmesg.txt", stage.name));
        add(format!("stages/{}/terminal.cast", stage.name));
    }
    let of_stages = run.stages.iter().flat_map(|stage| &stage.artifacts);
    for Artifact { path, .. } in of_stages.chain(&run.artifacts) {
        add(path.clone());
    }
    let mut evidence = Evidence::default();
    let mut taken = HashSet::new();
    let mut room = LARGEST_RUN;
    for from in names {
        let Some(path) = folder.inside(&from) else { continue };
        let mut file = File::open(&path).map_err(HistoryError::io("read", &path))?;
        let bytes = file.metadata().map_err(HistoryError::io("read", &path))?.len();
        let is_log = from.ends_with(".log") || from.ends_with(".txt");
        let cut = bytes > LARGEST_FILE && is_log;
        let copied = bytes.min(LARGEST_FILE);
        let mut link = None;
        if (bytes <= LARGEST_FILE || cut) && copied <= room {
            room -= copied;
            let skip = SeekFrom::Start(bytes - copied);
            file.seek(skip).map_err(HistoryError::io("read", &path))?;
            let mut content = Vec::new();
            file.take(copied).read_to_end(&mut content).map_err(HistoryError::io("read", &path))?;
            let name = inert_name(&from, &content, &mut taken);
            let target = into.join(&name);
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).map_err(HistoryError::io("create", parent))?;
            }
            fs::write(&target, content)
                .map_err(|source| crate::append::failure("write", &target, source))?;
            link = Some(name);
        }
        evidence.files.push(Copied { from, link, bytes, cut });
    }
    Ok(evidence)
}

/// `files/…`: plain characters only, an inert ending, and taken by no other file.
fn inert_name(from: &str, content: &[u8], taken: &mut HashSet<String>) -> String {
    let parts: Vec<String> =
        from.split('/').filter(|part| !matches!(*part, "" | ".")).map(plain_part).collect();
    let mut name = format!("files/{}", parts.join("/"));
    let inert = name.rsplit_once('.').is_some_and(|(_, end)| {
        !end.contains('/') && INERT.contains(&end.to_ascii_lowercase().as_str())
    });
    if !inert {
        let text = std::str::from_utf8(content).is_ok() && !content.contains(&0);
        name.push_str(if text { ".txt" } else { ".bin" });
    }
    let mut free = name.clone();
    let mut count = 2;
    while !taken.insert(free.to_ascii_lowercase()) {
        let (stem, end) = name.rsplit_once('.').unwrap_or((&name, "bin"));
        free = format!("{stem}-{count}.{end}");
        count += 1;
    }
    free
}

/// One part of a path without anything a shell, a URL or git would take for more than a name.
pub(super) fn plain_part(part: &str) -> String {
    let mut plain: String = part
        .chars()
        .take(100)
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() => c,
            '.' | '_' | '-' => c,
            _ => '_',
        })
        .collect();
    if plain.is_empty() || plain.starts_with(['.', '-']) {
        plain.insert(0, '_');
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_a_guest_becomes_something_a_browser_runs_or_git_refuses() {
        let mut taken = HashSet::new();
        let mut name = |from: &str| inert_name(from, b"<script>", &mut taken);
        assert_eq!(name("stages/a/artifacts/evil.html"), "files/stages/a/artifacts/evil.html.txt");
        assert_eq!(name("x.svg"), "files/x.svg.txt");
        assert_eq!(name("x.SVG"), "files/x.SVG-2.txt");
        assert_eq!(name("a/.git/config"), "files/a/_.git/config.txt");
        assert_eq!(name("a b#?%\n.log"), "files/a_b____.log");
        assert_eq!(name("a b#?%\t.log"), "files/a_b____-2.log");
        assert_eq!(name("fio.json"), "files/fio.json");
        assert_eq!(inert_name("core", &[0, 1, 255], &mut HashSet::new()), "files/core.bin");
    }
}
