//! Where Kiln keeps things: the XDG folders, or everything under `KILN_HOME`.

use std::path::{Path, PathBuf};

use crate::exit::Exit;
use crate::failure::Failure;

/// The folders. None of them needs to exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    config: PathBuf,
    cache: PathBuf,
    data: PathBuf,
}

impl Home {
    /// Finds the folders by the environment.
    pub(crate) fn find() -> Result<Home, Failure> {
        Home::from_environment(|name| std::env::var_os(name).map(PathBuf::from))
    }

    fn from_environment(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<Home, Failure> {
        // The specification tells to ignore relative paths in XDG variables.
        let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
        if let Some(root) = variable("KILN_HOME").filter(|root| !root.as_os_str().is_empty()) {
            let root = std::path::absolute(&root).unwrap_or(root);
            return Ok(Home {
                config: root.clone(),
                cache: root.join("cache"),
                data: root.join("data"),
            });
        }
        let home = absolute("HOME");
        let folder = |name: &str, below: &str| {
            let base = absolute(name).or_else(|| home.as_ref().map(|home| home.join(below)));
            base.map(|base| base.join("kiln")).ok_or_else(|| {
                Failure::new(Exit::Setup, format!("neither ${name} nor $HOME names a folder"))
                    .hint("export KILN_HOME=/some/folder")
            })
        };
        Ok(Home {
            config: folder("XDG_CONFIG_HOME", ".config")?,
            cache: folder("XDG_CACHE_HOME", ".cache")?,
            data: folder("XDG_DATA_HOME", ".local/share")?,
        })
    }

    /// The user's configuration file.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.config.join("config.toml")
    }

    /// Kernels, images and verdicts: always safe to delete.
    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    /// Recordings and the index over them.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Where `kiln report` writes when nobody says otherwise.
    pub(crate) fn report(&self) -> PathBuf {
        self.data.join("report")
    }
}

/// The nearest `kiln.toml` at or above `folder`.
pub(crate) fn project_file(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().map(|folder| folder.join("kiln.toml")).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(variables: &[(&str, &str)]) -> Result<Home, Failure> {
        Home::from_environment(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| PathBuf::from(value))
        })
    }

    #[test]
    fn one_variable_moves_everything() {
        let home = home(&[("KILN_HOME", "/k"), ("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]).unwrap();
        assert_eq!(home.config_file(), Path::new("/k/config.toml"));
        assert_eq!(home.cache(), Path::new("/k/cache"));
        assert_eq!(home.data(), Path::new("/k/data"));
    }

    #[test]
    fn xdg_folders_are_used_and_relative_ones_ignored() {
        let home =
            home(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c"), ("XDG_DATA_HOME", "rel")]).unwrap();
        assert_eq!(home.config_file(), Path::new("/h/.config/kiln/config.toml"));
        assert_eq!(home.cache(), Path::new("/c/kiln"));
        assert_eq!(home.data(), Path::new("/h/.local/share/kiln"));
    }

    #[test]
    fn without_any_home_the_cure_is_named() {
        let failure = home(&[]).unwrap_err();
        assert_eq!(failure.exit, Exit::Setup);
        assert!(failure.hints[0].contains("KILN_HOME"));
    }
}
