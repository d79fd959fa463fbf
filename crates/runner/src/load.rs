//! Finding a scenario: a file of the user's, or one that ships with Kiln; with its scripts.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kiln_model::scenario::{self, Scenario, ScenarioError, Script, nearest};

use crate::shipped::{self, Shipped};

/// Longest script that is read, in bytes.
pub const MAX_SCRIPT: u64 = 16 << 20;

/// A scenario with its scripts' text.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The scenario; none of its scripts is a file any more.
    pub scenario: Scenario,
    /// Where it came from, as the user would name it: a path, or the name of a shipped scenario.
    pub source: String,
    /// Its text, from which the image builder reads `[guest]`.
    pub text: String,
    /// The folder that relative paths of its `[guest]` mean; none for a shipped scenario.
    pub folder: Option<PathBuf>,
}

/// Why there is no scenario.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is neither a file nor shipped.
    #[error("there is no scenario {name}{}: it is neither a file nor one of {}", meant(nearest.as_deref()), known.join(", "))]
    NotFound {
        /// As the user named it.
        name: String,
        /// The shipped scenario with nearly that name.
        nearest: Option<String>,
        /// All that ship.
        known: Vec<String>,
    },
    /// The file cannot be read.
    #[error("cannot read scenario {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was read and refused.
    #[error("{source_name}: {error}")]
    Refused {
        /// Which.
        source_name: String,
        /// Why, with the line.
        error: ScenarioError,
    },
    /// One of its scripts cannot be read.
    #[error("{source_name}: line {line}: cannot read script {}", path.display())]
    Script {
        /// Which scenario.
        source_name: String,
        /// Where it names the script.
        line: usize,
        /// Where the script should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn meant(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(" (did you mean {name}?)"))
}

/// Loads a scenario by path, or by the name of a shipped one. Something with a `/` or a `.toml` at its end is a
/// path; so is the name of a file that is there and does not ship.
pub fn load(name: &str) -> Result<Loaded, LoadError> {
    let is_path =
        name.contains('/') || Path::new(name).extension().is_some_and(|end| end == "toml");
    if !is_path {
        if let Some(shipped) = shipped::find(name) {
            return load_shipped(shipped);
        }
        if !Path::new(name).is_file() {
            let known: Vec<String> =
                shipped::ALL.iter().map(|shipped| shipped.name.to_owned()).collect();
            let nearest = nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
            return Err(LoadError::NotFound { name: name.to_owned(), nearest, known });
        }
    }
    load_file(Path::new(name))
}

fn load_file(path: &Path) -> Result<Loaded, LoadError> {
    let source_name = path.display().to_string();
    let text = read_text(path, scenario::MAX_TEXT as u64)
        .map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
    let scenario = Scenario::parse(&text)
        .map_err(|error| LoadError::Refused { source_name: source_name.clone(), error })?;
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let lines = script_lines(&scenario);
    let scenario = scenario.load_scripts(|script| {
        let path = folder.join(script);
        read_text(&path, MAX_SCRIPT).map_err(|source| LoadError::Script {
            source_name: source_name.clone(),
            line: lines.iter().find(|(name, _)| name == script).map_or(1, |(_, line)| *line),
            path,
            source,
        })
    })?;
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    Ok(Loaded { scenario, source: source_name, text, folder: Some(folder) })
}

fn load_shipped(shipped: &Shipped) -> Result<Loaded, LoadError> {
    let source_name = shipped.name.to_owned();
    let scenario = Scenario::parse(shipped.text)
        .map_err(|error| LoadError::Refused { source_name: source_name.clone(), error })?;
    let lines = script_lines(&scenario);
    let scenario = scenario.load_scripts(|script| {
        let found = shipped.scripts.iter().find(|(name, _)| Path::new(name) == script);
        found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| LoadError::Script {
            source_name: source_name.clone(),
            line: lines.iter().find(|(name, _)| name == script).map_or(1, |(_, line)| *line),
            path: script.to_owned(),
            source: io::ErrorKind::NotFound.into(),
        })
    })?;
    let text = shipped.text.to_owned();
    Ok(Loaded { scenario, source: source_name, text, folder: None })
}

fn script_lines(scenario: &Scenario) -> Vec<(PathBuf, usize)> {
    let files = scenario.stages.iter().filter_map(|stage| match &stage.script {
        Script::File { path, line } => Some((path.clone(), *line)),
        Script::Text(_) => None,
    });
    files.collect()
}

/// Reads text that may be `limit` bytes long. A device or a pipe is no text, and could block for ever.
fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it is longer than {limit} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    fn write(folder: &Path, name: &str, text: &str) -> String {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn scripts_lie_beside_their_scenario() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "s.sh", "echo hello");
        let text = "name = \"x\"\n[[stages]]\nname = \"s\"\nscript = \"s.sh\"\n";
        let loaded = load(&write(folder.path(), "x.toml", text)).unwrap();
        assert_eq!(loaded.scenario.stages[0].script, Script::Text("echo hello".into()));
        assert_eq!(loaded.folder.as_deref(), Some(folder.path()));
    }

    #[test]
    fn a_script_that_is_not_there_is_named_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let text = "name = \"x\"\n[[stages]]\nname = \"s\"\nscript = \"gone.sh\"\n";
        let error = load(&write(folder.path(), "x.toml", text)).unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("x.toml: line 4: cannot read script") && said.contains("gone.sh"),
            "{said}"
        );
        assert!(error.source().is_some());
    }

    #[test]
    fn a_slip_in_the_name_of_a_shipped_scenario_is_recognised() {
        let error = load("btrfs-smok").unwrap_err().to_string();
        assert!(error.contains("did you mean btrfs-smoke?"), "{error}");
    }

    #[test]
    fn what_is_not_a_text_file_is_refused_without_waiting_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.toml");
        std::fs::write(&path, b"\xff\xfe").unwrap();
        for path in [Path::new("/dev/zero"), folder.path(), &path] {
            assert!(load_file(path).is_err(), "{}", path.display());
        }
    }
}
