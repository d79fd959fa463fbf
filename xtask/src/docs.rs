//! Whether the written map is whole: links lead somewhere, pages can be reached from the README, the
//! architecture page names every crate, and pages that the code cites exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

use crate::markdown;

const START: &str = "README.md";
const MAP: &str = "docs/architecture.md";

/// Reads the pages below `root` and returns what is wrong with them, a sentence each.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let pages = pages(root)?;
    let mut findings = Vec::new();
    for page in [START, MAP] {
        if !pages.contains_key(Path::new(page)) {
            findings.push(format!("{page} does not exist"));
        }
    }
    findings.extend(broken_links(root, &pages));
    findings.extend(unreachable(&pages));
    findings.extend(crates_off_the_map(root, &pages)?);
    findings.extend(cited_pages_that_do_not_exist(root)?);
    Ok(findings)
}

/// Text of every page, by its path from the root.
type Pages = BTreeMap<PathBuf, String>;

fn pages(root: &Path) -> Result<Pages> {
    let mut files = Vec::new();
    for entry in list(root)? {
        if entry.is_file() {
            files.push(entry);
        }
    }
    let docs = root.join("docs");
    if docs.is_dir() {
        walk(&docs, &mut files)?;
    }
    let mut pages = Pages::new();
    for file in files.into_iter().filter(|file| file.extension().is_some_and(|e| e == "md")) {
        let name = file.strip_prefix(root)?.to_owned();
        pages.insert(name, read(&file)?);
    }
    Ok(pages)
}

fn broken_links(root: &Path, pages: &Pages) -> Vec<String> {
    let mut findings = Vec::new();
    for (page, text) in pages {
        for link in markdown::links(text) {
            let Some((path, fragment)) = local(page, &link.target) else { continue };
            let problem = match (pages.get(&path), fragment) {
                (Some(text), Some(fragment)) => {
                    (!markdown::anchors(text).iter().any(|anchor| anchor == fragment))
                        .then(|| format!("{} has no heading #{fragment}", path.display()))
                }
                (Some(_), None) => None,
                (None, _) => (!root.join(&path).exists())
                    .then(|| format!("{} does not exist", path.display())),
            };
            findings
                .extend(problem.map(|what| format!("{}:{}: {what}", page.display(), link.line)));
        }
    }
    findings
}

fn unreachable(pages: &Pages) -> Vec<String> {
    let mut reached = BTreeSet::new();
    let mut next = vec![PathBuf::from(START)];
    while let Some(page) = next.pop() {
        let Some(text) = pages.get(&page) else { continue };
        if reached.insert(page.clone()) {
            let links = markdown::links(text);
            next.extend(links.iter().filter_map(|link| Some(local(&page, &link.target)?.0)));
        }
    }
    pages
        .keys()
        .filter(|page| page.starts_with("docs") && !reached.contains(*page))
        .map(|page| format!("{}: no page leads here from {START}", page.display()))
        .collect()
}

fn crates_off_the_map(root: &Path, pages: &Pages) -> Result<Vec<String>> {
    let Some(map) = pages.get(Path::new(MAP)) else { return Ok(Vec::new()) };
    let mut findings = Vec::new();
    let crates = root.join("crates");
    if !crates.is_dir() {
        return Ok(findings);
    }
    for folder in list(&crates)? {
        let Some(name) = folder.file_name().and_then(|name| name.to_str()) else { continue };
        if folder.join("Cargo.toml").is_file() && !map.contains(&format!("`{name}`")) {
            findings.push(format!("{MAP}: crates/{name} is not on it (as `{name}`)"));
        }
    }
    Ok(findings)
}

/// Doc comments cite the normative page of a format by its path; a page renamed must be renamed there.
fn cited_pages_that_do_not_exist(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for folder in ["crates", "scenarios"].map(|name| root.join(name)) {
        if folder.is_dir() {
            walk(&folder, &mut files)?;
        }
    }
    let mut findings = Vec::new();
    for file in files {
        if !file.extension().is_some_and(|e| e == "rs" || e == "toml") {
            continue;
        }
        let text = read(&file)?;
        for (index, line) in text.lines().enumerate() {
            for page in cited(line).filter(|page| !root.join(page).is_file()) {
                let name = file.strip_prefix(root)?.display();
                findings.push(format!("{name}:{}: cites {page}, which does not exist", index + 1));
            }
        }
    }
    Ok(findings)
}

/// Words in backticks that look like a page.
fn cited(line: &str) -> impl Iterator<Item = &str> {
    line.split('`')
        .skip(1)
        .step_by(2)
        .map(|word| word.split('#').next().unwrap_or(word))
        .filter(|word| word.starts_with("docs/") && word.ends_with(".md") && !word.contains(' '))
}

/// Where a link leads inside the repository, and to which heading; `None` when it leads elsewhere.
fn local<'a>(page: &Path, target: &'a str) -> Option<(PathBuf, Option<&'a str>)> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, fragment) = match target.split_once('#') {
        Some((path, fragment)) => (path, Some(fragment)),
        None => (target, None),
    };
    if path.is_empty() {
        return Some((page.to_owned(), fragment));
    }
    let mut resolved = page.parent().map(Path::to_owned).unwrap_or_default();
    for component in Path::new(path).components() {
        match component {
            Component::ParentDir => {
                resolved.pop();
            }
            Component::Normal(name) => resolved.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some((resolved, fragment))
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in list(folder)? {
        if entry.is_dir() {
            walk(&entry, files)?;
        } else {
            files.push(entry);
        }
    }
    Ok(())
}

/// A folder's entries in order, so that findings come in the same order everywhere.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut entries = read().with_context(|| format!("cannot list {}", folder.display()))?;
    entries.sort();
    Ok(entries)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository of the given files.
    fn repository(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn judge(files: &[(&str, &str)]) -> Vec<String> {
        check(repository(files).path()).unwrap()
    }

    const README: (&str, &str) = ("README.md", "[map](docs/architecture.md)");

    #[test]
    fn a_whole_map_has_no_findings() {
        let found = judge(&[
            README,
            ("docs/architecture.md", "`block` and [back](../README.md), [x](https://x.example/y)"),
            ("crates/block/Cargo.toml", ""),
            ("crates/block/src/lib.rs", "//! See `docs/architecture.md#top`."),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn a_dead_link_is_named_with_its_page_and_line() {
        let found = judge(&[README, ("docs/architecture.md", "\n[gone](formats/gone.md)")]);
        assert_eq!(found, ["docs/architecture.md:2: docs/formats/gone.md does not exist"]);
    }

    #[test]
    fn a_link_to_a_heading_needs_that_heading() {
        let found = judge(&[README, ("docs/architecture.md", "# Map\n[a](#map) [b](#moved)")]);
        assert_eq!(found, ["docs/architecture.md:2: docs/architecture.md has no heading #moved"]);
    }

    #[test]
    fn a_page_nobody_links_to_is_found() {
        let found =
            judge(&[README, ("docs/architecture.md", "# Map"), ("docs/formats/lost.md", "# Lost")]);
        assert_eq!(found, ["docs/formats/lost.md: no page leads here from README.md"]);
    }

    #[test]
    fn every_crate_is_on_the_map() {
        let found =
            judge(&[README, ("docs/architecture.md", "# Map"), ("crates/vm/Cargo.toml", "")]);
        assert_eq!(found, ["docs/architecture.md: crates/vm is not on it (as `vm`)"]);
    }

    #[test]
    fn a_page_cited_in_code_must_exist() {
        let found = judge(&[
            README,
            ("docs/architecture.md", "`vm`"),
            ("crates/vm/Cargo.toml", ""),
            ("crates/vm/src/lib.rs", "//! Layout: `docs/formats/gone.md`."),
        ]);
        assert_eq!(
            found,
            ["crates/vm/src/lib.rs:1: cites docs/formats/gone.md, which does not exist"]
        );
    }

    #[test]
    fn an_empty_repository_is_told_its_first_two_pages() {
        let found = judge(&[]);
        assert_eq!(found, ["README.md does not exist", "docs/architecture.md does not exist"]);
    }
}
