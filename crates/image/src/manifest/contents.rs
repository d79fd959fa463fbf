//! A manifest with everything it includes, as one list.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Manifest, ManifestError, ManifestSource, shipped_names};
use crate::base::Base;

/// How deeply includes may be nested.
const DEPTH: usize = 16;

/// What a manifest and all it includes ask for. What an included manifest says comes first, so that the
/// one which includes it has the last word on a path. A manifest included twice counts once.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    pub(crate) manifest: Manifest,
    /// The files that were read or looked for on the way.
    pub(crate) looked_at: Vec<PathBuf>,
}

impl Contents {
    /// Reads what `top` includes, beside each manifest first and among the shipped ones then.
    pub fn load(top: &ManifestSource) -> Result<Contents, ManifestError> {
        let mut loader = Loader::default();
        loader.load(top)?;
        Ok(loader.contents)
    }

    /// What lies below everything that is named singly.
    pub(crate) fn base(&self) -> Base {
        let Manifest { bases, packages, host_files, exclude, .. } = self.manifest.clone();
        Base { sources: bases, packages, host_files, exclude }
    }

    /// The names of all modules that are not optional, each once, those of includes first.
    pub fn required_modules(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for wanted in &self.manifest.modules {
            if !wanted.optional && !names.contains(&wanted.name) {
                names.push(wanted.name.clone());
            }
        }
        names
    }
}

#[derive(Debug, Default)]
struct Loader {
    contents: Contents,
    /// Identities of the manifests being read, from the top down, with the names to show.
    stack: Vec<(String, String)>,
    done: BTreeSet<String>,
}

impl Loader {
    fn load(&mut self, source: &ManifestSource) -> Result<(), ManifestError> {
        let identity = identity(source);
        if let Some(first) = self.stack.iter().position(|(id, _)| *id == identity) {
            let mut chain: Vec<&str> =
                self.stack[first..].iter().map(|(_, name)| name.as_str()).collect();
            chain.push(&source.name);
            return Err(ManifestError::Cycle { chain: chain.join(" -> ") });
        }
        if self.stack.len() >= DEPTH {
            return Err(ManifestError::TooDeep { file: source.name.clone() });
        }
        if !self.done.insert(identity.clone()) {
            return Ok(());
        }
        let manifest = Manifest::parse(source)?;
        self.stack.push((identity, source.name.clone()));
        for wanted in &manifest.include {
            let included = self.find(source, wanted)?;
            self.load(&included)?;
        }
        self.stack.pop();
        self.append(manifest);
        Ok(())
    }

    fn find(
        &mut self,
        from: &ManifestSource,
        wanted: &str,
    ) -> Result<ManifestSource, ManifestError> {
        let mut file = PathBuf::from(wanted);
        if file.extension().is_none() {
            file.set_extension("toml");
        }
        let beside = from.folder.as_deref().map(|folder| folder.join(&file));
        if let Some(beside) = &beside {
            self.contents.looked_at.push(beside.clone());
            if beside.is_file() {
                let found = ManifestSource::read(beside)?;
                // A scenario or manifest may have the name of the shipped one which it builds upon.
                return match ManifestSource::shipped(wanted) {
                    Some(shipped) if found.text == from.text => Ok(shipped),
                    _ => Ok(found),
                };
            }
        }
        ManifestSource::shipped(wanted).ok_or_else(|| ManifestError::NoSuchInclude {
            file: from.name.clone(),
            wanted: wanted.chars().take(200).collect(),
            beside: beside.map_or("a file".to_owned(), |path| path.display().to_string()),
            shipped: shipped_names().collect::<Vec<_>>().join(", "),
        })
    }

    fn append(&mut self, manifest: Manifest) {
        let all = &mut self.contents.manifest;
        all.bases.extend(manifest.bases);
        all.packages.extend(manifest.packages);
        all.host_files.extend(manifest.host_files);
        all.binaries.extend(manifest.binaries);
        all.libraries.extend(manifest.libraries);
        all.modules.extend(manifest.modules);
        all.firmware.extend(manifest.firmware);
        all.files.extend(manifest.files);
        all.trees.extend(manifest.trees);
        all.symlinks.extend(manifest.symlinks);
        all.directories.extend(manifest.directories);
        all.exclude.extend(manifest.exclude);
    }
}

/// What makes two includes the same manifest: the file, however it is spelled, or the shipped name.
fn identity(source: &ManifestSource) -> String {
    match source.folder {
        None => source.name.clone(),
        Some(_) => std::fs::canonicalize(Path::new(&source.name))
            .map_or_else(|_| source.name.clone(), |path| path.display().to_string()),
    }
}
